"""The code location: wiring only. ``NEURORANKER_PROFILE`` and ``NEURORANKER_LAKE`` choose what it is wired to."""

from __future__ import annotations

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    """The chosen profile's asset graph, and what runs it: jobs, schedules and sensors."""
    from neuroranker_pipeline.assets import ASSETS
    from neuroranker_pipeline.assets.corpus import raw_dataset
    from neuroranker_pipeline.orchestration.jobs import graph_jobs, shard_jobs
    from neuroranker_pipeline.orchestration.schedules import graph_schedules
    from neuroranker_pipeline.orchestration.sensors import changed_inputs, failed_runs, new_raw_data
    from neuroranker_pipeline.resources.workspace import Workspace, default_lake, default_profile

    workspace = Workspace(profile=default_profile(), lake_root=default_lake())
    jobs = graph_jobs(ASSETS)
    return dg.Definitions(
        assets=[raw_dataset, *(asset.to_dagster(workspace.settings) for asset in ASSETS)],
        resources={"workspace": workspace},
        jobs=[*jobs.values(), *shard_jobs(ASSETS)],
        schedules=graph_schedules(jobs),
        sensors=[new_raw_data, changed_inputs, failed_runs],
        # One process a run: steps of one run follow one another anyway, and models stay warm between them.
        executor=dg.in_process_executor,
    )
