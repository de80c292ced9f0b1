"""Small Markdown pieces that make a materialization readable in the UI."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

BAR_WIDTH = 24


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; cell text cannot break out of its cell."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def table_preview(table: pa.Table, rows: int = 5, width: int = 160) -> str:
    """The first rows of a table, long texts cut to ``width`` characters."""
    shown = table.slice(0, rows).to_pylist()
    return markdown_table(table.column_names, ([_cut(v, width) for v in row.values()] for row in shown))


def bars(values: dict[str, float]) -> str:
    """Named values with a bar each: a plot that Markdown can hold."""
    top = max((abs(value) for value in values.values()), default=0.0) or 1.0
    return markdown_table(
        ["", "value", ""],
        ([name, f"{value:.4f}", "█" * round(BAR_WIDTH * abs(value) / top)] for name, value in values.items()),
    )


def curve(points: Sequence[tuple[int, float]], name: str, shown: int = 12) -> str:
    """A training curve as a table of bars, at most ``shown`` of its steps."""
    stride = max(1, len(points) // shown)
    picked = [*points[:-1:stride], points[-1]] if points else []
    return f"**{name}**\n\n" + bars({f"step {step}": value for step, value in picked})


def _cell(value: Any) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split()) or " "


def _cut(value: Any, width: int) -> Any:
    return f"{value[:width]}…" if isinstance(value, str) and len(value) > width else value
