"""Errors that a user can act on; the command line prints their message as one line and exits non-zero."""

from __future__ import annotations

from typing import Any


class NeuroRankerError(Exception):
    """Base of every expected failure. The message names the file, line or field, and what to do."""


class BadInput(NeuroRankerError):
    """A file, row or value handed to us cannot be used as it is."""


class NotReady(NeuroRankerError):
    """Something that must exist first (an artifact, a model, a tool) is missing or failed its checks."""


def require(condition: bool, field: str, expected: str, value: Any) -> None:
    """Raise ``ValueError("<field> must be <expected>, got <value>")`` unless ``condition`` holds.

    For ``__post_init__`` of settings: the configuration loader adds the file and the key path.
    """
    if not condition:
        raise ValueError(f"{field} must be {expected}, got {value!r}")
