"""Checks on the exported models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neuroranker_pipeline.checks.rule import Verdict, rule

if TYPE_CHECKING:  # it imports SciPy, and this module is imported with the code location
    from neuroranker_pipeline.ranking.dev import DevTest

PARITY_TOLERANCE = 1e-4


@rule
def onnx_agrees_with_pytorch(difference: float, texts: int) -> Verdict:
    """On a ragged batch, no component of an embedding differs from PyTorch's by more than 1e-4."""
    return Verdict(difference <= PARITY_TOLERANCE, {"largest_difference": difference, "texts": texts})


@rule
def int8_loses_little(test: DevTest, alpha: float) -> Verdict:
    """MRR@10 on the dev split is not shown to fall below the float32 model's by more than the set bound."""
    return Verdict(not test.is_worse(alpha), test.evidence("int8", "float32"))


@rule
def ranking_is_stable(largest_change: float, bound: float) -> Verdict:
    """A text's embedding does not depend on the texts that share its batch, nor on their order."""
    return Verdict(largest_change <= bound, {"largest_change": largest_change, "bound": bound})
