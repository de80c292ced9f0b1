"""Training lists: for every query one positive passage and some negatives, drawn from its candidates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.datasets.tables import CANDIDATES
from neuroranker_pipeline.errors import BadInput, require

RELEVANT = 1  # the lowest grade of a positive


@dataclass(frozen=True)
class ListSettings:
    """How training lists are drawn.

    negatives: passages beside the positive. depth: only the first ``depth`` negatives in ``order`` are drawn from.
    order: by candidate rank, or by the prior scores (hard negatives first). draw: one negative from each of
    equally long rank ranges, or the hardest ones. false_negative_margin: leave out negatives whose prior score
    is more than this above the positive's, for they are probably unjudged positives (RocketQA's denoising,
    https://arxiv.org/abs/2010.08191); ``None`` keeps all. queries: at most so many. lists_per_query: lists drawn from
    each query, differing in their negatives.
    """

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    negatives: int = 7
    depth: int = 100
    order: Literal["candidates", "prior"] = "candidates"
    draw: Literal["spread", "hardest"] = "spread"
    false_negative_margin: float | None = None
    queries: int | None = None
    lists_per_query: int = 1

    def __post_init__(self) -> None:
        require(self.negatives >= 1, "negatives", "at least 1", self.negatives)
        require(self.depth >= self.negatives, "depth", "at least the number of negatives", self.depth)
        require(self.queries is None or self.queries >= 1, "queries", "at least 1", self.queries)
        require(self.lists_per_query >= 1, "lists_per_query", "at least 1", self.lists_per_query)


@dataclass(frozen=True)
class TrainingLists:
    """``n`` lists of ``k`` passages, the positive first.

    qids: n strings; pids: (n, k) object array of strings; prior, teacher: (n, k) float32, or ``None`` where no such
    scores were given. skipped: queries left out for lack of a positive or of enough negatives.
    """

    qids: list[str]
    pids: np.ndarray
    prior: np.ndarray | None
    teacher: np.ndarray | None
    relevant: dict[str, set[str]] = field(repr=False)
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.qids)

    def digest(self) -> str:
        """SHA-256 of everything in the lists: two runs with equal digests train on the same examples."""
        state = hashlib.sha256("\0".join([*self.qids, *self.pids.ravel()]).encode())
        for scores in (self.prior, self.teacher):
            state.update(b"-" if scores is None else scores.tobytes())
        return state.hexdigest()


def sample_lists(
    candidates: pa.Table,
    qrels: pa.Table,
    settings: ListSettings,
    seed: int,
    prior: pa.Table | None = None,
    teacher: pa.Table | None = None,
) -> TrainingLists:
    """Draw training lists from candidates (qid, pid, rank, ...) and qrels (qid, pid, grade, ...).

    ``prior`` and ``teacher`` are scores tables. A passage without a score where a table is given is not drawn, so
    candidates outside a cascade's top are simply not trained on; that holds for the positive too. The draw depends on
    ``seed`` and the qid alone, not on the order of rows. Raises ``BadInput`` when no query is left.
    """
    if prior is None and (settings.order == "prior" or settings.false_negative_margin is not None):
        raise BadInput("training lists by prior score need the prior scores of the candidates; none were given")
    relevant = positives(qrels)
    priors, teachers = _scores(prior), _scores(teacher)
    qids: list[str] = []
    rows: list[list[str]] = []
    skipped = 0
    for qid, pids in _groups(candidates):
        if qid not in relevant:
            continue
        for copy in range(settings.lists_per_query):
            rng = np.random.default_rng([seed, _stable(qid), copy])
            drawn = _draw(qid, pids, relevant[qid], settings, rng, priors, teachers)
            skipped += drawn is None
            if drawn is not None:
                qids.append(qid)
                rows.append(drawn)
    if not rows:
        raise BadInput(
            f"no training list: none of the candidates' queries has a judged positive and {settings.negatives} "
            "negatives; lower `negatives`, or check that candidates and qrels hold the same qids"
        )
    qids, rows = _limited(qids, rows, settings, seed)
    return TrainingLists(
        qids, np.array(rows, dtype=object), _matrix(qids, rows, priors), _matrix(qids, rows, teachers), relevant, skipped
    )


def positives(qrels: pa.Table) -> dict[str, set[str]]:
    """The relevant pids (grade 1 or higher) of every qid."""
    found: dict[str, set[str]] = {}
    kept = qrels.filter(pc.greater_equal(qrels["grade"], RELEVANT))
    for qid, pid in zip(kept["qid"].to_pylist(), kept["pid"].to_pylist(), strict=True):
        found.setdefault(qid, set()).add(pid)
    return found


def with_positives(candidates: pa.Table, qrels: pa.Table) -> pa.Table:
    """Candidates with the judged positives that retrieval missed appended to their queries, ranked last, score 0.

    For training queries only: the teacher has to score a positive for the student to learn from it.
    """
    relevant = positives(qrels)
    added = []
    for qid, pids in _groups(candidates):
        missing = sorted(relevant.get(qid, set()) - set(pids))
        added += [{"qid": qid, "pid": pid, "rank": len(pids) + i + 1, "score": 0.0} for i, pid in enumerate(missing)]
    columns = candidates.select(CANDIDATES.names).cast(CANDIDATES)
    return pa.concat_tables([columns, pa.Table.from_pylist(added, schema=CANDIDATES)])


def _draw(
    qid: str,
    pids: list[str],
    relevant: set[str],
    settings: ListSettings,
    rng: np.random.Generator,
    prior: dict[tuple[str, str], float] | None,
    teacher: dict[tuple[str, str], float] | None,
) -> list[str] | None:
    tables = [table for table in (prior, teacher) if table is not None]

    def scored(pid: str) -> bool:
        return all((qid, pid) in table for table in tables)

    usable = [pid for pid in sorted(relevant) if scored(pid)]
    if not usable:
        return None
    positive = usable[rng.integers(len(usable))]
    negatives = [pid for pid in pids if pid not in relevant and scored(pid)]
    if prior is not None:
        if settings.false_negative_margin is not None:
            ceiling = prior[qid, positive] + settings.false_negative_margin
            negatives = [pid for pid in negatives if prior[qid, pid] <= ceiling]
        if settings.order == "prior":
            negatives.sort(key=lambda pid: (-prior[qid, pid], pid))
    negatives = negatives[: settings.depth]
    if len(negatives) < settings.negatives:
        return None
    if settings.draw == "hardest":
        return [positive, *negatives[: settings.negatives]]
    edges = np.linspace(0, len(negatives), settings.negatives + 1).astype(int)
    return [positive, *(negatives[rng.integers(a, b)] for a, b in zip(edges[:-1], edges[1:], strict=True))]


def _groups(candidates: pa.Table) -> Iterator[tuple[str, list[str]]]:
    """Every qid with its pids by rank (then pid), qids in order."""
    table = candidates.select(["qid", "rank", "pid"]).sort_by([("qid", "ascending"), ("rank", "ascending"), ("pid", "ascending")])
    counts = table["qid"].combine_chunks().value_counts()
    pids, start = table["pid"].combine_chunks(), 0
    for count in counts:
        size = count["counts"].as_py()
        yield count["values"].as_py(), pids.slice(start, size).to_pylist()
        start += size


def _scores(table: pa.Table | None) -> dict[tuple[str, str], float] | None:
    if table is None:
        return None
    keys = zip(table["qid"].to_pylist(), table["pid"].to_pylist(), strict=True)
    return dict(zip(keys, table["score"].to_pylist(), strict=True))


def _matrix(
    qids: list[str], rows: list[list[str]], scores: dict[tuple[str, str], float] | None
) -> np.ndarray | None:
    if scores is None:
        return None
    return np.array([[scores[qid, pid] for pid in row] for qid, row in zip(qids, rows, strict=True)], np.float32)


def _limited(
    qids: list[str], rows: list[list[str]], settings: ListSettings, seed: int
) -> tuple[list[str], list[list[str]]]:
    """The lists of ``settings.queries`` queries, chosen by a hash of the qid."""
    names = sorted(set(qids), key=lambda qid: (_stable(f"{seed}/{qid}"), qid))
    kept = set(names[: settings.queries])
    chosen = [i for i, qid in enumerate(qids) if qid in kept]
    return [qids[i] for i in chosen], [rows[i] for i in chosen]


def _stable(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
