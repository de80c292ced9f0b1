"""Checks on the evaluation."""

from __future__ import annotations

from collections.abc import Mapping

from neuroranker_pipeline.checks.rule import Verdict, rule


@rule
def agrees_with_trec_eval(ours: Mapping[str, float], trec_eval: Mapping[str, float]) -> Verdict:
    """The report's measures equal trec_eval's, computed from the run files on disk, to 1e-6."""
    largest = max((abs(ours[name] - trec_eval.get(name, float("inf"))) for name in ours), default=float("inf"))
    return Verdict(ours.keys() == trec_eval.keys() and largest <= 1e-6, {"largest_difference": largest})
