"""What an asset body is given: its inputs, where to write, and where to record what it saw."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from neuroranker_pipeline.assets.previews import bars
from neuroranker_pipeline.config.settings import Settings
from neuroranker_pipeline.datasets.rejects import REJECTED, Rejects
from neuroranker_pipeline.datasets.source import Source
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.progress import Progress, silent
from neuroranker_pipeline.resources.lake import Draft, label
from neuroranker_pipeline.resources.manifest import Check, Manifest
from neuroranker_pipeline.resources.metrics import Figure, MetricsStore, StepOutcome, history_figures, one_line
from neuroranker_pipeline.resources.releases import Registry
from neuroranker_pipeline.resources.workspace import Workspace

# Where the command line hears of progress; in the Dagster UI only the log does.
listener: ContextVar[Progress] = ContextVar("listener", default=silent)

SECONDS_BETWEEN_LOG_LINES = 10.0


class Step:
    """One run of one asset (and partition)."""

    def __init__(
        self,
        workspace: Workspace,
        partition: str | None,
        inputs: Mapping[str, Manifest],
        draft: Draft,
        log: logging.Logger,
        run: dg.DagsterRun | None = None,
    ):
        self.settings: Settings = workspace.settings
        self.partition = partition
        self.out: Path = draft.path
        self.work: Path = draft.work
        self.metadata: dict[str, Any] = {}
        self.curves: list[Figure] = []
        self.per_query: pa.Table | None = None
        self.device = "cpu"
        self._workspace = workspace
        self._inputs = inputs
        self._draft = draft
        self._log = log
        self._run = run
        self._last_line = 0.0

    @property
    def source(self) -> Source:
        return self._workspace.source

    @property
    def metrics(self) -> MetricsStore:
        """What was measured by earlier runs."""
        return self._workspace.metrics

    @property
    def unjudged_file(self) -> Path:
        """The file of queries without judgments that the settings name."""
        return self._workspace.unjudged_file

    @property
    def releases(self) -> Registry:
        """The registry of released models, which lies in the lake beside the assets."""
        return Registry(self._workspace.lake)

    @property
    def run_id(self) -> str:
        return self._run.run_id if self._run else ""

    def tag(self, name: str) -> str | None:
        """A tag that the run was launched with."""
        return self._run.tags.get(name) if self._run else None

    def rejects(self) -> Rejects:
        """Where the rows of this step's raw data go that cannot be used; see :meth:`account`."""
        return Rejects(self.settings.data.max_reject_share)

    def account(self, rejects: Rejects) -> None:
        """Keep the rejected rows beside the artifact, and what was rejected or left out in its figures and the UI.

        Raises ``BadInput`` when they are too many; the rows are then in the folder that the message names.
        """
        rejects.write(self.work)
        try:
            rejects.demand()
        except BadInput as error:
            raise BadInput(f"{error} (all of them: {self.work / REJECTED})") from None
        rejects.write(self.out)
        counts = {f"rejected, {why}": n for why, n in rejects.reasons.items()}
        counts |= {f"left out, {what}": n for what, n in rejects.left_out.items()}
        self.record(rejected_rows=rejects.count, left_out_rows=rejects.left_out.total())
        if counts:
            self.show("rejected", bars({name: float(n) for name, n in counts.items()}))

    def read(self, asset: str, partition: str | None = None) -> Path:
        """The folder of one declared input, by default without a partition or with this step's own."""
        names = [label(asset, partition)] if partition else [label(asset, self.partition), asset]
        found = [self._inputs[name] for name in names if name in self._inputs]
        if not found:
            raise KeyError(f"{names[0]} is not among the declared inputs: {', '.join(self._inputs)}")
        return self._workspace.lake.open(found[0])

    def read_all(self, asset: str, split: str = "") -> list[Path]:
        """The folders of all declared shards of an input, or of those of one split, in shard order."""
        return [
            self._workspace.lake.open(manifest)
            for manifest in self._inputs.values()
            if manifest.asset == asset and (manifest.partition or "").startswith(split)
        ]

    def manifest(self, asset: str) -> Manifest:
        """The manifest of a declared input without partitions."""
        return self._inputs[asset]

    def record(self, rows: int | None = None, /, **figures: float) -> None:
        """Keep figures in the manifest, the run metrics and the UI; ``rows`` is the artifact's number of rows."""
        self._draft.rows = rows if rows is not None else self._draft.rows
        self._draft.figures.update({name: float(value) for name, value in figures.items()})

    @property
    def figures(self) -> Mapping[str, float]:
        """What was recorded so far."""
        return self._draft.figures

    def curve(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Keep a training history (rows with ``step`` and figures) in the run metrics."""
        self.curves.extend(history_figures(history))

    def measure(self, figures: Mapping[str, float]) -> None:
        """Keep figures in the run metrics alone: what one asks for there, and would crowd the UI."""
        self.curves.extend(Figure(name, float(value)) for name, value in figures.items())

    def keep_per_query(self, values: pa.Table) -> None:
        """Keep an evaluation's values in the run metrics, query by query: columns ranker, qid, measure, value."""
        self.per_query = values

    def show(self, name: str, markdown: str) -> None:
        """Show Markdown in the UI, beside the materialization."""
        self.metadata[name] = dg.MetadataValue.md(markdown)

    def check(self, outcome: Check) -> None:
        self._draft.checks.append(outcome)
        if not outcome.passed:
            tell = self._log.error if outcome.blocking else self._log.warning
            tell(f"{outcome.name} failed: {outcome.description} {dict(outcome.metadata)}")

    def progress(self, label: str, done: int, total: int) -> None:
        """Pass progress on to whoever listens, and to Dagster's log every ten seconds."""
        listener.get()(label, done, total)
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LOG_LINES:
            self._last_line = now
            self._log.info(f"{label}: {done:,} of {total:,}" if total else f"{label}: {done:,}")


def note_outcome(
    context: dg.AssetExecutionContext,
    workspace: Workspace,
    asset: str,
    partition: str | None,
    started: datetime,
    error: Exception | None = None,
) -> None:
    """Tell the run metrics of a run that made nothing: it reused what was there, or failed."""
    outcome = StepOutcome(
        "failed" if error else "reused",
        run_id=context.run.run_id,
        profile=workspace.settings.profile,
        asset=asset,
        partition=partition,
        started_at=started,
        seconds=(datetime.now(UTC) - started).total_seconds(),
        error=f"{type(error).__name__}: {one_line(error)}" if error else None,
    )
    try:
        workspace.metrics.note([outcome])
    except Exception as trouble:  # a full disk, say, which must not hide why the run failed
        context.log.warning(f"the run metrics could not be written: {trouble}")
