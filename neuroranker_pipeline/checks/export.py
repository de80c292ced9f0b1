"""Checks on the exported models."""

from __future__ import annotations

from neuroranker_pipeline.checks.rule import Verdict, rule

PARITY_TOLERANCE = 1e-4


@rule
def onnx_agrees_with_pytorch(difference: float, texts: int) -> Verdict:
    """On a ragged batch, no component of an embedding differs from PyTorch's by more than 1e-4."""
    return Verdict(difference <= PARITY_TOLERANCE, {"largest_difference": difference, "texts": texts})


@rule
def int8_loses_little(int8: float, float32: float, bound: float) -> Verdict:
    """MRR@10 on the dev split falls below the float32 model's by no more than the set bound."""
    return Verdict(float32 - int8 <= bound, {"int8": int8, "float32": float32, "bound": bound})


@rule
def ranking_is_stable(largest_change: float, bound: float) -> Verdict:
    """A text's embedding does not depend on the texts that share its batch, nor on their order."""
    return Verdict(largest_change <= bound, {"largest_change": largest_change, "bound": bound})
