"""What `neuroranker report --compare` shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from neuroranker_pipeline.console import console
from neuroranker_pipeline.errors import BadInput, NeuroRankerError

if TYPE_CHECKING:
    from neuroranker_pipeline.evaluation.compare import RunComparison
    from neuroranker_pipeline.resources.workspace import Workspace

FORMATS = (".html", ".md")


def compare_runs(
    workspace: Workspace,
    names: tuple[str, str],
    split: str | None = None,
    measure: str | None = None,
    ranker: str | None = None,
    output: Path | None = None,
) -> None:
    """Compare two evaluations: tables here and, if asked for, the whole as a page or as Markdown in ``output``."""
    from neuroranker_pipeline.evaluation.compare import compare, render_comparison
    from neuroranker_pipeline.resources.evaluations import find_evaluation

    if output is not None and (output.suffix not in FORMATS or not output.absolute().parent.is_dir()):
        raise BadInput(f"--output {output}: expected a file that ends in .html or .md, in an existing folder")
    before, after = (find_evaluation(workspace.metrics, name, split) for name in names)
    comparison = compare(before, after, measure, ranker, workspace.settings.seed)
    texts = _texts(workspace, [str(row["qid"]) for row in comparison.moved])
    _show(comparison, texts)
    if output is not None:
        output.write_text(render_comparison(comparison, texts, html=output.suffix == ".html"), encoding="utf-8")
        console.print(f"\nThe whole comparison: {output}", soft_wrap=True, markup=False)


def _texts(workspace: Workspace, qids: list[str]) -> dict[str, str]:
    """The queries as the lake holds them now; without them, ids are shown."""
    from neuroranker_pipeline.datasets.tables import read_texts

    try:
        return read_texts(workspace.lake.read("queries"), "qid", qids)
    except (NeuroRankerError, OSError):
        return {}


def _show(comparison: RunComparison, texts: dict[str, str]) -> None:
    from neuroranker_pipeline.evaluation.findings import verdict
    from neuroranker_pipeline.evaluation.report import snippet
    from neuroranker_pipeline.evaluation.tables import number, p_value, signed

    before, after = comparison.before, comparison.after
    title = f"{before.name} to {after.name}: {comparison.measure} of {comparison.queries:,} {before.split} queries"
    table = Table("ranker", title=escape(title))
    for column in ("before", "after", "change", "95% interval", "Holm p", "won/lost/tied"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in comparison.changes:
        style = {"better": "green", "worse": "red"}.get(verdict(row), "")
        interval, counts = f"{signed(row.low)} to {signed(row.high)}", f"{row.wins}/{row.losses}/{row.ties}"
        cells = [
            number(row.before),
            number(row.after),
            signed(row.difference),
            interval,
            p_value(row.p_holm, row.p),
            counts,
        ]
        table.add_row(escape(row.ranker), *cells, style=style)
    console.print(table)
    for remark in comparison.remarks:
        console.print(remark, markup=False)
    for title, rows in (("Settings", comparison.settings), ("Versions", comparison.versions)):
        console.print(f"\n{title} that differ:" if rows else f"\n{title}: the same.")
        for name, old, new in rows:
            console.print(f"  {name}: {old} → {new}", markup=False, soft_wrap=True)
    if comparison.moved:
        console.print(f"\nQueries that moved most with {comparison.moved_ranker}:", markup=False)
    for moved in comparison.moved:
        text = snippet(texts.get(moved["qid"], moved["qid"]), 70)
        console.print(
            f"  {signed(moved['difference'])}  {number(moved['before'])} → {number(moved['after'])}  {text}",
            markup=False,
            soft_wrap=True,
        )
