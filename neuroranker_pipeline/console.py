"""What the command line shows while it works and when it is done."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from neuroranker_pipeline.errors import BadInput, NotReady

if TYPE_CHECKING:
    from neuroranker_pipeline.orchestration.planner import Outcome
    from neuroranker_pipeline.orchestration.search import Hit
    from neuroranker_pipeline.resources.manifest import Check
    from neuroranker_pipeline.resources.metrics import MetricsStore
    from neuroranker_pipeline.resources.workspace import Workspace

# Wide enough for the table of rankers where there is no terminal to ask.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)

HIT_WIDTH = 100  # characters of a passage in a list of hits
SECONDS_BETWEEN_LINES = 15.0  # of progress, where the output is not a terminal


class _Narrator:
    """Tells how far the running step has come: in place on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.step = ""
        self._last = time.monotonic()
        self._status = console.status("") if console.is_terminal else None

    def __call__(self, label: str, done: int, total: int) -> None:
        count = f"{done:,} of {total:,}" if total else f"{done:,}"
        now = time.monotonic()
        if self._status is not None:
            self._status.update(f"{self.step}: {escape(label)} {count}")
        elif now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            console.print(f"    {self.step}: {escape(label)} {count}")

    def begin(self, step: str) -> None:
        self.step, self._last = step, time.monotonic()
        if self._status is not None:
            self._status.update(step)
            self._status.start()

    def end(self) -> None:
        if self._status is not None:
            self._status.stop()


def run_with_progress(workspace: Workspace, names: Sequence[str], tags: Mapping[str, str] | None = None) -> None:
    """Bring the named assets (all, when none is named) up to date, a line for each; ``tags`` go on the runs."""
    from neuroranker_pipeline.assets.step import listener
    from neuroranker_pipeline.console_release import show_what_serves
    from neuroranker_pipeline.orchestration.instance import open_instance
    from neuroranker_pipeline.orchestration.planner import Outcome, bring_up_to_date, one_at_a_time, selected

    assets = selected(names)
    narrator = _Narrator()
    ran, started = 0, time.perf_counter()
    with one_at_a_time(workspace), open_instance(workspace) as instance:
        token = listener.set(narrator)
        try:
            for event in bring_up_to_date(assets, workspace, instance, tags=tags):
                if isinstance(event, Outcome):
                    narrator.end()
                    console.print(_outcome_line(event))
                    ran += event.ran and event.error is None
                else:
                    narrator.begin(event.name)
        finally:
            narrator.end()
            listener.reset(token)
        if not names:
            show_what_serves(workspace)
    seconds = time.perf_counter() - started
    console.print(f"{ran} steps run, the rest was up to date; {seconds / 60:.1f} minutes.")


def fetch_data(workspace: Workspace) -> None:
    """Bring the published files of the profile's data set into its folder."""
    from neuroranker_pipeline.datasets.download import fetch
    from neuroranker_pipeline.datasets.msmarco import MsMarcoSettings
    from neuroranker_pipeline.datasets.msmarco_files import published_files
    from neuroranker_pipeline.datasets.source import data_folder

    data = workspace.settings.data
    if not isinstance(data, MsMarcoSettings):
        raise BadInput(
            f"profile {workspace.settings.profile}: nothing is fetched for a data set of source {data.source}; "
            "`neuroranker run` says which files it needs"
        )
    folder = data_folder(data, Path(workspace.data_root))
    narrator = _Narrator()
    narrator.begin("fetching")
    try:
        files = fetch(published_files(data.tests, data.runs.values()), folder, narrator)
    finally:
        narrator.end()
    console.print(f"{len(files)} files in {folder}", markup=False)


def _outcome_line(outcome: Outcome) -> str:
    from neuroranker_pipeline.resources.lake import label

    name = escape(label(outcome.asset, outcome.partition)).ljust(32)
    attempts = f"  (attempt {outcome.attempts})" if outcome.attempts > 1 else ""
    if outcome.manifest is None and not outcome.ran:
        return f"[dim]  - {name} {escape(str(outcome.error))}[/dim]"
    if outcome.manifest is None:
        return f"[red]  ✗[/red] {name} {'failed':>16} {outcome.seconds:8.1f} s{attempts}"
    rows = "" if outcome.manifest.rows is None else f"{outcome.manifest.rows:,} rows"
    if not outcome.ran:
        return f"[dim]  = {name} {rows:>16}   up to date[/dim]"
    warned = [check for check in outcome.manifest.checks if not check.passed and not check.blocking]
    return f"[green]  ✓[/green] {name} {rows:>16} {outcome.seconds:8.1f} s{attempts}" + "".join(map(_warning, warned))


def _warning(check: Check) -> str:
    evidence = "; ".join(f"{name} {value}" for name, value in check.metadata.items())
    return f"\n[yellow]  ! {check.name}: {escape(evidence)}[/yellow]"


