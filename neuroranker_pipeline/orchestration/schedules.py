"""Schedules, off until someone switches them on: the whole graph every week, its evaluation every night."""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

from neuroranker_pipeline.orchestration.jobs import WHOLE_GRAPH, UpToDate, config_of

TIMEZONE = "UTC"


def graph_schedules(jobs: Mapping[str, dg.JobDefinition]) -> list[dg.ScheduleDefinition]:
    """The schedules over the jobs of :func:`neuroranker_pipeline.orchestration.jobs.graph_jobs`."""
    evaluate = jobs["evaluate"]
    return [
        dg.ScheduleDefinition(
            name="weekly_rebuild",
            job=jobs[WHOLE_GRAPH],
            cron_schedule="0 3 * * 0",
            execution_timezone=TIMEZONE,
            default_status=dg.DefaultScheduleStatus.STOPPED,
            description="Sundays at 03:00 UTC: everything that is not up to date is made again.",
        ),
        dg.ScheduleDefinition(
            name="nightly_evaluation",
            job=evaluate,
            # What is in the lake is measured as it is: at night nothing is trained because a setting has changed.
            run_config=config_of(evaluate, UpToDate(needs=False, again=True)),
            cron_schedule="0 1 * * *",
            execution_timezone=TIMEZONE,
            default_status=dg.DefaultScheduleStatus.STOPPED,
            description="Every night at 01:00 UTC: the models in the lake are measured again, and nothing is trained.",
        ),
    ]
