"""Whether a model is worse than another ranker on the dev queries, by a paired test: what stops a graph early."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from neuroranker_pipeline.evaluation.significance import paired_randomization
from neuroranker_pipeline.ranking.scoring import reciprocal_ranks


@dataclass(frozen=True)
class DevTest:
    """MRR@10 of a model and of ``other`` over the same dev queries; ``p``: of the paired randomization test that the mean
    difference is ``bound``."""

    model: float
    other: float
    bound: float
    p: float
    queries: int

    def is_worse(self, alpha: float) -> bool:
        """Whether the difference is significantly below the bound. Without a query nothing is."""
        return self.model - self.other < self.bound and self.p < alpha

    def evidence(self, model: str, other: str) -> dict[str, float]:
        """The figures of a check, which names the two rankers."""
        return {model: self.model, other: self.other, "bound": self.bound, "p": self.p, "queries": self.queries}


def compare_on_dev(
    model: pa.Table, other: pa.Table, relevant: Mapping[str, set[str]], bound: float = 0.0, seed: int = 0
) -> DevTest:
    """Two runs (qid, pid, score) over the queries of ``relevant``, their positives by qid; 0 for a query that a run lacks.

    The test is the release gate's (``evaluation.significance``), turned the other way: a release has to show that it is
    good, while work goes on unless it is shown to be bad.
    """
    ours, theirs = reciprocal_ranks(model, relevant), reciprocal_ranks(other, relevant)
    p = paired_randomization(ours, theirs + bound, seed)
    means = [float(values.mean()) if len(values) else 0.0 for values in (ours, theirs)]
    return DevTest(means[0], means[1], bound, p, len(relevant))
