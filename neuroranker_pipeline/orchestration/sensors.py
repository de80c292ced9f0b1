"""Sensors: new raw data is built from, and every failed run is put on record."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime

import dagster as dg

from neuroranker_pipeline.assets import ASSETS
from neuroranker_pipeline.assets.corpus import raw_version
from neuroranker_pipeline.assets.lake_asset import RAW_DATASET
from neuroranker_pipeline.errors import BadInput, NotReady
from neuroranker_pipeline.orchestration.jobs import WHOLE_GRAPH
from neuroranker_pipeline.orchestration.planner import INTERRUPTS, reason
from neuroranker_pipeline.resources.failures import WEBHOOK_VARIABLE, FailedRun, keep, post
from neuroranker_pipeline.resources.lake import label
from neuroranker_pipeline.resources.workspace import Workspace

RAW_DATA_TAG = "neuroranker/raw_data"
SECONDS_BETWEEN_LOOKS = 60


@dg.sensor(
    name="new_raw_data",
    job_name=WHOLE_GRAPH,
    minimum_interval_seconds=SECONDS_BETWEEN_LOOKS,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Looks at the raw data every minute, and rebuilds what depends on it once it has changed by content and "
    "stayed so for two looks. Files are read again only when their size or time has changed.",
)
def new_raw_data(context: dg.SensorEvaluationContext, workspace: Workspace) -> dg.SensorResult | dg.SkipReason:
    """Request the whole graph's job for raw data of another digest than what it was last built from."""
    try:
        version = raw_version(workspace, complete=True)
    except (BadInput, OSError) as error:
        return dg.SkipReason(f"the raw data cannot be read: {error}")
    known = json.loads(context.cursor or "null") or {"built": version if _is_built(workspace) else None}
    if version == known["built"]:
        return dg.SensorResult(skip_reason="the raw data has not changed", cursor=json.dumps({"built": version}))
    if version != known.get("found"):
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return dg.SensorResult(
            skip_reason=f"new raw data, version {version[:12]}: it may still be arriving, so it is looked at once more",
            cursor=json.dumps({"built": known["built"], "found": version, "since": now}),
        )
    # With its time, since data may change back to a version that was built before.
    request = dg.RunRequest(run_key=f"{version} {known['since']}", tags={RAW_DATA_TAG: version})
    return dg.SensorResult(run_requests=[request], cursor=json.dumps({"built": version}))


def _is_built(workspace: Workspace) -> bool:
    """Whether the lake's collection was made from the raw data as it is."""
    for asset in ASSETS:
        if asset.group != "corpus":
            continue
        outside = asset.outside(workspace)
        try:
            manifest = workspace.lake.manifest(asset.name)
        except NotReady:
            return False
        if outside and (manifest is None or not outside.items() <= manifest.inputs.items()):
            return False
    return True


# Not the one that Dagster makes by itself, whose name says nothing.
changed_inputs = dg.AutomationConditionSensorDefinition(
    name="changed_inputs",
    target=dg.AssetSelection.assets(RAW_DATASET, *(asset.name for asset in ASSETS if asset.automation)),
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Looks at the raw data every hour, and makes the tables of the collection again when it changed. What costs "
    "hours is left to people, schedules and `new_raw_data`.",
)


@dg.run_failure_sensor(
    name="failed_runs",
    # Runs that the planner starts belong to no code location.
    monitor_all_code_locations=True,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Writes a record of every failed run into the lake's folder `failures`, and posts it to "
    f"`{WEBHOOK_VARIABLE}` where that is set.",
)
def failed_runs(context: dg.RunFailureSensorContext, workspace: Workspace) -> None:
    """Put a failed run on record; a webhook that does not answer is logged, and no more."""
    failed = describe(context, workspace.settings.profile)
    context.log.info(f"{keep(failed, workspace.lake)}: {failed.to_markdown()}")
    if (url := os.environ.get(WEBHOOK_VARIABLE)) and (problem := post(failed, url)):
        context.log.warning(problem)


def describe(context: dg.RunFailureSensorContext, profile: str) -> FailedRun:
    """What the event log says of a failed run."""
    run, instance = context.dagster_run, context.instance
    record = instance.get_run_record_by_id(run.run_id)
    started, ended = (record.start_time, record.end_time) if record else (None, None)
    failed_at = ended or datetime.now(UTC).timestamp()
    partition = run.tags.get("dagster/partition", run.tags.get("dagster/asset_partition_range_start"))  # of one
    planned = _events(instance, run.run_id, dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
    plans = [event.asset_materialization_planned_data for event in planned]
    events = context.get_step_failure_events()
    reasons = [_reason(event) for event in events]
    return FailedRun(
        profile=profile,
        run_id=run.run_id,
        job=run.job_name,
        what=", ".join(sorted(label(plan.asset_key.to_user_string(), plan.partition) for plan in plans))
        or f"job {run.job_name}",
        partition=partition,
        reason="; ".join(reasons) or context.failure_event.message or "no reason given",
        started_at=_iso(started) if started else None,
        failed_at=_iso(failed_at),
        seconds=round(failed_at - started, 1) if started else None,
        steps=[event.step_key for event in events if event.step_key],
        failed_checks=_failed_checks(instance, run.run_id),
        tags=run.tags,
    )


def _reason(event: dg.DagsterEvent) -> str:
    """Why a step failed, in one line: what a job says of its runs, or the error."""
    data = event.step_failure_data
    if data.error is not None and data.error.cls_name in INTERRUPTS:
        return "it was stopped, by a signal or by whoever runs it"
    said = data.user_failure_data.description if data.user_failure_data else None
    return said or reason(data.error)


def _failed_checks(instance: dg.DagsterInstance, run_id: str) -> list[dict]:
    evaluated = _events(instance, run_id, dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    checks = [event.asset_check_evaluation_data for event in evaluated]
    return [
        {
            "asset": check.asset_key.to_user_string(),
            "name": check.check_name,
            "description": check.description,
            "evidence": {name: value.value for name, value in check.metadata.items()},
        }
        for check in checks
        if not check.passed and check.severity == dg.AssetCheckSeverity.ERROR
    ]


def _events(instance: dg.DagsterInstance, run_id: str, kind: dg.DagsterEventType) -> list[dg.DagsterEvent]:
    records = instance.get_records_for_run(run_id, of_type=kind).records
    return [event for record in records if (event := record.event_log_entry.dagster_event) is not None]


def _iso(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="seconds")
