"""Bring assets up to date: walk them in order, and run the (asset, partition) pairs that are missing or stale.

A pair is fresh when its manifest's fingerprint equals the one computed now and its blocking checks passed. Dagster's own
staleness does not see failed checks, and one run cannot hold two kinds of partitions, so each pair is a run of its own.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG
from dagster._utils.error import SerializableErrorInfo

from neuroranker_pipeline.assets import ASSETS
from neuroranker_pipeline.assets.corpus import raw_dataset, raw_version
from neuroranker_pipeline.assets.lake_asset import FORCE_TAG, GPU_TAGS, LakeAsset
from neuroranker_pipeline.errors import BadInput, NeuroRankerError, NotReady
from neuroranker_pipeline.resources.lake import label
from neuroranker_pipeline.resources.locks import held_lock
from neuroranker_pipeline.resources.manifest import Manifest
from neuroranker_pipeline.resources.metrics import StepOutcome
from neuroranker_pipeline.resources.processes import PROCESS_TAG, process_tag
from neuroranker_pipeline.resources.workspace import Workspace

OUR_ERRORS = "neuroranker_pipeline."  # how Dagster begins their messages: with the class's full name
RUN_TAGS = {"dagster/max_retries": "0"}  # the daemon has nothing to run them with again
ASSET_TAG = "neuroranker/asset"  # what a run makes: in the UI, the planner's runs have no name of their own
INTERRUPTS = ("KeyboardInterrupt", "DagsterExecutionInterruptedError")
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class Outcome:
    """What became of one (asset, partition) pair: it was made or up to date (``manifest``), it failed (``ran`` and
    ``error``), or it was left out because something that it needs failed (``error`` alone)."""

    asset: str
    partition: str | None
    ran: bool
    seconds: float
    manifest: Manifest | None
    error: NeuroRankerError | None = None
    attempts: int = 1


def selected(names: Sequence[str]) -> list[LakeAsset]:
    """The named assets and all that they are made from, in order; every asset when none is named."""
    known = {asset.name: asset for asset in ASSETS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BadInput(f"--select {unknown[0]}: no such asset; the assets are {', '.join(known)}")
    return with_needs([known[name] for name in names or known], ASSETS)


def with_needs(assets: Sequence[LakeAsset], graph: Sequence[LakeAsset]) -> list[LakeAsset]:
    """The assets and all that they are made from, in the order of ``graph``, in which an asset follows all that it needs."""
    wanted = {asset.name for asset in assets}
    for asset in reversed(graph):
        if asset.name in wanted:
            wanted |= {need.asset.name for need in asset.needs}
    return [asset for asset in graph if asset.name in wanted]


@contextmanager
def one_at_a_time(workspace: Workspace) -> Iterator[None]:
    """Bring one profile up to date in one process at a time; raises ``NotReady`` when another one is at it."""
    with held_lock(workspace.lake.scratch / "run.lock", f"profile {workspace.settings.profile} is being run"):
        yield


def is_fresh(asset: LakeAsset, workspace: Workspace, partition: str | None) -> bool:
    """Whether the lake holds what a run now would make."""
    return asset.fresh(workspace, partition) is not None


def bring_up_to_date(
    assets: Sequence[LakeAsset],
    workspace: Workspace,
    instance: dg.DagsterInstance,
    *,
    again: Collection[str] = (),
    confirm: bool = False,
    tags: Mapping[str, str] | None = None,
) -> Iterator[Outcome | LakeAsset]:
    """Run what is missing or stale. Yields each pair's :class:`Outcome`, and the asset before a run of it starts.

    Assets named in ``again`` are made again though they are fresh. With ``confirm``, a fresh asset that has a freshness
    policy is materialized from what the lake holds, so that Dagster knows it to be up to date; so is, always, what stayed
    the same while the raw data changed. ``tags`` go on every run.
    A pair that fails stops only those that need it, directly or not. Raises ``NeuroRankerError`` at the end, with the
    reason of every failure: a run that failed, or a blocking check.
    """
    definitions = [asset.to_dagster(workspace.settings) for asset in assets]
    changed = _observe_source(workspace, instance)
    unmade: dict[tuple[str, str | None], NeuroRankerError | None] = {}  # None: left out
    reused: list[StepOutcome] = []
    for asset in assets:
        for partition in asset.partitions(workspace.settings):
            lacking = [pair for pair in asset.inputs(workspace.settings, partition) if pair in unmade]
            if lacking:
                unmade[asset.name, partition] = None
                yield Outcome(asset.name, partition, False, 0.0, None, NotReady(f"waits for {label(*lacking[0])}"))
            elif asset.name not in again and (kept := asset.fresh(workspace, partition)):
                # What has not changed though the raw data has, as a whole, would show as out of step with it in the UI.
                if (confirm and asset.freshness) or (changed and asset.from_source):
                    _run(asset, partition, definitions, workspace, instance, tags or {})
                else:
                    profile, now = workspace.settings.profile, datetime.now(UTC)
                    reused.append(StepOutcome("reused", "", profile, asset.name, partition, now))
                yield Outcome(asset.name, partition, False, 0.0, kept)
            else:
                yield asset
                force = {FORCE_TAG: "true"} if asset.name in again else {}
                outcome = _run(asset, partition, definitions, workspace, instance, {**(tags or {}), **force})
                if outcome.error:
                    unmade[asset.name, partition] = outcome.error
                yield outcome
    errors = [error for error in unmade.values() if error]
    try:
        workspace.metrics.note(reused)
    except OSError:  # a full disk, say, which must not hide why a step failed
        if not errors:
            raise
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise NeuroRankerError(f"{len(errors)} steps failed: {'; '.join(map(str, errors))}")


def _observe_source(workspace: Workspace, instance: dg.DagsterInstance) -> bool:
    """Tell the instance when the raw data's version is not the one it knows; returns whether it was not."""
    version = raw_version(workspace)
    records = instance.fetch_observations(raw_dataset.key, limit=1).records
    known = records[0].asset_observation if records else None
    # Dagster's own observations have more tags than this one.
    changed = known is None or known.tags.get(DATA_VERSION_TAG) != version
    if changed:
        instance.report_runless_asset_event(dg.AssetObservation(raw_dataset.key, tags={DATA_VERSION_TAG: version}))
    return changed


