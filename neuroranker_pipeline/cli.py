"""The ``neuroranker`` command. Heavy imports happen inside the commands, so that ``--help`` is quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuroranker_pipeline import __version__
from neuroranker_pipeline.errors import BadInput, NeuroRankerError, NotReady

if TYPE_CHECKING:
    from neuroranker_pipeline.resources.workspace import Workspace


class _Group(click.Group):
    """Turns an expected error into one line and exit status 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except NeuroRankerError as error:
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt:
            raise click.ClickException("interrupted; run the same command again to go on") from None
        except BrokenPipeError:  # `neuroranker metrics ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except OSError as error:
            raise click.ClickException(str(error)) from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def main() -> None:
    """Train, measure, package and try a neural re-ranker over a collection of passages."""


def _workspace_options(command: Callable[..., None]) -> Callable[..., None]:
    """``--profile``, ``--lake``, ``--data`` and ``--set``, handed to the command as its first argument, one workspace."""

    @click.option(
        "--profile",
        "-p",
        metavar="NAME|FILE.yaml",
        help="Which settings to use.  [default: $NEURORANKER_PROFILE or quickstart]",
    )
    @click.option(
        "--lake",
        metavar="FOLDER|URL",
        help="Where artifacts are kept.  [default: $NEURORANKER_LAKE or data_lake]",
    )
    @click.option(
        "--data",
        metavar="FOLDER",
        help="Where relative folders of raw data begin.  [default: $NEURORANKER_DATA or data_lake/raw]",
    )
    @click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override one setting, for example student.training.learning_rate=2e-5. May be repeated.",
    )
    @wraps(command)
    def with_workspace(
        profile: str | None, lake: str | None, data: str | None, overrides: tuple[str, ...], **arguments: Any
    ) -> None:
        command(_workspace(profile, lake, data, overrides), **arguments)

    return with_workspace


def _workspace(profile: str | None, lake: str | None, data: str | None, overrides: tuple[str, ...]) -> Workspace:
    from neuroranker_pipeline.resources.workspace import Workspace, default_data, default_lake, default_profile

    workspace = Workspace(
        profile=profile or default_profile(),
        lake_root=lake or default_lake(),
        data_root=data or default_data(),
        overrides=list(overrides),
    )
    _ = workspace.settings  # a bad profile is refused before anything starts
    return workspace


@main.command()
@_workspace_options
@click.option("--select", metavar="KEYS", help="Comma-separated assets to bring up to date, with all they need.")
def run(workspace: Workspace, select: str | None) -> None:
    """Bring the asset graph up to date: what is missing or stale is made, the rest is left alone."""
    from neuroranker_pipeline.console import run_with_progress, show_results

    names = [name.strip() for name in (select or "").split(",") if name.strip()]
    run_with_progress(workspace, names)
    if not names:
        show_results(workspace)


@main.command()
@_workspace_options
def fetch(workspace: Workspace) -> None:
    """Fetch the published files of the profile's data set into its folder; what is there already is left alone."""
    from neuroranker_pipeline.console import fetch_data

    fetch_data(workspace)


@main.command()
@_workspace_options
@click.option("--open", "open_page", is_flag=True, help="Open the HTML report, or comparison, in a browser.")
@click.option("--split", metavar="SPLIT", help="One test split, for example test-dl19.  [default: all]")
@click.option(
    "--compare",
    nargs=2,
    metavar="RUN_A RUN_B",
    help="Compare two evaluations: each the id of a Dagster run or a version of eval_report (or how it begins), latest, "
    "previous, or a report's folder.",
)
@click.option("--measure", metavar="NAME", help="What to compare in.  [default: MRR@10]")
@click.option("--ranker", metavar="NAME", help="Whose queries to show.  [default: student int8]")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE.html|FILE.md", help="Write the comparison too."
)
def report(
    workspace: Workspace,
    open_page: bool,
    split: str | None,
    compare: tuple[str, str] | None,
    measure: str | None,
    ranker: str | None,
    output: Path | None,
) -> None:
    """Show how every ranker did on the test split, and where the whole report is; or compare two evaluations."""
    from neuroranker_pipeline.console import show_results
    from neuroranker_pipeline.orchestration.partitions import shard_keys

    reported = shard_keys("tests", workspace.settings)
    if split is not None and split not in reported:
        raise BadInput(f"--split {split}: reports are made of {', '.join(reported)}")
    if compare:
        from neuroranker_pipeline.console_report import compare_runs

        if open_page and (output is None or output.suffix != ".html"):
            raise BadInput("--open shows a page: say where to write it with --output FILE.html")
        compare_runs(workspace, compare, split, measure, ranker, output)
        page = output.absolute() if output else None
    elif measure or ranker or output:
        raise BadInput("--measure, --ranker and --output belong to --compare RUN_A RUN_B")
    else:
        page = show_results(workspace, split)
    if open_page and page and click.launch(page.as_uri()) != 0:
        raise NotReady(f"no browser could be started here: open {page}")


