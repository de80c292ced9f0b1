"""Training lists: for every query one positive passage and some negatives, drawn from its candidates."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.datasets.shards import stable_number
from neuroranker_pipeline.datasets.tables import CANDIDATES
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.ranking.settings import ListSettings

RELEVANT = 1  # the lowest grade of a positive
PAIR = ["qid", "pid"]


@dataclass(frozen=True)
class TrainingLists:
    """``n`` lists of ``k`` passages, the positive first; a query's lists stand together, queries in the order of qids.

    qids: n strings; pids: (n, k) object array of strings; prior, teacher: (n, k) float32, or ``None`` where no such
    scores were given. relevant: the passages of every qid that are no negative of it: its judged positives, drawn or not,
    and, where it is a passage itself, that one. skipped: judged queries left out for
    lack of a positive or of enough negatives.
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

    def sparing(self, own: pa.Table) -> TrainingLists:
        """The same lists, in which no query has the passage that it is itself (pairs qid, pid) for a negative."""
        mine = own.filter(pc.is_in(own["qid"], pa.array(sorted(self.relevant), pa.string())))
        pairs = _by_query(mine)
        return replace(self, relevant={qid: pids | pairs.get(qid, set()) for qid, pids in self.relevant.items()})

    def with_teacher(self, scores: pa.Table) -> TrainingLists:
        """The same lists with ``teacher`` from a scores table; raises ``BadInput`` for a passage that it lacks."""
        if not len(self):
            return replace(self, teacher=np.zeros(self.pids.shape, np.float32))
        pairs = {"qid": pa.array(np.repeat(self.qids, self.pids.shape[1]), pa.string())}
        rows = pa.table({**pairs, "pid": pa.array(self.pids.ravel(), pa.string()), "row": np.arange(self.pids.size)})
        joined = rows.join(scores.select([*PAIR, "score"]), PAIR, join_type="left outer").sort_by("row")
        if joined["score"].null_count:
            first = joined.filter(pc.is_null(joined["score"])).slice(0, 1).to_pylist()[0]
            raise BadInput(f"qid {first['qid']!r}, pid {first['pid']!r} of the training lists has no teacher score")
        if len(joined) != self.pids.size:
            raise BadInput("the teacher's scores hold some (qid, pid) more than once")
        teacher = joined["score"].to_numpy().astype(np.float32).reshape(self.pids.shape)
        return replace(self, teacher=teacher)


def sample_lists(
    candidates: pa.Table,
    qrels: pa.Table,
    settings: ListSettings,
    seed: int,
    prior: pa.Table | None = None,
    teacher: pa.Table | None = None,
    weight: Callable[[str], float] = lambda _: 1.0,
) -> TrainingLists:
    """Draw training lists from candidates (qid, pid, rank, ...) and qrels (qid, pid, grade, ...).

    ``prior`` and ``teacher`` are scores tables. A passage without a score where a table is given is not drawn, so
    candidates outside a cascade's top are simply not trained on; that holds for the positive too. The draw depends on
    ``seed`` and the qid alone, not on the order of rows or on the other queries: give the candidates of some queries at
    a time where all of them do not fit in memory, and join the results with ``join_lists``. ``weight`` of a qid is how often
    it is drawn from: a quarter of the queries of weight 0.25, and two times ``lists_per_query`` lists of one of weight 2.
    Raises ``BadInput`` when the settings need scores that are not given; no list at all is no error here, for a part may
    be small.
    """
    if prior is None and (settings.order == "prior" or settings.false_negative_margin is not None):
        raise BadInput("training lists by prior score need the prior scores of the candidates; none were given")
    if teacher is None and settings.teacher_margin is not None:
        raise BadInput("lists.teacher_margin needs the teacher's scores of the candidates; none were given")
    pool = _pool(with_judged(candidates, qrels, settings.judged_negatives > 0), qrels, prior, teacher)
    qids: list[str] = []
    drawn: list[np.ndarray] = []
    skipped = 0
    for number, qid in enumerate(pool.qids):
        copies = settings.lists_per_query * _times(weight(qid), seed, qid)
        found = [_draw(pool, number, settings, _generator(seed, qid, copy)) for copy in range(copies)]
        kept = [rows for rows in found if rows is not None]
        skipped += bool(found) and not kept
        qids += [qid] * len(kept)
        drawn += kept
    chosen = _choose(qids, settings, seed)
    rows = np.array([row for qid, row in zip(qids, drawn, strict=True) if qid in chosen], dtype=np.int64)
    rows = rows.reshape(-1, 1 + settings.negatives)
    judged = _judged(qrels)
    return TrainingLists(
        qids=[qid for qid in qids if qid in chosen],
        pids=_strings(pool.pids.take(pa.array(rows.ravel()))).reshape(rows.shape),
        prior=None if prior is None else pool.prior[rows],
        teacher=None if teacher is None else pool.teacher[rows],
        relevant=_by_query(judged.filter(pc.is_in(judged["qid"], pa.array(sorted(chosen), pa.string())))),
        skipped=skipped,
    )