def show_results(workspace: Workspace, only: str | None = None) -> Path:
    """The table of rankers of every split that is reported on, or of one, and the commands to try next; returns the first
    HTML report's path."""
    from neuroranker_pipeline.evaluation.tables import render_table
    from neuroranker_pipeline.orchestration.partitions import shard_keys

    pages: list[Path] = []
    for split in [only] if only else shard_keys("tests", workspace.settings):
        if pages and not only and workspace.lake.manifest("eval_report", split) is None:
            continue  # a lake of before this split was reported on
        folder = workspace.lake.read("eval_report", split)
        console.print()
        console.print(render_table(json.loads((folder / "report.json").read_text(encoding="utf-8"))))
        pages.append(folder / "report.html")
        console.print(f"\nThe whole report: {pages[-1]}", soft_wrap=True, markup=False)
    if workspace.lake.manifest("ranker_bento") is not None:
        options = "" if workspace.profile == "quickstart" else f" --profile {workspace.profile}"
        name = workspace.settings.bento.name
        console.print(
            "\nTry next:\n"
            f'  neuroranker search{options} "how do I compute a cumulative sum"\n'
            f"  bentoml serve {name}:latest --port 8000\n"
            "  curl -X POST http://localhost:8000/rerank -H 'Content-Type: application/json' \\\n"
            '    -d \'{"query": "what is a neural ranking model", "texts": ["Neural ranking models learn to order '
            'documents given a query.", "Inverse propensity scoring reweights clicks."]}\'\n'
            f'  neuroranker metrics{options} "SELECT asset, wall_seconds FROM materializations"\n'
            f"  neuroranker dev{options}      # the Dagster UI",
            soft_wrap=True,
            markup=False,
        )
    return pages[0]


def show_hits(question: str, hits: Sequence[Hit]) -> None:
    """Search results: the final rank, BM25's beside it, the passage's id, and how the passage begins."""
    if not hits:
        console.print(f"Nothing in the collection shares a word with: {question}", markup=False)
        return
    console.print("rank  BM25  score  pid")
    for hit in hits:
        console.print(
            f"{hit.rank:4}  {hit.bm25_rank:4}  {hit.score:5.3f}  [bold]{escape(hit.pid)}[/bold]", soft_wrap=True
        )
        text = " ".join(hit.text.removeprefix(f"{hit.pid}:").split())
        console.print(f"{'':19}[dim]{escape(text[:HIT_WIDTH])}[/dim]", soft_wrap=True)
    if any(hit.final_score != hit.score for hit in hits):
        console.print("score: the cosine. The order adds BM25's score, by the weight that was chosen for the model.")


LAST_RUNS = """
SELECT asset, partition, started_at, round(wall_seconds, 1) AS seconds, rows, device, checks_passed
FROM latest ORDER BY started_at
"""


def show_metrics(store: MetricsStore, sql: str | None) -> None:
    """The answer to a query over the run metrics, as a table (tab-separated where the output is not a terminal)."""
    columns, rows = store.query(sql or LAST_RUNS)
    if not console.is_terminal:
        sys.stdout.write("\n".join("\t".join(map(str, row)) for row in [columns, *rows]) + "\n")
        return
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row))
    console.print(table)


def rerank_run(model: str, queries: Path, passages: Path, run_file: Path, output: Path, qrels: Path | None) -> None:
    """Re-rank a TREC run and write the result; with judgments, print measures before and after."""
    from neuroranker_pipeline.datasets.trec import read_qrels, read_run, write_run
    from neuroranker_pipeline.datasets.tsv import read_passages, read_queries_tsv
    from neuroranker_pipeline.evaluation.measures import mean_measures
    from neuroranker_pipeline.ranking.rerank import load_ranker

    if output.is_dir() or not output.absolute().parent.is_dir():
        raise BadInput(f"--output {output}: expected the path of a file in an existing folder")
    run = read_run(run_file)
    judged = read_qrels(qrels) if qrels is not None else None
    texts = read_queries_tsv(queries)
    pids = set(run["pid"].to_pylist())
    found = read_passages(passages, pids)
    _demand(set(run["qid"].to_pylist()) - texts.keys(), "queries", queries, run_file)
    _demand(pids - found.keys(), "passages", passages, run_file)
    ranker = load_ranker(model)
    narrator = _Narrator()
    narrator.begin(f"re-ranking {run.num_rows:,} candidates")
    try:
        scores = ranker.rerank(run, texts, found, progress=narrator)
    finally:
        narrator.end()
    write_run(scores, output, tag=Path(model).name)
    console.print(
        f"{output}: {scores.num_rows:,} candidates of {len(set(run['qid'].to_pylist())):,} queries", markup=False
    )
    if judged is not None:
        before = mean_measures(run, judged, ties="trec_eval")  # as trec_eval measures the file
        table = Table("", *before, box=None, pad_edge=False)
        for name, measures in (("before", before), ("after", mean_measures(scores, judged))):
            table.add_row(name, *(f"{value:.4f}" for value in measures.values()))
        console.print(table)


def _demand(missing: set[str], what: str, where: Path, run_file: Path) -> None:
    if missing:
        raise NotReady(
            f"{where}: {len(missing)} {what} of {run_file} are not in it, the first is {min(missing)}; "
            f"give the file that the run was made from"
        )
