"""Checks on what was trained, scored and embedded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from neuroranker_pipeline.checks.rule import Verdict, rule

UNIT_NORM_TOLERANCE = 1e-3


@rule
def loss_is_finite(losses: Sequence[float]) -> Verdict:
    """Training took at least one step and its loss never left the finite numbers."""
    finite = len(losses) > 0 and bool(np.all(np.isfinite(losses)))
    return Verdict(finite, {"steps": len(losses), "last_loss": losses[-1] if losses else float("nan")})


@rule
def beats_bm25(mrr: float, bm25: float, margin: float = 0.0) -> Verdict:
    """MRR@10 on the dev split is above BM25's by more than the set margin."""
    return Verdict(mrr - bm25 > margin, {"mrr_at_10": mrr, "bm25": bm25, "margin": margin})


@rule
def not_worse_than_base(mrr: float, base: float, margin: float = 0.0) -> Verdict:
    """MRR@10 on the dev split is above the untouched base student's by at least the set margin."""
    return Verdict(mrr - base >= margin, {"mrr_at_10": mrr, "base_student": base, "margin": margin})


@rule
def scores_are_complete(scores: pa.Table, expected: pa.Table) -> Verdict:
    """Every pair to be scored has one score, in the same order."""
    same = scores["qid"].equals(expected["qid"]) and scores["pid"].equals(expected["pid"])
    return Verdict(same, {"pairs": scores.num_rows, "expected": expected.num_rows})


@rule
def scores_are_sane(scores: pa.Table) -> Verdict:
    """All scores are finite, and they differ: a collapsed model gives every passage the same one."""
    values = scores["score"].to_numpy()
    spread = float(np.std(values)) if len(values) else 0.0
    return Verdict(bool(np.all(np.isfinite(values))) and spread > 1e-4, {"standard_deviation": spread})


@rule
def embeddings_are_unit_vectors(pids: Sequence[str], expected: Sequence[str], vectors: np.ndarray) -> Verdict:
    """Every passage of the shard has one finite vector of length one."""
    lengths = np.linalg.norm(vectors, axis=1)
    off = float(np.max(np.abs(lengths - 1.0), initial=0.0))
    complete = list(pids) == list(expected)
    return Verdict(complete and off < UNIT_NORM_TOLERANCE, {"passages": len(pids), "largest_deviation": off})
