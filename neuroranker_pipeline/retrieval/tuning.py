"""BM25's k1 and b from a grid: a search of training queries for every point."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.datasets.own import without_own
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.progress import Progress, silent
from neuroranker_pipeline.retrieval.bm25 import Searcher
from neuroranker_pipeline.retrieval.settings import BM25Settings, TuneSettings


@dataclass(frozen=True)
class GridPoint:
    """What the measure of the settings is (mean over the queries) with this k1 and b."""

    k1: float
    b: float
    value: float


@dataclass(frozen=True)
class Tuned:
    """The best k1 and b, and every point of the grid, by k1 and b."""

    k1: float
    b: float
    rows: tuple[GridPoint, ...]


def tune_bm25(
    index_dir: Path,
    settings: BM25Settings,
    queries: Mapping[str, str],
    judgments: pa.Table,
    progress: Progress = silent,
    relevance_level: int = 1,
    own: pa.Table | None = None,
) -> Tuned:
    """The best point of ``settings.tune``'s grid, which always holds the settings' own k1 and b.

    ``queries`` (qid -> text) and ``judgments`` (qid, pid, grade) must be of the training side alone: the caller sees to
    it; ``relevance_level`` is the lowest grade that counts; ``own``: the pairs (qid, pid) that are no result. A fixed sample
    of the queries with judgments is searched. Ties go to the smaller k1, then the smaller b. Raises ``BadInput`` when no
    query has a judgment.
    """
    from neuroranker_pipeline.evaluation.measures import mean_measures

    tune = settings.tune or TuneSettings()
    measure = "MRR@10" if tune.measure == "mrr" else f"R@{settings.depth}"
    sample = _sample(queries, judgments, tune.queries)
    judged = judgments.filter(pc.is_in(judgments["qid"], pa.array(sample, pa.string())))
    grid = sorted({(k1, b) for k1 in (*tune.k1, settings.k1) for b in (*tune.b, settings.b)})
    rows = []
    for done, (k1, b) in enumerate(grid):
        progress("tuning BM25", done, len(grid))
        depth = settings.depth + bool(own)
        with closing(Searcher(index_dir, replace(settings, k1=k1, b=b, depth=depth))) as searcher:
            run = searcher.search({qid: queries[qid] for qid in sample})
        run = without_own(run, own, settings.depth) if own else run
        rows.append(GridPoint(k1, b, mean_measures(run, judged, (measure,), relevance_level)[measure]))
    progress("tuning BM25", len(grid), len(grid))
    best = max(rows, key=lambda row: (row.value, -row.k1, -row.b))
    return Tuned(best.k1, best.b, tuple(rows))


def _sample(queries: Mapping[str, str], judgments: pa.Table, size: int) -> list[str]:
    """The judged queries whose ids hash lowest: the same ones whatever the order of the data."""
    judged = set(judgments["qid"].to_pylist()) & set(queries)
    if not judged:
        raise BadInput("no query has a judgment; k1 and b cannot be tuned, leave out tune")
    return sorted(judged, key=lambda qid: (hashlib.blake2b(qid.encode(), digest_size=8).digest(), qid))[:size]
