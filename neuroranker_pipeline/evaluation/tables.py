"""The summary table of a report for the terminal (rich) and for Markdown, and how its numbers are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from neuroranker_pipeline.evaluation import plots
from neuroranker_pipeline.evaluation.significance import at_floor
from neuroranker_pipeline.markdown import markdown

if TYPE_CHECKING:
    from rich.table import Table

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
TERMINAL_MEASURES = (
    "MRR@10",
    "nDCG@10",
    "R@100",
)  # with two changes and their p values, more would not fit 100 columns

# How queries were parted, said where the parts are shown; the rules are in groups.py.
BREAKDOWNS = {
    "type": "identifier: holds a name as code writes it; question: begins with a question word or auxiliary verb, or ends "
    "with a question mark; keywords: no function word; phrase: the rest.",
    "length": "The thirds of the queries by their number of words, equal numbers kept together.",
}


def change(report: Mapping[str, Any], ranker: str, against: str) -> dict[str, Any] | None:
    """The comparison of ``ranker`` with ``against`` in a report, if it was made."""
    pairs = (c for c in report["comparisons"] if (c["ranker"], c["against"]) == (ranker, against))
    return next(pairs, None)


def baselines(report: Mapping[str, Any]) -> list[str]:
    """The first two rankers that later ones are compared with, in display order: the columns of change."""
    compared = {c["against"] for c in report["comparisons"]}
    return [b for b in report["baselines"] if b in compared][:2]


def number(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    return DASH if value is None else f"{value:+.3f}".replace("-", MINUS)


def judged(row: Mapping[str, Any]) -> str:
    """The share of a ranker's top tens that was judged: ``38%``."""
    return f"{100 * (1 - row['unjudged_at_10']):.0f}%"


def short(value: float | None) -> str:
    """A number of any size with three digits that count: ``0.412``, ``21.7``, ``1,240``; what rounding left is 0."""
    if value is None:
        return DASH
    if abs(value) < 1e-6:
        return "0"
    return f"{value:,.0f}".replace("-", MINUS) if abs(value) >= 100 else f"{value:.3g}".replace("-", MINUS)


def p_value(p: float, raw: float | None = None) -> str:
    """``p <0.001`` or ``p 0.012``; as ``p_number`` where p is at its floor and no smaller."""
    if p < 0.001:
        return "p <0.001"
    return f"p <{p:.2g}" if at_floor(p if raw is None else raw) else f"p {p:.3f}"


def p_number(p: float, raw: float | None = None) -> str:
    """``0.0123``, ``<0.0001``, or ``<0.00001`` where no random sign pattern was as extreme, so that p is below it.

    ``raw``: what an adjusted p was before, which says whether it is at its own floor: ``<0.00007`` of seven tests.
    """
    if at_floor(p if raw is None else raw):
        return f"<{p:.7f}".rstrip("0")
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def change_text(comparison: Mapping[str, Any] | None) -> str:
    """``+0.063 (p 0.012)`` with the Holm-adjusted p, or a dash."""
    if comparison is None:
        return DASH
    return f"{signed(comparison['difference'])} ({p_value(comparison['p_holm'], comparison['p'])})"


def render_table(report: Mapping[str, Any]) -> Table:
    """The table that ends ``neuroranker run``, from the contents of report.json; at most 100 columns wide."""
    from rich.table import Table
    from rich.text import Text

    columns = baselines(report)
    measures = [m for m in TERMINAL_MEASURES if m in report["measures"]] or report["measures"][:3]
    caption = f"Change in {report['primary']} with Holm-adjusted p of a paired randomization test"
    if report["ceiling"]:
        best = number(report["ceiling"][report["primary"]])
        caption += f"; a perfect re-ranker of the BM25 candidates: {report['primary']} {best}"
    title = f"{report['profile']}: {report['queries']:,} {report['split']} queries"
    table = Table(title=Text(title), caption=Text(caption))
    table.add_column("ranker", max_width=20, no_wrap=True, overflow="ellipsis")
    for measure in measures:
        table.add_column(measure, justify="right", max_width=9, no_wrap=True)
    for baseline in columns:
        table.add_column(f"vs {baseline}", justify="right", max_width=18, no_wrap=True, overflow="ellipsis")
    for row in report["rankers"]:
        cells = [Text(row["ranker"])] + [Text(number(row["measures"][m])) for m in measures]
        for baseline in columns:
            comparison = change(report, row["ranker"], baseline)
            cells.append(Text(change_text(comparison), style=_style(comparison)))
        table.add_row(*cells, style="bold" if row["ranker"] == report["final"] else "")
    return table


def table_text(report: Mapping[str, Any], width: int = 100) -> str:
    """``render_table`` as plain text without colour."""
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(render_table(report))
    return console.file.getvalue()  # type: ignore[attr-defined]


def markdown_table(report: Mapping[str, Any]) -> str:
    """The summary table as Markdown, with a bar a ranker: safe where images are blocked (Dagster's
    metadata).
    """
    measures, columns, primary = report["measures"], baselines(report), report["primary"]
    header = ["ranker", *measures, "95% interval", *(f"vs {b}" for b in columns), "judged@10", ""]
    rows = [header, ["---", *["---:"] * (len(header) - 2), "---"]]
    top = max((row["measures"][primary] for row in report["rankers"]), default=0.0)
    for row in report["rankers"]:
        low, high = row["intervals"][primary]
        name = markdown(row["ranker"])
        rows.append(
            [
                f"**{name}**" if row["ranker"] == report["final"] else name,
                *(number(row["measures"][m]) for m in measures),
                f"{number(low)} to {number(high)}",
                *(change_text(change(report, row["ranker"], b)) for b in columns),
                judged(row),
                plots.bar(row["measures"][primary], top),
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in [[markdown(c) for c in rows[0]], *rows[1:]])


def _style(comparison: Mapping[str, Any] | None) -> str:
    if comparison is None or comparison["p_holm"] >= 0.05:
        return ""
    return "green" if comparison["difference"] > 0 else "red"
