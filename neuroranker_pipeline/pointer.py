"""Where the current version of an artifact is: its folder holds versions, and a pointer to the one that counts."""

from __future__ import annotations

from pathlib import Path

CURRENT = "CURRENT"


def resolve_artifact(path: Path) -> Path:
    """``path`` itself, or the current version's folder when ``path`` is an artifact's folder in a local lake."""
    pointer = path / CURRENT
    return path / "versions" / pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else path