def _run(
    asset: LakeAsset,
    partition: str | None,
    definitions: Sequence[dg.AssetsDefinition],
    workspace: Workspace,
    instance: dg.DagsterInstance,
    tags: Mapping[str, str],
) -> Outcome:
    name, started, attempts = asset.name, time.perf_counter(), 1
    manifest: Manifest | None = None
    error: NeuroRankerError | None = None
    try:
        result = dg.materialize(
            [raw_dataset, *definitions],
            selection=[name],
            partition_key=partition,
            instance=instance,
            resources={"workspace": workspace},
            tags={
                **RUN_TAGS,
                ASSET_TAG: label(name, partition),
                PROCESS_TAG: process_tag(),
                **(GPU_TAGS if asset.pool == "gpu" else {}),
                **tags,
            },
            run_config=QUIET,
            raise_on_error=False,
        )
        if _interrupted(result):
            raise KeyboardInterrupt  # Dagster kept it to itself, and nothing else may begin
        attempts += len([event for event in result.all_events if event.is_step_up_for_retry])
        made = workspace.lake.manifest(name, partition)
        if not result.success and (made is None or made.run_id != result.run_id):
            raise NeuroRankerError(f"{label(name, partition)} failed: {_reason(result)}")
        manifest = workspace.lake.usable(name, partition)  # it names a failed check
    except dg.DagsterError as reason:
        error = NeuroRankerError(f"{label(name, partition)}: {reason}")
    except NeuroRankerError as reason:
        error = reason
    return Outcome(name, partition, True, time.perf_counter() - started, manifest, error, attempts)


def _interrupted(result: dg.ExecuteInProcessResult) -> bool:
    """Whether someone stopped the run: by a signal, or in the UI."""
    errors = [event.job_failure_data.error for event in result.all_events if event.is_job_failure]
    cancelled = any(event.event_type == dg.DagsterEventType.RUN_CANCELED for event in result.all_events)
    return cancelled or any(error is not None and error.cls_name in INTERRUPTS for error in errors)


def _reason(result: dg.ExecuteInProcessResult) -> str:
    """Why the step failed, in one line, with the run."""
    for event in result.all_events:
        if event.is_step_failure:
            return f"{reason(event.step_failure_data.error)} (run {result.run_id})"
    return f"no step failed (run {result.run_id})"


def reason(error: SerializableErrorInfo | None) -> str:
    """An error of Dagster's event log in one line: the outermost error of ours, which says what to do, else the innermost
    error."""
    while error is not None and error.cause is not None and not error.message.startswith(OUR_ERRORS):
        error = error.cause
    message = (error.message if error else "no reason given").strip()
    if message.startswith(OUR_ERRORS):
        message = message.partition(": ")[2]
    return " ".join(message.split())