@main.command()
@_workspace_options
@click.option(
    "--override", metavar="REASON", help="Release the model that the gate has blocked, and no other; kept on record."
)
def release(workspace: Workspace, override: str | None) -> None:
    """Bring the graph up to date and release its search, if the gate lets it through."""
    from neuroranker_pipeline.console_release import release_model

    release_model(workspace, override)


@main.command()
@_workspace_options
def releases(workspace: Workspace) -> None:
    """List the released models: what the gate measured, on whose word, and which one is current."""
    from neuroranker_pipeline.console_release import show_releases

    show_releases(workspace)


@main.command()
@_workspace_options
@click.argument("version", required=False, type=click.IntRange(min=1))
@click.option("--reason", default="", metavar="TEXT", help="Why; kept on record.")
def rollback(workspace: Workspace, version: int | None, reason: str) -> None:
    """Put release VERSION back, by default the one before the current one; <name>:latest is then its Bento."""
    from neuroranker_pipeline.console_release import roll_back

    roll_back(workspace, version, reason)


@main.command()
@_workspace_options
@click.argument("question")
@click.option("-k", "count", type=click.IntRange(1, 100), default=10, show_default=True, help="How many passages.")
def search(workspace: Workspace, question: str, count: int) -> None:
    """Search the collection: BM25's candidates, re-ranked by the int8 student."""
    from neuroranker_pipeline.console import show_hits
    from neuroranker_pipeline.orchestration.search import open_search

    if not question.strip():
        raise BadInput("QUESTION is empty: type a question, for example neuroranker search 'cumulative sum'")
    show_hits(question, open_search(workspace)(question, count))


@main.command()
@_workspace_options
@click.argument("asset")
@click.argument("partition", required=False)
def path(workspace: Workspace, asset: str, partition: str | None) -> None:
    """Print the folder of an artifact's current version."""
    click.echo(workspace.lake.read(asset, partition))


@main.command()
@_workspace_options
@click.argument("sql", required=False)
def metrics(workspace: Workspace, sql: str | None) -> None:
    """Ask DuckDB about run metrics; without SQL, show the last run of every asset."""
    from neuroranker_pipeline.console import show_metrics

    show_metrics(workspace.metrics, sql)


@main.command()
@click.option("--model", required=True, metavar="DIR|NAME", help="Teacher, student or ONNX folder, or a model's name.")
@click.option("--queries", required=True, type=click.Path(path_type=Path), metavar="Q.tsv", help="qid<TAB>text")
@click.option(
    "--passages",
    required=True,
    type=click.Path(path_type=Path),
    metavar="P.tsv|DIR",
    help="pid<TAB>text as .tsv, .tsv.gz or .tar.gz, or a folder of Parquet.",
)
@click.option("--run", "run_file", required=True, type=click.Path(path_type=Path), metavar="IN.trec")
@click.option("--output", required=True, type=click.Path(path_type=Path), metavar="OUT.trec")
@click.option("--qrels", type=click.Path(path_type=Path), metavar="QRELS", help="Also print measures before and after.")
def rerank(model: str, queries: Path, passages: Path, run_file: Path, output: Path, qrels: Path | None) -> None:
    """Re-rank a TREC run with any model."""
    from neuroranker_pipeline.console import rerank_run

    rerank_run(model, queries, passages, run_file, output, qrels)


@main.command()
@click.argument("model", metavar="DIR|NAME")
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--int8", is_flag=True, help="With 8-bit weights: about a quarter of the size, and faster.")
def export(model: str, output: Path, int8: bool) -> None:
    """Write a teacher's cross-encoder or a student as a new ONNX folder OUT, to re-rank with or to serve.

    It is compared with PyTorch before it is there. STUDENT_ONNX=OUT bentoml serve ranker:latest serves it.
    """
    from neuroranker_pipeline.export.folder import export_model

    exported = export_model(model, output, int8)
    click.echo(f"{output}: {exported.kind}, differs from PyTorch by {exported.difference:.1e} at most")
    if exported.agreement is not None:
        click.echo(f"int8: {exported.agreement.summary}")


@main.command()
@_workspace_options
@click.option("--port", type=int, default=3000, show_default=True)
def dev(workspace: Workspace, port: int) -> None:
    """Open the Dagster UI on the profile's persistent instance."""
    from neuroranker_pipeline.orchestration.instance import dagster_home
    from neuroranker_pipeline.resources.workspace import DATA_VARIABLE, LAKE_VARIABLE, PROFILE_VARIABLE

    if workspace.overrides:
        raise BadInput("--set does not reach the UI: write the change into a profile file, and name it with --profile")
    os.environ["DAGSTER_HOME"] = str(dagster_home(workspace))
    os.environ[PROFILE_VARIABLE] = workspace.profile
    os.environ[LAKE_VARIABLE] = workspace.lake_root
    os.environ[DATA_VARIABLE] = workspace.data_root
    python = [
        sys.executable,
        "-m",
        "dagster",
        "dev",
        "-m",
        "neuroranker_pipeline.definitions",
        "-p",
        str(port),
    ]
    os.execv(sys.executable, python)


if __name__ == "__main__":
    main()
