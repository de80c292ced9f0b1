"""Scores tables: from a cross-encoder, from two stages in a cascade, and their mean reciprocal rank."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from neuroranker_pipeline.datasets.tables import SCORES, rechunked
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.progress import Progress, silent
from neuroranker_pipeline.ranking.device import Compute
from neuroranker_pipeline.ranking.distributed import World
from neuroranker_pipeline.ranking.models import CrossEncoder
from neuroranker_pipeline.ranking.parts import ROWS_PER_PART, RowsOfTexts, infer_in_parts


def score_candidates(
    model: CrossEncoder,
    candidates: pa.Table,
    queries: Mapping[str, str],
    passages: Mapping[str, str],
    compute: Compute,
    progress: Progress = silent,
    work: Path | None = None,
    world: World = World(),
) -> pa.Table:
    """Score every (qid, pid) row of ``candidates`` with a cross-encoder; a scores table in the rows' order.

    work: keeps finished parts, so that the same call after ``kill -9`` goes on where it stopped and returns the same;
    world: the processes that share the work. See ``infer_in_parts``. Raises ``BadInput`` for a qid or pid without text.
    """

    def pairs(part: pa.RecordBatch) -> tuple[list[str], list[str]]:
        return texts(part["qid"].to_pylist(), queries, "qid"), texts(part["pid"].to_pylist(), passages, "pid")

    def kept(_: pa.RecordBatch, scores: np.ndarray) -> pa.Table:
        return pa.table({"score": pa.array(scores, pa.float32())})

    parts = rechunked(candidates.select(["qid", "pid"]).to_batches(), ROWS_PER_PART)
    rows = RowsOfTexts(parts, len(candidates), pairs, model.tokenize, kept)
    tables = list(infer_in_parts(model, rows, compute, "scoring", progress, work, world))
    return scores_table(candidates, pa.concat_tables(tables)["score"] if tables else np.zeros(0, np.float32))


def scores_table(candidates: pa.Table, scores: np.ndarray | pa.ChunkedArray) -> pa.Table:
    """A scores table of the rows of ``candidates`` and their scores, (n,) float32."""
    column = pa.array(scores, pa.float32()) if isinstance(scores, np.ndarray) else scores
    return pa.table([candidates["qid"], candidates["pid"], column], schema=SCORES)


def texts(ids: list[str], found: Mapping[str, str], field: str) -> list[str]:
    """The text of every id; raises ``BadInput`` naming the first that has none."""
    try:
        return [found[one] for one in ids]
    except KeyError as error:
        raise BadInput(f"{field} {error.args[0]!r} of the candidates has no text") from None


def top_by(scores: pa.Table, n: int) -> pa.Table:
    """The ``n`` best rows of every query by score (ties by pid), best first, with their 1-based ``rank`` int32.

    A candidates table: what the second stage of a cascade re-scores.
    """
    ordered, _, rank = _ranked(scores.select(["qid", "pid", "score"]))
    ordered = ordered.append_column("rank", pa.array(rank + 1, pa.int32()))
    return ordered.select(["qid", "pid", "rank", "score"]).filter(pa.array(rank < n))


def cascade_run(prior_scores: pa.Table, teacher_scores: pa.Table) -> pa.Table:
    """One ranking from two stages: what the teacher scored comes first by its score, the rest in prior order.

    Returns a scores table with the rows of ``prior_scores``. The rest of a query gets whole numbers below its
    lowest teacher score, so that sorting by score gives the cascade's order. Rows that only the teacher scored are
    left out. (Matveeva et al. 2006, multiple nested ranker.)
    """
    ordered, query, rank = _ranked(prior_scores.select(["qid", "pid", "score"]))
    ordered = ordered.append_column("row", pa.array(np.arange(len(rank))))
    teacher = teacher_scores.select(["qid", "pid", "score"]).rename_columns(["qid", "pid", "teacher"])
    joined = ordered.join(teacher, ["qid", "pid"], join_type="left outer").sort_by("row")
    scores = joined["teacher"].to_numpy().astype(np.float32)
    lowest = np.zeros(query.max(initial=-1) + 1, np.float32)
    scored = ~np.isnan(scores)
    lowest[np.unique(query[scored])] = np.inf
    np.minimum.at(lowest, query[scored], scores[scored])
    scores[~scored] = (np.floor(lowest[query]) - 1 - rank)[~scored]
    return scores_table(ordered, scores)


def mean_spread(scores: pa.Table) -> float:
    """The standard deviation of the scores within a query, as a mean over the queries."""
    _, _, spread = centred_by_query(scores)
    return float(spread.mean()) if len(spread) else 0.0


def centred_by_query(scores: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each row's query number, (n,) int64, and distance from its query's mean, (n,) float64; each query's standard
    deviation, (queries,) float64."""
    values, query = scores["score"].to_numpy().astype(np.float64), query_numbers(scores)
    count = np.bincount(query)
    centred = values - (np.bincount(query, values) / count)[query]
    return query, centred, np.sqrt(np.bincount(query, centred**2) / count)


