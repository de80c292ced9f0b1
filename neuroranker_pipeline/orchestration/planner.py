"""Bring assets up to date: walk them in order, and run the (asset, partition) pairs that are missing or stale.

A pair is fresh when its manifest's fingerprint equals the one computed now and its blocking checks passed. Dagster's own
staleness does not see failed checks, and one run cannot hold two kinds of partitions, so each pair is a run of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from neuroranker_pipeline.assets import ASSETS
from neuroranker_pipeline.assets.corpus import raw_dataset, raw_version
from neuroranker_pipeline.assets.lake_asset import GPU_TAGS, LakeAsset
from neuroranker_pipeline.errors import BadInput, NeuroRankerError, NotReady
from neuroranker_pipeline.resources.lake import label
from neuroranker_pipeline.resources.manifest import Manifest
from neuroranker_pipeline.resources.processes import PROCESS_TAG, process_tag
from neuroranker_pipeline.resources.workspace import Workspace

OUR_ERRORS = "neuroranker_pipeline."  # how Dagster begins their messages: with the class's full name
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class Outcome:
    """What became of one (asset, partition) pair."""

    asset: str
    partition: str | None
    ran: bool
    seconds: float
    manifest: Manifest


def selected(names: Sequence[str]) -> list[LakeAsset]:
    """The named assets and all that they are made from, in order; every asset when none is named."""
    known = {asset.name: asset for asset in ASSETS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BadInput(f"--select {unknown[0]}: no such asset; the assets are {', '.join(known)}")
    wanted = set(names or known)
    for asset in reversed(ASSETS):  # an asset comes after all that it needs
        if asset.name in wanted:
            wanted |= {need.asset.name for need in asset.needs}
    return [asset for asset in ASSETS if asset.name in wanted]


def is_fresh(asset: LakeAsset, workspace: Workspace, partition: str | None) -> bool:
    """Whether the lake holds what a run now would make."""
    try:
        manifest = workspace.lake.manifest(asset.name, partition)
        if manifest is None or manifest.failed_checks:
            return False
        return asset.fingerprint(workspace, partition)[0] == manifest.fingerprint
    except NotReady:
        return False


def bring_up_to_date(
    assets: Sequence[LakeAsset], workspace: Workspace, instance: dg.DagsterInstance
) -> Iterator[Outcome | LakeAsset]:
    """Run what is missing or stale. Yields each pair's :class:`Outcome`, and the asset before a run of it starts.

    Raises ``NeuroRankerError`` with the reason when a run fails or a blocking check does.
    """
    definitions = [asset.to_dagster(workspace.settings) for asset in assets]
    _observe_source(workspace, instance)
    for asset in assets:
        for partition in asset.partitions(workspace.settings):
            if is_fresh(asset, workspace, partition):
                manifest = workspace.lake.usable(asset.name, partition)
                yield Outcome(asset.name, partition, False, 0.0, manifest)
                continue
            yield asset
            started = time.perf_counter()
            _run(asset, partition, definitions, workspace, instance)
            manifest = workspace.lake.usable(asset.name, partition)
            yield Outcome(asset.name, partition, True, time.perf_counter() - started, manifest)


def _observe_source(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    """Tell the instance when the raw data's version is not the one it knows."""
    version = raw_version(workspace)
    tags = {DATA_VERSION_TAG: version}
    records = instance.fetch_observations(raw_dataset.key, limit=1).records
    known = records[0].asset_observation if records else None
    if known is None or known.tags != tags:
        instance.report_runless_asset_event(dg.AssetObservation(raw_dataset.key, tags=tags))


def _run(
    asset: LakeAsset,
    partition: str | None,
    definitions: Sequence[dg.AssetsDefinition],
    workspace: Workspace,
    instance: dg.DagsterInstance,
) -> None:
    name = asset.name
    try:
        result = dg.materialize(
            [raw_dataset, *definitions],
            selection=[name],
            partition_key=partition,
            instance=instance,
            resources={"workspace": workspace},
            tags={PROCESS_TAG: process_tag(), **(GPU_TAGS if asset.pool == "gpu" else {})},
            run_config=QUIET,
            raise_on_error=False,
        )
    except dg.DagsterError as error:
        raise NeuroRankerError(f"{label(name, partition)}: {error}") from error
    if not result.success:
        manifest = workspace.lake.manifest(name, partition)
        if manifest is not None and manifest.run_id == result.run_id:
            workspace.lake.usable(name, partition)  # names the failed check
        raise NeuroRankerError(f"{label(name, partition)} failed: {_reason(result)}")


def _reason(result: dg.ExecuteInProcessResult) -> str:
    """Why the step failed, in one line: the outermost error of ours, which says what to do, else the innermost error."""
    for event in result.all_events:
        if event.is_step_failure:
            error = event.step_failure_data.error
            while error is not None and error.cause is not None and not error.message.startswith(OUR_ERRORS):
                error = error.cause
            message = (error.message if error else "no reason given").strip()
            if message.startswith(OUR_ERRORS):
                message = message.partition(": ")[2]
            return f"{' '.join(message.split())} (run {result.run_id})"
    return f"no step failed (run {result.run_id})"
