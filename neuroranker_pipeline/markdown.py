"""Text from outside as Markdown that shows it and does nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def markdown(text: object) -> str:
    """Text as Markdown that shows it literally, on one line."""
    return re.sub(r"([\\`*_\[\]<>|~#&])", r"\\\1", " ".join(str(text).split()))


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table whose cells are shown literally; columns of numbers stand to the right."""
    body = [list(row) for row in rows]
    numbers = [bool(body) and all(isinstance(row[i], int | float) for row in body) for i in range(len(header))]
    lines = [[markdown(cell) or " " for cell in row] for row in [header, *body]]
    lines.insert(1, ["---:" if right else "---" for right in numbers])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
