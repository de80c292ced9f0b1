"""Checks on what was trained, scored and embedded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from neuroranker_pipeline.checks.rule import Verdict, rule

if TYPE_CHECKING:  # it imports SciPy, and this module is imported with the code location
    from neuroranker_pipeline.ranking.dev import DevTest

UNIT_NORM_TOLERANCE = 1e-3


@rule
def loss_is_finite(losses: Sequence[float], trained: bool = True) -> Verdict:
    """Training took at least one step, where there was something to train, and its loss never left the finite numbers."""
    finite = len(losses) > 0 and bool(np.all(np.isfinite(losses))) if trained else not losses
    return Verdict(finite, {"steps": len(losses), "last_loss": losses[-1] if losses else float("nan")})


@rule
def not_worse_than_bm25(test: DevTest, alpha: float) -> Verdict:
    """MRR@10 on the dev split is not significantly below BM25's plus the set gain. Whether it is above is for the release
    gate to show; without a dev query nothing is held against it here."""
    return Verdict(not test.is_worse(alpha), test.evidence("mrr_at_10", "bm25"))


@rule
def not_worse_than_base(test: DevTest, alpha: float) -> Verdict:
    """MRR@10 on the dev split is not significantly below the untouched base student's plus the set gain."""
    return Verdict(not test.is_worse(alpha), test.evidence("mrr_at_10", "base_student"))


@rule
def scores_are_complete(scores: pa.Table, expected: pa.Table) -> Verdict:
    """Every pair to be scored has one score, in the same order."""
    same = scores["qid"].equals(expected["qid"]) and scores["pid"].equals(expected["pid"])
    return Verdict(same, {"pairs": scores.num_rows, "expected": expected.num_rows})


@rule
def scores_are_sane(scores: pa.Table) -> Verdict:
    """All scores are finite, and they differ: a collapsed model gives every passage the same one. A shard may be empty."""
    values = scores["score"].to_numpy()
    spread = float(np.std(values)) if len(values) else 0.0
    sane = bool(np.all(np.isfinite(values))) and (spread > 1e-4 or not len(values))
    return Verdict(sane, {"standard_deviation": spread, "scores": len(values)})


@rule
def embeddings_are_unit_vectors(pids: Sequence[str], expected: Sequence[str], vectors: np.ndarray) -> Verdict:
    """Every passage of the shard has one finite vector of length one."""
    lengths = np.linalg.norm(vectors, axis=1)
    off = float(np.max(np.abs(lengths - 1.0), initial=0.0))
    complete = list(pids) == list(expected)
    return Verdict(complete and off < UNIT_NORM_TOLERANCE, {"passages": len(pids), "largest_deviation": off})
