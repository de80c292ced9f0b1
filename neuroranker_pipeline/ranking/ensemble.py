"""Several rankers as one: their scores, brought to one scale within each query, in a weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.ranking.scoring import centred_by_query, scores_of, scores_table

WEIGHTS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
LEAST_GAIN = 1e-4  # a change of weight that gains less is noise: the weights stay as they are


def standardize(scores: pa.Table) -> pa.Table:
    """Every query's scores with mean 0 and standard deviation 1, rows in their order; 0 where all are equal.

    The z-score normalization of score fusion (Montague and Aslam 2001, "Relevance score normalization for metasearch"):
    cosines, logits and BM25 scores have scales of their own, and those differ from query to query.
    """
    query, centred, spreads = centred_by_query(scores)
    spread, values = spreads[query], scores["score"].to_numpy()
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
    return weighted_sum(*_aligned(members), weights)


def weighted_sum(rows: pa.Table, columns: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> pa.Table:
    """A scores table of ``rows``: the sum of the columns, each (n,), times their weights, 0 where none is given."""
    total = sum((weights.get(name, 0.0) * column for name, column in columns.items()), np.zeros(len(rows)))
    return scores_table(rows, total.astype(np.float32))


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
        return measure(weighted_sum(first, columns, weights))

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
    first = next(iter(members.values()))
    return first, {
        name: scores_of(first, standardize(scores), f"ensemble: member {name!r}") for name, scores in members.items()
    }
