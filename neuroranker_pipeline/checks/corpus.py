"""Checks on the collection."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.checks.retrieval import enough_found, nothing_found
from neuroranker_pipeline.checks.rule import Verdict, rule
from neuroranker_pipeline.datasets import validate

if TYPE_CHECKING:  # it imports SciPy, and this module is imported with the code location
    from neuroranker_pipeline.datasets.leaks import Leaks


@rule
def passages_are_valid(passages: Iterable[pa.RecordBatch]) -> Verdict:
    """Every passage has an id of its own and a text."""
    return _verdict(validate.check_passages(passages))


@rule
def queries_are_valid(queries: pa.Table, needed: Sequence[str] = ("train", "dev")) -> Verdict:
    """Every query has an id of its own, a text, and one known split; train and dev are not empty, where the settings need
    them."""
    return _verdict(validate.check_queries(queries, needed))


@rule
def splits_do_not_leak(leaks: Leaks, carved: Collection[str]) -> Verdict:
    """No dev, gate or test question is learned from; in splits that were carved out of training, none that is nearly the
    same either. Near ones in splits that came with the data are a warning."""
    evidence: dict[str, Any] = {"similarity": leaks.threshold}
    for split in leaks.splits:
        evidence[split.split] = f"{split.same} same and {split.near} near of {split.queries}"
    if leaks.leaks:
        first = leaks.leaks[0]
        evidence["first"] = f"{first.text!r} ({first.split}) and {first.training_text!r}"
    blocking = any(split.same or (split.near and split.split in carved) for split in leaks.splits)
    return Verdict(not leaks.same and not leaks.near, evidence, blocking)


@rule
def unjudged_queries_are_valid(queries: pa.Table, wanted: bool) -> Verdict:
    """Every query has an id of its own and a text, and there are some where the settings ask for them."""
    return _verdict(validate.check_unjudged(queries) if wanted else [])


@rule
def qrels_are_valid(
    qrels: pa.Table, queries: pa.Table, pids: pa.Array, bare_share: float, about_itself: pa.Array | None = None
) -> Verdict:
    """Judgments name known queries, once a passage; every train, dev and gate query has one (but for the share whose
    judgments may be rejected), and each of these splits something relevant."""
    return _verdict(validate.check_qrels(qrels, queries, pids, bare_share, about_itself))


@rule
def given_candidates_are_usable(
    candidates: pa.Table, queries: pa.Table, splits: Sequence[str], unanswered: float = 0.1
) -> Verdict:
    """Every test set for which a run was given has candidates for its queries, but for as many as `bounds.unanswered`
    allows, rounded up to whole ones."""
    evidence: dict[str, Any] = {}
    usable = True
    for split in splits:
        asked = queries["qid"].filter(pc.equal(queries["split"], split))
        silent = asked.filter(pc.invert(pc.is_in(asked, pc.unique(candidates["qid"])))).to_pylist()
        usable &= enough_found(len(silent), len(asked), unanswered)
        found = nothing_found(silent, len(asked), unanswered)
        evidence |= {f"{split}: {name}": value for name, value in found.items()}
    return Verdict(usable, evidence)


def _verdict(problems: list[str]) -> Verdict:
    return Verdict(not problems, {"problems": "; ".join(problems) or "none"})
