"""How a ranker's scores are distributed: whether it parts relevant passages from the others, and whether it drifts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BINS = 30
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class ScoreDistribution:
    """The scores of one ranker over all judged queries.

    ``quantiles``: by name, ``{"q05": ..., "q50": ...}``. ``tied``: the share of rows whose score another row of the same
    query has too. ``relevant`` and ``others``: how many of each fall into equally wide bins from ``low`` to ``high``; an
    unjudged passage counts among the others. ``separation``: the chance that a relevant passage scores above another of
    the same query (half for a tie), a mean over queries that have both; None when no query does. It is the area under
    the ROC curve of each query.
    """

    ranker: str
    rows: int
    mean: float
    deviation: float
    quantiles: Mapping[str, float]
    tied: float
    separation: float | None
    low: float
    high: float
    relevant: tuple[int, ...]
    others: tuple[int, ...]

    def figures(self) -> dict[str, float]:
        """``{"student/score mean": 0.41, ...}``: what to watch for drift."""
        found = {"mean": self.mean, "deviation": self.deviation, **self.quantiles, "tied": self.tied}
        if self.separation is not None:
            found["separation"] = self.separation
        return {f"{self.ranker}/score {name}": value for name, value in found.items()}


def score_distribution(
    ranker: str, scores: pa.Table, judged: Mapping[str, Mapping[str, int]], relevance_level: int = 1, bins: int = BINS
) -> ScoreDistribution | None:
    """The distribution of ``scores`` (qid, pid, score) over the queries of ``judged`` (qid -> pid -> grade); None without
    a row.
    """
    table = scores.filter(pc.is_in(scores["qid"], pa.array(list(judged), pa.string())))
    if table.num_rows == 0:
        return None
    values = table["score"].to_numpy().astype(np.float64)
    qids, pids = table["qid"].to_pylist(), table["pid"].to_pylist()
    relevant = np.array([judged[q].get(p, 0) >= relevance_level for q, p in zip(qids, pids, strict=True)], bool)
    query = table["qid"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    return ScoreDistribution(
        ranker=ranker,
        rows=len(values),
        mean=float(values.mean()),
        deviation=float(values.std()),
        quantiles={
            f"q{round(100 * q):02d}": float(v) for q, v in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)
        },
        tied=_tied_share(query, values),
        separation=_separation(query, values, relevant),
        low=float(edges[0]),
        high=float(edges[-1]),
        relevant=tuple(np.histogram(values[relevant], edges)[0].tolist()),
        others=tuple(np.histogram(values[~relevant], edges)[0].tolist()),
    )


def _tied_share(query: np.ndarray, values: np.ndarray) -> float:
    order = np.lexsort((values, query))
    same = (np.diff(query[order]) == 0) & (np.diff(values[order]) == 0)
    return float((np.r_[same, False] | np.r_[False, same]).mean())


def _separation(query: np.ndarray, values: np.ndarray, relevant: np.ndarray) -> float | None:
    """The area under each query's ROC curve, by ranks (Mann and Whitney 1947), as a mean."""
    from scipy.stats import rankdata

    order = np.argsort(query, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(query[order]) != 0, True]) + 1
    areas = []
    for part in np.split(order, ends[:-1]):
        wanted = relevant[part]
        positives, negatives = int(wanted.sum()), int((~wanted).sum())
        if positives and negatives:
            above = rankdata(values[part])[wanted].sum() - positives * (positives + 1) / 2
            areas.append(above / (positives * negatives))
    return float(np.mean(areas)) if areas else None
