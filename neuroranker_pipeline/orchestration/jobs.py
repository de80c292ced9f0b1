"""Jobs: one run that brings a part of the graph up to date, or all of it; and one a partitioned asset, for backfills.

Dagster cannot run assets of two partition definitions in one run, and its own jobs run again what is fresh. So a job here
is one step that asks the planner: each stale (asset, partition) pair becomes a run of its own, tagged with the job's run.
"""

# No postponed annotations here: Dagster reads those of an op that is defined in a function.

from collections.abc import Sequence
from contextlib import ExitStack

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from pydantic import Field

from neuroranker_pipeline.assets.lake_asset import GPU_TAGS, LakeAsset
from neuroranker_pipeline.assets.previews import markdown_table
from neuroranker_pipeline.errors import NeuroRankerError, NotReady
from neuroranker_pipeline.orchestration.instance import end_dead_runs
from neuroranker_pipeline.orchestration.planner import Outcome, bring_up_to_date, one_at_a_time, with_needs
from neuroranker_pipeline.resources.lake import label
from neuroranker_pipeline.resources.processes import PROCESS_TAG, process_tag
from neuroranker_pipeline.resources.releases import Registry
from neuroranker_pipeline.resources.workspace import Workspace

WHOLE_GRAPH = "whole_graph"
# The group's own name where it is not here.
JOB_OF_GROUP = {
    "teacher": "train",
    "student": "train",
    "export": "train",
    "evaluation": "evaluate",
    "serving": "release",
}
DESCRIPTIONS = {
    "corpus": "The collection: passages, queries and judgments, from the raw data.",
    "retrieval": "The Lucene index, BM25's parameters, and its candidates for every query shard.",
    "train": "Teacher and student: trained, scored and exported.",
    "evaluate": "Every ranker of the chain on the test splits.",
    "release": "The release gate and the packaged service.",
    WHOLE_GRAPH: "Everything, from the raw data to the packaged service.",
}

# Jobs of one profile wait for one another. Their runs' own steps wait in the pools `gpu` and `jvm`.
GRAPH_POOL = "graph"
JOB_TAG = "neuroranker/job_run"  # on a run that a job's run started: that run
DAY = 24 * 3600
# The runs that a job starts do not pass the queue, so the job itself says there what it will use. Not so the whole graph:
# it would keep others from the GPU while it indexes, and its GPU steps wait in the pool as all do.
TAGS = {
    "train": {**GPU_TAGS, "dagster/max_runtime": str(3 * DAY)},
    WHOLE_GRAPH: {"dagster/max_runtime": str(7 * DAY)},
}
OTHER_TAGS = {"neuroranker/device": "cpu", "dagster/max_runtime": str(DAY)}

# `neuroranker run` may be at work on the same profile: a job looks again every minute, for two hours.
LOOKS, SECONDS_BETWEEN_LOOKS = 120, 60


class UpToDate(dg.Config):
    """How far a job goes."""

    needs: bool = Field(
        default=True,
        description="Also what the job's assets are made from; else a stale input is used as it is, and a missing one is an "
        "error.",
    )
    again: bool = Field(default=False, description="Make the job's assets again even where they are up to date.")


def parts_of(graph: Sequence[LakeAsset]) -> dict[str, list[LakeAsset]]:
    """The assets of each job, by its name: those of one part of the graph, or all."""
    parts: dict[str, list[LakeAsset]] = {}
    for asset in graph:
        parts.setdefault(JOB_OF_GROUP.get(asset.group, asset.group), []).append(asset)
    return {**parts, WHOLE_GRAPH: list(graph)}


def graph_jobs(graph: Sequence[LakeAsset]) -> dict[str, dg.JobDefinition]:
    """By name, a job for each part of the graph, and one for all of it."""
    return {name: _job(name, part, graph) for name, part in parts_of(graph).items()}


def shard_jobs(graph: Sequence[LakeAsset]) -> list[UnresolvedAssetJobDefinition]:
    """A job for each partitioned asset, to run or backfill chosen shards of it: a run each."""
    return [
        dg.define_asset_job(
            f"{asset.name}_shards",
            selection=[asset.name],
            description=f"Chosen shards of {asset.name}, a run each; one that is up to date is not made again.",
            tags=GPU_TAGS if asset.pool == "gpu" else None,
        )
        for asset in graph
        if asset.shards
    ]


def config_of(job: dg.JobDefinition, config: UpToDate) -> dg.RunConfig:
    """The configuration of a run of one of :func:`graph_jobs`."""
    return dg.RunConfig(ops={_op_name(job.name): config})


def _op_name(name: str) -> str:
    return f"bring_up_to_date_{name}"


def _job(name: str, part: Sequence[LakeAsset], graph: Sequence[LakeAsset]) -> dg.JobDefinition:
    description = DESCRIPTIONS.get(name, f"The assets of group {name}.")

    @dg.op(name=_op_name(name), description=description, pool=GRAPH_POOL)
    def up_to_date(context: dg.OpExecutionContext, config: UpToDate, workspace: Workspace) -> None:
        _bring_up_to_date(context, config, workspace, part, graph)

    @dg.job(
        name=name,
        description=f"{description} What is up to date is left alone; each of the others is a run of its own, with the tag "
        f"`{JOB_TAG}`.",
        tags=TAGS.get(name, OTHER_TAGS),
    )
    def job() -> None:
        up_to_date()

    return job


def _bring_up_to_date(
    context: dg.OpExecutionContext,
    config: UpToDate,
    workspace: Workspace,
    part: Sequence[LakeAsset],
    graph: Sequence[LakeAsset],
) -> None:
    run, outcomes = context.run, list[Outcome]()
    context.instance.add_run_tags(run.run_id, {PROCESS_TAG: process_tag()})
    with ExitStack() as stack:
        try:
            stack.enter_context(one_at_a_time(workspace))
        except NotReady as error:
            context.log.info(str(error))
            raise dg.RetryRequested(LOOKS, SECONDS_BETWEEN_LOOKS) from error
        end_dead_runs(context.instance)
        events = bring_up_to_date(
            with_needs(part, graph) if config.needs else part,
            workspace,
            context.instance,
            again={asset.name for asset in part} if config.again else (),
            confirm=True,
            tags={JOB_TAG: run.run_id},
        )
        try:
            for event in events:
                if isinstance(event, Outcome):
                    outcomes.append(event)
                    _log(context, event)
        except NeuroRankerError as error:
            raise dg.Failure(str(error), {"assets": _table(outcomes)}, allow_retries=False) from None
        if context.job_name == WHOLE_GRAPH and (tag := Registry(workspace.lake).repair_store()):
            context.log.info(f"{tag} was not the latest in the BentoML store: put back")
    context.add_output_metadata({"runs": sum(outcome.ran for outcome in outcomes), "assets": _table(outcomes)})


def _log(context: dg.OpExecutionContext, outcome: Outcome) -> None:
    name = label(outcome.asset, outcome.partition)
    if outcome.error:
        context.log.error(f"{name}: {outcome.error}")
    elif outcome.ran:
        context.log.info(f"{name}: made in {outcome.seconds:.1f} s")


def _table(outcomes: Sequence[Outcome]) -> dg.MarkdownMetadataValue:
    rows = (
        (
            label(outcome.asset, outcome.partition),
            str(outcome.error) if outcome.error else "made" if outcome.ran else "up to date",
            f"{outcome.seconds:.1f}" if outcome.ran else "",
        )
        for outcome in outcomes
    )
    return dg.MetadataValue.md(markdown_table(["asset", "", "seconds"], rows))
