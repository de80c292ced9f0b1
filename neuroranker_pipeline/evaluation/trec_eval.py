"""The default measures a second time, by trec_eval itself and from the run files: a check on our own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytrec_eval

from neuroranker_pipeline.datasets.trec import read_run
from neuroranker_pipeline.evaluation.measures import judgments
from neuroranker_pipeline.ranking.scoring import top_by

# trec_eval knows no cut-off for the reciprocal rank: MRR@10 is its recip_rank over the top tens.
NAMES = {"nDCG@10": "ndcg_cut_10", "R@10": "recall_10", "R@50": "recall_50", "R@100": "recall_100", "MAP": "map"}


def trec_eval_means(runs: Mapping[str, Path], qrels: pa.Table, relevance_level: int = 1) -> dict[str, float]:
    """``{"<ranker>/<measure>": mean}`` over the judged queries, from each ranker's TREC run file as it stands.

    ``relevance_level`` is the lowest grade that counts as relevant for the binary measures.
    """
    judged = judgments(qrels)
    evaluator = pytrec_eval.RelevanceEvaluator(judged, {*NAMES.values(), "recip_rank"}, relevance_level)
    means = {}
    for ranker, file in runs.items():
        run = read_run(file)
        whole, tens = evaluator.evaluate(_nested(run)), evaluator.evaluate(_nested(top_by(run, 10)))
        means[f"{ranker}/MRR@10"] = _mean(tens, "recip_rank", len(judged))
        means |= {f"{ranker}/{name}": _mean(whole, measure, len(judged)) for name, measure in NAMES.items()}
    return means


def _nested(run: pa.Table) -> dict[str, dict[str, float]]:
    nested: dict[str, dict[str, float]] = {}
    for qid, pid, score in zip(*(run[name].to_pylist() for name in ("qid", "pid", "score")), strict=True):
        nested.setdefault(qid, {})[pid] = score  # no ties in a run that ``write_run`` wrote
    return nested


def _mean(results: Mapping[str, Mapping[str, float]], measure: str, queries: int) -> float:
    return float(np.sum([values[measure] for values in results.values()])) / queries
