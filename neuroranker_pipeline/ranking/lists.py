"""Training lists: for every query one positive passage and some negatives, drawn from its candidates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.datasets.tables import CANDIDATES
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.ranking.settings import ListSettings

RELEVANT = 1  # the lowest grade of a positive


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
    table = with_positives(candidates, qrels)
    table = _attach(_attach(table, prior, "prior"), teacher, "teacher")
    lists: list[tuple[str, _Group]] = []
    skipped = 0
    for qid, group in _groups(table):
        for copy in range(settings.lists_per_query if qid in relevant else 0):
            drawn = _draw(group, relevant[qid], settings, np.random.default_rng([seed, _stable(qid), copy]))
            skipped += drawn is None
            if drawn is not None:
                lists.append((qid, drawn))
    if not lists:
        raise BadInput(
            f"no training list: none of the candidates' queries has a judged positive and {settings.negatives} "
            "negatives; lower `negatives`, or check that candidates and qrels hold the same qids"
        )
    names = sorted({qid for qid, _ in lists}, key=lambda qid: (_stable(f"{seed}/{qid}"), qid))
    kept = set(names[: settings.queries])
    lists = [(qid, drawn) for qid, drawn in lists if qid in kept]
    return TrainingLists(
        qids=[qid for qid, _ in lists],
        pids=np.array([drawn.pids for _, drawn in lists], dtype=object),
        prior=None if prior is None else np.stack([drawn.prior for _, drawn in lists]),
        teacher=None if teacher is None else np.stack([drawn.teacher for _, drawn in lists]),
        relevant={qid: relevant[qid] for qid in kept},
        skipped=skipped,
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
    columns = candidates.select(CANDIDATES.names).cast(CANDIDATES)
    judged = qrels.filter(pc.greater_equal(qrels["grade"], RELEVANT)).select(["qid", "pid"])
    judged = judged.filter(pc.is_in(judged["qid"], pc.unique(columns["qid"])))
    missed = judged.join(columns.select(["qid", "pid"]), ["qid", "pid"], join_type="left anti")
    last = columns.group_by("qid").aggregate([("rank", "max")])
    rank = dict(zip(last["qid"].to_pylist(), last["rank_max"].to_pylist(), strict=True))
    added = []
    for row in missed.sort_by([("qid", "ascending"), ("pid", "ascending")]).to_pylist():
        rank[row["qid"]] += 1
        added.append({**row, "rank": rank[row["qid"]], "score": 0.0})
    return pa.concat_tables([columns, pa.Table.from_pylist(added, schema=CANDIDATES)])


@dataclass(frozen=True)
class _Group:
    """Some candidates of one query; scores are NaN where there are none."""

    pids: np.ndarray
    prior: np.ndarray
    teacher: np.ndarray

    def take(self, rows: np.ndarray) -> _Group:
        return _Group(self.pids[rows], self.prior[rows], self.teacher[rows])


def _draw(group: _Group, relevant: set[str], settings: ListSettings, rng: np.random.Generator) -> _Group | None:
    """The positive and its negatives, or ``None`` when there are too few."""
    is_positive = np.array([pid in relevant for pid in group.pids])
    if not is_positive.any():
        return None
    positive = rng.choice(np.flatnonzero(is_positive))
    negatives = np.flatnonzero(~is_positive)
    if settings.false_negative_margin is not None:
        ceiling = group.prior[positive] + settings.false_negative_margin
        negatives = negatives[group.prior[negatives] <= ceiling]
    if settings.order == "prior":
        negatives = negatives[np.argsort(-group.prior[negatives], kind="stable")]
    negatives = negatives[: settings.depth]
    if len(negatives) < settings.negatives:
        return None
    if settings.draw == "hardest":
        drawn = negatives[: settings.negatives]
    else:
        edges = np.linspace(0, len(negatives), settings.negatives + 1).astype(int)
        drawn = negatives[rng.integers(edges[:-1], edges[1:])]
    return group.take(np.concatenate([[positive], drawn]))


def _attach(table: pa.Table, scores: pa.Table | None, name: str) -> pa.Table:
    """Add a column of scores; rows that a given table does not score are dropped."""
    if scores is None:
        return table.append_column(name, pa.nulls(len(table), pa.float32()))
    scores = scores.select(["qid", "pid", "score"]).rename_columns(["qid", "pid", name])
    return table.join(scores, ["qid", "pid"], join_type="inner")


def _groups(table: pa.Table) -> Iterator[tuple[str, _Group]]:
    """Every qid, in order, with its candidates by rank (then pid)."""
    table = table.sort_by([("qid", "ascending"), ("rank", "ascending"), ("pid", "ascending")])
    pids = table["pid"].to_numpy(zero_copy_only=False)
    prior, teacher = (table[name].to_numpy(zero_copy_only=False) for name in ("prior", "teacher"))
    start = 0
    for count in table["qid"].combine_chunks().value_counts():
        part = slice(start, start + count["counts"].as_py())
        yield count["values"].as_py(), _Group(pids[part], prior[part], teacher[part])
        start = part.stop


def _stable(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
