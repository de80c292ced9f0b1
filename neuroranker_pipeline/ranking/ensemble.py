"""Several rankers as one: their scores, brought to one scale within each query, in a weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.ranking.scoring import query_numbers, scores_table

WEIGHTS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
LEAST_GAIN = 1e-4  # a change of weight that gains less is noise: the weights stay as they are


def standardize(scores: pa.Table) -> pa.Table:
    """Every query's scores with mean 0 and standard deviation 1, rows in their order; 0 where all are equal.

    The z-score normalization of score fusion (Montague and Aslam 2001, "Relevance score normalization for metasearch"):
    cosines, logits and BM25 scores have scales of their own, and those differ from query to query.
    """
    values = scores["score"].to_numpy().astype(np.float64)
    query = query_numbers(scores)
    count = np.maximum(np.bincount(query), 1)
    centred = values - (np.bincount(query, values) / count)[query]
    spread = np.sqrt(np.bincount(query, centred**2) / count)[query]
    alike = spread <= 1e-9 * np.maximum(1.0, np.abs(values))  # what rounding leaves of equal scores is no spread
    return scores_table(scores, np.where(alike, 0.0, centred / np.where(alike, 1.0, spread)).astype(np.float32))


def combine(members: Mapping[str, pa.Table], weights: Mapping[str, float]) -> pa.Table:
    """The sum of the members' standardized scores, each times its weight, over the rows of the first member.

    members: scores tables by name, each with every row of the first exactly once; those without a weight do not count.
    Raises ``BadInput`` when a row is missing, or when a weight names no member.
    """
    unknown = sorted(set(weights) - set(members))
    if unknown:
        raise BadInput(f"ensemble: weight {unknown[0]!r} names no member; the members are {', '.join(members)}")
    first, columns = _aligned(members)
    total = sum((weights.get(name, 0.0) * column for name, column in columns.items()), np.zeros(len(first)))
    return scores_table(first, total.astype(np.float32))


def choose_weights(
    members: Mapping[str, pa.Table], measure: Callable[[pa.Table], float], grid: Sequence[float] = WEIGHTS
) -> dict[str, float]:
    """The members' weights whose sum has the highest ``measure`` of a scores table; they sum to 1.

    Coordinate ascent (Metzler and Croft 2007, "Linear feature-based models for information retrieval") from the best of
    equal weights and each member alone: a member after the other takes the weight of ``grid`` that gains most, until none
    gains more than 0.0001. Deterministic. Choose on dev queries, and report on others: where it chose, it flatters.
    """
    if not members:
        raise BadInput("ensemble: no member to weigh")
    first, columns = _aligned(members)

    def value(weights: Mapping[str, float]) -> float:
        total = sum((weights[name] * column for name, column in columns.items()), np.zeros(len(first)))
        return measure(scores_table(first, total.astype(np.float32)))

    starts = [dict.fromkeys(members, 1.0)] + [{name: float(name == one) for name in members} for one in members]
    best, weights = max(((value(start), start) for start in starts), key=lambda pair: pair[0])
    improved = True
    while improved:
        improved = False
        for name in members:
            for step in grid:
                changed = {**weights, name: step}
                if step == weights[name] or not any(changed.values()):
                    continue
                found = value(changed)
                if found > best + LEAST_GAIN:
                    best, weights, improved = found, changed, True
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _aligned(members: Mapping[str, pa.Table]) -> tuple[pa.Table, dict[str, np.ndarray]]:
    """The first member's rows, and every member's standardized scores in their order, (n,) float64."""
    tables = {name: standardize(scores) for name, scores in members.items()}
    first = next(iter(tables.values()))
    rows = first.select(["qid", "pid"]).append_column("row", pa.array(np.arange(len(first))))
    columns = {}
    for name, scores in tables.items():
        joined = rows.join(scores.select(["qid", "pid", "score"]), ["qid", "pid"], join_type="left outer").sort_by(
            "row"
        )
        if joined["score"].null_count or len(joined) != len(first):
            raise BadInput(f"ensemble: member {name!r} must hold every row of the others exactly once")
        columns[name] = joined["score"].to_numpy().astype(np.float64)
    return first, columns