def scores_of(rows: pa.Table, scores: pa.Table, name: str = "scores to be added") -> np.ndarray:
    """The score of every (qid, pid) row of ``rows``, (n,) float64, from a scores table in any order, with others or not.

    Raises ``BadInput`` when the table lacks a row, or holds one twice; ``name`` is what the message calls it.
    """
    wanted = rows.select(["qid", "pid"]).append_column("row", pa.array(np.arange(len(rows))))
    joined = wanted.join(scores.select(["qid", "pid", "score"]), ["qid", "pid"], join_type="left outer").sort_by("row")
    if joined["score"].null_count or len(joined) != len(rows):
        raise BadInput(f"{name} must hold every row of the others exactly once")
    return joined["score"].to_numpy().astype(np.float64)


def add_scores(scores: pa.Table, others: pa.Table, factor: float) -> pa.Table:
    """``scores`` + ``factor`` x ``others``, row by row of ``scores``; raises ``BadInput`` when ``others`` lacks a row."""
    total = scores["score"].to_numpy() + factor * scores_of(scores, others)
    return scores_table(scores, total.astype(np.float32))


def reciprocal_ranks(scores: pa.Table, relevant: Mapping[str, set[str]], depth: int = 10) -> np.ndarray:
    """The reciprocal rank of each query's best positive, (queries of ``relevant``,) float64 in the order of their qids.

    0 where none is within ``depth``: so too for a query without a candidate or without a positive, as in every measure.
    """
    best = dict.fromkeys(sorted(relevant), 0.0)
    for row in top_by(scores, depth).select(["qid", "pid", "rank"]).to_pylist():
        if row["pid"] in relevant.get(row["qid"], ()):
            best[row["qid"]] = max(best[row["qid"]], 1.0 / row["rank"])
    return np.fromiter(best.values(), np.float64, len(best))


def mean_reciprocal_rank(scores: pa.Table, relevant: Mapping[str, set[str]], depth: int = 10) -> float:
    """MRR@depth over the queries of ``relevant``; 0 where there is none."""
    return float(reciprocal_ranks(scores, relevant, depth).mean()) if relevant else 0.0


def query_numbers(scores: pa.Table) -> np.ndarray:
    """The number of each row's query, from 0 in order of appearance, (n,) int64."""
    codes = scores["qid"].combine_chunks().dictionary_encode().indices
    return codes.to_numpy(zero_copy_only=False).astype(np.int64)


def _ranked(scores: pa.Table) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """The table by qid, score (descending) and pid, with each row's query number and 0-based rank, int64."""
    ordered = scores.sort_by([("qid", "ascending"), ("score", "descending"), ("pid", "ascending")])
    query = query_numbers(ordered)
    first = np.searchsorted(query, query, side="left")
    return ordered, query, np.arange(len(query)) - first
