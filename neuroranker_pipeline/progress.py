"""How long work tells its caller how far it has come."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with a short label, the units done and the units in all (0 when unknown)."""

    def __call__(self, label: str, done: int, total: int) -> None: ...


def silent(label: str, done: int, total: int) -> None:
    """Report nothing."""