def join_lists(parts: Sequence[TrainingLists], settings: ListSettings, seed: int) -> TrainingLists:
    """The lists of all parts, equal to those that ``sample_lists`` draws from all their queries at once.

    A part holds the lists drawn, with the same settings and seed, from some of the queries; the cap ``queries`` is
    applied to the whole. Raises ``BadInput`` when there is no list, or when a query is in two parts.
    """
    filled = [part for part in parts if len(part)]
    if not filled:
        raise no_lists(settings)
    relevant = {qid: pids for part in filled for qid, pids in part.relevant.items()}
    if len(relevant) != sum(len(part.relevant) for part in filled):
        raise BadInput("training lists to be joined must come from different queries; some qid is in two parts")
    qids = [qid for part in filled for qid in part.qids]
    chosen = _choose(qids, settings, seed)
    rows = [row for row in sorted(range(len(qids)), key=qids.__getitem__) if qids[row] in chosen]
    return TrainingLists(
        qids=[qids[row] for row in rows],
        pids=np.concatenate([part.pids for part in filled])[rows],
        prior=_join_scores([part.prior for part in filled], rows),
        teacher=_join_scores([part.teacher for part in filled], rows),
        relevant={qid: pids for qid, pids in relevant.items() if qid in chosen},
        skipped=sum(part.skipped for part in parts),
    )


def no_lists(settings: ListSettings) -> BadInput:
    """The error of a training run that has no list to train on."""
    return BadInput(
        f"no training list: none of the candidates' queries has a judged positive and {settings.negatives} "
        "negatives; lower `negatives`, or check that candidates and qrels hold the same qids"
    )


def positives(qrels: pa.Table) -> dict[str, set[str]]:
    """The relevant pids (grade 1 or higher) of every judged qid; none of one that has no relevant passage."""
    return {key: set() for key in pc.unique(qrels["qid"]).to_pylist()} | _by_query(_judged(qrels))


def with_judged(candidates: pa.Table, qrels: pa.Table, negatives: bool = False) -> pa.Table:
    """Candidates with the judged positives that retrieval missed appended to their queries, ranked last, score 0; with
    ``negatives``, the passages judged not relevant too.

    For training queries only: the teacher has to score a passage for the student to learn from it.
    """
    columns = candidates.select(CANDIDATES.names).cast(CANDIDATES)
    judged = _distinct(qrels) if negatives else _judged(qrels)
    judged = judged.filter(pc.is_in(judged["qid"], pc.unique(columns["qid"])))
    missed = judged.join(columns.select(PAIR), PAIR, join_type="left anti")
    last = columns.group_by("qid").aggregate([("rank", "max")])
    rank = dict(zip(last["qid"].to_pylist(), last["rank_max"].to_pylist(), strict=True))
    added = []
    for row in missed.sort_by([(name, "ascending") for name in PAIR]).to_pylist():
        rank[row["qid"]] += 1
        added.append({**row, "rank": rank[row["qid"]], "score": 0.0})
    return pa.concat_tables([columns, pa.Table.from_pylist(added, schema=CANDIDATES)])


@dataclass(frozen=True)
class _Pool:
    """The candidates of the judged queries, a query's together by rank (then pid); only what is drawn becomes Python.

    qids: q strings; offsets: (q + 1,) int64, where each query's rows begin; pids: rows strings in Arrow; positive:
    (rows,) bool; rejected: (rows,) bool, judged and not relevant; prior, teacher: (rows,) float32, NaN where there are no
    scores.
    """

    qids: list[str]
    offsets: np.ndarray
    pids: pa.ChunkedArray
    positive: np.ndarray
    rejected: np.ndarray
    prior: np.ndarray
    teacher: np.ndarray


def _pool(table: pa.Table, qrels: pa.Table, prior: pa.Table | None, teacher: pa.Table | None) -> _Pool:
    judged = _judged(qrels)
    table = table.filter(pc.is_in(table["qid"], pc.unique(judged["qid"]))).select([*PAIR, "rank"])
    table = _attach(_attach(table, prior, "prior"), teacher, "teacher")
    graded = qrels.group_by(PAIR, use_threads=False).aggregate([("grade", "max")])
    table = table.join(graded, PAIR, join_type="left outer")
    qids = pc.unique(table["qid"]).sort()
    # Sorting numbers first, and strings only where ranks tie, takes a fraction of the time and memory.
    table = table.append_column("query", pc.index_in(table["qid"], value_set=qids)).drop_columns("qid")
    table = table.sort_by([(name, "ascending") for name in ("query", "rank", "pid")])
    return _Pool(
        qids=qids.to_pylist(),
        offsets=np.searchsorted(table["query"].to_numpy(), np.arange(len(qids) + 1)),
        pids=table["pid"],
        positive=pc.fill_null(pc.greater_equal(table["grade_max"], RELEVANT), False).to_numpy(),
        rejected=pc.fill_null(pc.less(table["grade_max"], RELEVANT), False).to_numpy(),
        prior=table["prior"].to_numpy(),
        teacher=table["teacher"].to_numpy(),
    )


