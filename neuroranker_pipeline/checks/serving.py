"""Checks on the built Bento."""

from __future__ import annotations

from collections.abc import Sequence

from neuroranker_pipeline.checks.rule import Verdict, rule


@rule
def bento_answers_correctly(served: Sequence[int], expected: Sequence[int]) -> Verdict:
    """The built Bento, started on this machine, orders passages as the int8 model does offline."""
    return Verdict(list(served) == list(expected), {"served": str(served), "expected": str(expected)})
