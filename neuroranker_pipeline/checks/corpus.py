"""Checks on the collection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.checks.rule import Verdict, rule
from neuroranker_pipeline.datasets import validate


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
def unjudged_queries_are_valid(queries: pa.Table, wanted: bool) -> Verdict:
    """Every query has an id of its own and a text, and there are some where the settings ask for them."""
    return _verdict(validate.check_unjudged(queries) if wanted else [])


@rule
def qrels_are_valid(qrels: pa.Table, queries: pa.Table, pids: pa.Array, bare_share: float) -> Verdict:
    """Judgments name known queries, once a passage, and every train, dev and gate query has a relevant passage (but for
    the share whose judgments may be rejected)."""
    return _verdict(validate.check_qrels(qrels, queries, pids, bare_share))


@rule
def given_candidates_are_usable(candidates: pa.Table, queries: pa.Table, splits: Sequence[str]) -> Verdict:
    """Every test set for which a run was given has candidates for at least nine queries in ten."""
    shares = {}
    for split in splits:
        asked = queries["qid"].filter(pc.equal(queries["split"], split))
        found = pc.sum(pc.is_in(asked, pc.unique(candidates["qid"])), min_count=0).as_py()
        shares[split] = found / max(1, len(asked))
    return Verdict(all(share >= 0.9 for share in shares.values()), shares)


def _verdict(problems: list[str]) -> Verdict:
    return Verdict(not problems, {"problems": "; ".join(problems) or "none"})
