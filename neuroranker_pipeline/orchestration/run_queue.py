"""What Dagster's run queue lacks: runs that carry the tags of their steps, and the death of their processes noticed.

``dagster.yaml`` names both classes, so the web server, the daemon and the code servers load them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext
from dagster._core.storage.tags import MAX_RUNTIME_SECONDS_TAG, PRIORITY_TAG

from neuroranker_pipeline.orchestration.instance import worker_is_gone
from neuroranker_pipeline.resources.processes import PROCESS_TAG

DEVICE_TAG = "neuroranker/device"


class StepTagsRunCoordinator(QueuedRunCoordinator):
    """Dagster's queue, of runs that carry what their steps say of their device, priority and longest run time.

    The queue's limits and run monitoring look at a run's tags alone, and a run from a backfill, a sensor or the asset graph
    has none of the assets' (https://github.com/dagster-io/dagster/issues/15752). Tags that a run was given win.
    """

    def submit_run(self, context: SubmitRunContext) -> dg.DagsterRun:
        run = context.dagster_run
        if run.execution_plan_snapshot_id:
            plan = self._instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id)
            steps = [step.tags or {} for step in plan.steps if step.key in plan.step_keys_to_execute]
            tags = {name: value for name, value in queue_tags(steps).items() if name not in run.tags}
            if PROCESS_TAG in run.tags:
                tags[PROCESS_TAG] = ""  # a retry inherits the tags of the run that failed; that process is not its own
            if tags:
                self._instance.add_run_tags(run.run_id, tags)
        return super().submit_run(context)


def queue_tags(steps: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What the tags of a run's steps mean for the run: on a GPU if any is, as urgent as the most urgent one, and all their
    times together, since they follow one another."""

    def given(tag: str) -> list[str]:
        return [step[tag] for step in steps if tag in step]

    tags = {}
    if devices := given(DEVICE_TAG):
        tags[DEVICE_TAG] = devices[0]
    if priorities := given(PRIORITY_TAG):
        tags[PRIORITY_TAG] = str(max(map(int, priorities)))
    if seconds := given(MAX_RUNTIME_SECONDS_TAG):
        tags[MAX_RUNTIME_SECONDS_TAG] = str(sum(map(int, seconds)))
    return tags


class WatchfulRunLauncher(DefaultRunLauncher):
    """Dagster's own launcher, whose run monitoring also hears of processes that died together with their code server.

    A code server reports the death of a process that it started. After a reboot nobody would, and the run would keep its
    place in the queue and its slot in a pool for ever.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        if worker_is_gone(run):
            return CheckRunHealthResult(WorkerStatus.FAILED, "the process that ran this was killed")
        return CheckRunHealthResult(WorkerStatus.RUNNING)