def _draw(pool: _Pool, query: int, settings: ListSettings, rng: np.random.Generator) -> np.ndarray | None:
    """Rows of the positive and its negatives, (1 + negatives,) int64, or ``None`` when there are too few."""
    first, end = pool.offsets[query], pool.offsets[query + 1]
    positive, prior, teacher = pool.positive[first:end], pool.prior[first:end], pool.teacher[first:end]
    if not positive.any():
        return None
    chosen = rng.choice(np.flatnonzero(positive))
    judged = _judged_negatives(pool.rejected[first:end], settings, rng)
    negatives = np.flatnonzero(~positive)
    negatives = negatives[~np.isin(negatives, judged)]
    if settings.false_negative_margin is not None:
        negatives = negatives[prior[negatives] <= prior[chosen] + settings.false_negative_margin]
    if settings.teacher_margin is not None:
        negatives = negatives[teacher[negatives] <= teacher[chosen] + settings.teacher_margin * teacher.std()]
    if settings.order == "prior":
        negatives = _best_first(negatives, prior, pool.pids.slice(first, end - first))
    negatives = negatives[: settings.depth]
    wanted = settings.negatives - len(judged)
    if len(negatives) < wanted:
        return None
    if settings.draw == "hardest":
        drawn = negatives[:wanted]
    else:
        edges = np.linspace(0, len(negatives), wanted + 1).astype(int)
        drawn = negatives[rng.integers(edges[:-1], edges[1:])]
    return first + np.concatenate([[chosen], judged, drawn])


def _best_first(rows: np.ndarray, scores: np.ndarray, pids: pa.ChunkedArray) -> np.ndarray:
    """Some rows of a query by falling score, and then by pid, which only ties are asked for."""
    ordered = rows[np.argsort(-scores[rows], kind="stable")]
    if np.all(np.diff(scores[ordered]) < 0):
        return ordered
    _, place = np.unique(np.array(pids.to_pylist(), dtype=str), return_inverse=True)
    return rows[np.lexsort((place[rows], -scores[rows]))]


def _judged_negatives(rejected: np.ndarray, settings: ListSettings, rng: np.random.Generator) -> np.ndarray:
    """Some of the rows judged not relevant, as many as the settings ask for; no margin leaves one out, for it was judged."""
    rows = np.flatnonzero(rejected)
    count = min(settings.judged_negatives, len(rows))
    return rng.choice(rows, count, replace=False) if count else rows[:0]


def _attach(table: pa.Table, scores: pa.Table | None, name: str) -> pa.Table:
    """Add a column of scores; rows that a given table does not score are dropped."""
    if scores is None:
        return table.append_column(name, pa.array(np.full(len(table), np.nan, np.float32)))
    scores = scores.select([*PAIR, "score"]).rename_columns([*PAIR, name])
    return table.join(scores, PAIR, join_type="inner")


def _judged(qrels: pa.Table) -> pa.Table:
    """The distinct (qid, pid) of the positives."""
    return _distinct(qrels.filter(pc.greater_equal(qrels["grade"], RELEVANT)))


def _distinct(qrels: pa.Table) -> pa.Table:
    return qrels.select(PAIR).group_by(PAIR, use_threads=False).aggregate([])


def _by_query(judged: pa.Table) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for qid, pid in zip(judged["qid"].to_pylist(), judged["pid"].to_pylist(), strict=True):
        found.setdefault(qid, set()).add(pid)
    return found


def _choose(qids: Iterable[str], settings: ListSettings, seed: int) -> set[str]:
    """The distinct qids, the first ``settings.queries`` of them by a hash of seed and qid."""
    names = set(qids)
    if settings.queries is None or len(names) <= settings.queries:
        return names
    return set(sorted(names, key=lambda qid: (stable_number(f"{seed}/{qid}"), qid))[: settings.queries])


def _join_scores(parts: list[np.ndarray | None], rows: list[int]) -> np.ndarray | None:
    given = [part for part in parts if part is not None]
    if len(given) not in (0, len(parts)):
        raise BadInput("training lists to be joined must all have scores, or none of them")
    return np.concatenate(given)[rows] if given else None


def _strings(ids: pa.ChunkedArray) -> np.ndarray:
    """An object array of strings in which equal ones are one object."""
    coded = ids.combine_chunks().dictionary_encode()
    return np.array(coded.dictionary.to_pylist(), dtype=object)[coded.indices.to_numpy()]


def _times(weight: float, seed: int, qid: str) -> int:
    """``weight`` as a whole number: rounded up for the share of qids that its fraction is, by a hash, else down."""
    whole = int(weight)
    return whole + (stable_number(f"weight/{seed}/{qid}") < (weight - whole) * 2**64)


def _generator(seed: int, qid: str, copy: int) -> np.random.Generator:
    return np.random.default_rng([seed, stable_number(qid), copy])
