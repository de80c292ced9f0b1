"""What an asset check is here: a small pure function beside the computation, whose failure blocks what follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import update_wrapper
from typing import Any, Generic, ParamSpec

from neuroranker_pipeline.resources.manifest import Check

P = ParamSpec("P")


@dataclass(frozen=True)
class Verdict:
    """Whether a rule holds, and the figures that show it. ``blocking``: whether a rule that does not hold stops what
    follows, or is a warning."""

    passed: bool
    evidence: Mapping[str, Any] = field(default_factory=dict)
    blocking: bool = True


class Rule(Generic[P]):
    """A blocking check: the function's name is the check's name, its docstring the sentence people read."""

    def __init__(self, judge: Callable[P, Verdict]):
        update_wrapper(self, judge)
        self.name: str = judge.__name__
        self.description = " ".join((judge.__doc__ or "").split())
        self._judge = judge

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Check:
        verdict = self._judge(*args, **kwargs)
        return Check(self.name, bool(verdict.passed), self.description, verdict.evidence, verdict.blocking)


def rule(judge: Callable[P, Verdict]) -> Rule[P]:
    """Turn ``judge(...) -> Verdict`` into a :class:`Rule`."""
    return Rule(judge)
