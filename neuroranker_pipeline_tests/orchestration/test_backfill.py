"""A backfill by a real daemon and code server on a persistent instance: one GPU step at a time, shards that fail alone."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import pytest
import yaml
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget

from neuroranker_pipeline.config.load import load_settings
from neuroranker_pipeline.orchestration.instance import TEMPLATE, worker_is_gone
from neuroranker_pipeline.orchestration.partitions import shard_keys
from neuroranker_pipeline.orchestration.planner import bring_up_to_date
from neuroranker_pipeline.resources.processes import PROCESS_TAG
from neuroranker_pipeline.resources.workspace import Workspace
from neuroranker_pipeline_tests.orchestration import shards

REPOSITORY = Path(__file__).parents[2]
SHARDS = shard_keys("queries", load_settings("smoke", shards.OVERRIDES))
DAMAGED, KILLED = "gate", "test"  # the shards whose input is damaged, and whose process is killed
PATIENCE = 300.0  # seconds, on a busy machine
# What `dagster-daemon run` does, with backfills looked at every second in place of every thirty.
DAEMON = """
import dagster._daemon.controller as controller
controller.DEFAULT_DAEMON_INTERVAL_SECONDS = 1
from dagster._daemon.cli import main
main()
"""
BACKFILL = """
mutation($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message }
  }
}
"""
FROM_FAILURE = """
mutation($params: ReexecutionParams!) {
  reexecutePartitionBackfill(reexecutionParams: $params) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message }
  }
}
"""
LAUNCH = """
mutation($params: ExecutionParams!) {
  launchPipelineExecution(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  }
}
"""
STEP_BEGINS = {dg.DagsterEventType.STEP_START, dg.DagsterEventType.STEP_RESTARTED}
STEP_ENDS = {
    dg.DagsterEventType.STEP_SUCCESS,
    dg.DagsterEventType.STEP_FAILURE,
    dg.DagsterEventType.STEP_UP_FOR_RETRY,
    dg.DagsterEventType.RUN_FAILURE,
}
T = TypeVar("T")


def until(what: str, found: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + PATIENCE
    while not (value := found()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)
    return value


@dataclass
class Deployment:
    """An instance, and a web server's view of the code location."""

    instance: dg.DagsterInstance
    workspace: Workspace
    context: WorkspaceProcessContext

    def ask(self, query: str, **params: Any) -> dict[str, Any]:
        from dagster_graphql.test.utils import execute_dagster_graphql

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Dagster's GraphQL uses what Dagster deprecates
            answer = execute_dagster_graphql(self.context.create_request_context(), query, {"params": params})
        (result,) = answer.data.values()
        assert "Success" in result["__typename"], result
        return result

    def backfill(self, asset: str, partitions: Sequence[str]) -> str:
        """Launch a backfill as the UI does; returns its id."""
        return self.ask(BACKFILL, assetSelection=[{"path": [asset]}], partitionNames=list(partitions))["backfillId"]

    def launch(self, asset: str, tags: Mapping[str, str]) -> str:
        """Materialize an asset as the UI does; returns the run's id."""
        selector = {
            "repositoryName": "__repository__",
            "repositoryLocationName": "shards",
            "pipelineName": "__ASSET_JOB",
            "assetSelection": [{"path": [asset]}],
        }
        given = {"tags": [{"key": key, "value": value} for key, value in tags.items()]}
        return self.ask(LAUNCH, selector=selector, executionMetadata=given, mode="default")["run"]["runId"]

    def ended(self, backfill: str) -> str:
        """Wait for the end of a backfill; returns its status."""

        def status() -> str | None:
            known = self.instance.get_backfill(backfill)
            return known.status.value if known and known.status.value.startswith("COMPLETED") else None

        return until(f"the end of backfill {backfill}", status)

    def runs(self, backfill: str) -> dict[str, list[dg.DagsterRun]]:
        """The runs of a backfill by partition, oldest first."""
        found: dict[str, list[dg.DagsterRun]] = {}
        for run in reversed(self.instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill}))):
            shard = run.tags["dagster/asset_partition_range_start"]  # a range of one
            assert shard == run.tags["dagster/asset_partition_range_end"]
            found.setdefault(shard, []).append(run)
        return found

    def latest(self, asset: str) -> dict[str, str]:
        """The run that made each partition's latest materialization."""
        records = self.instance.fetch_materializations(dg.AssetKey(asset), limit=100).records
        return {str(record.partition_key): record.run_id for record in reversed(records)}

    def gpu_steps(self) -> list[tuple[float, float, str]]:
        """When each step in the pool `gpu` began and ended, by the event log, in the order of their begin."""
        steps = []
        for run in self.instance.get_runs():
            began: float | None = None
            for entry in self.instance.all_logs(run.run_id, of_type=STEP_BEGINS | STEP_ENDS):
                assert entry.dagster_event is not None
                kind = entry.dagster_event.event_type
                if kind in STEP_BEGINS and entry.step_key in ("doubled", "trained"):
                    began = entry.timestamp
                elif kind in STEP_ENDS and began is not None:
                    steps.append((began, entry.timestamp, run.run_id))
                    began = None
        return sorted(steps)


def write_home(home: Path) -> None:
    """The shipped ``dagster.yaml``, with all its limits, that looks more often."""
    config = yaml.safe_load(TEMPLATE.read_text())
    config["run_coordinator"]["config"]["dequeue_interval_seconds"] = 1
    config["run_monitoring"] |= {"poll_interval_seconds": 1, "free_slots_after_run_end_seconds": 1}
    home.mkdir()
    (home / "dagster.yaml").write_text(yaml.safe_dump(config))


def end(process: subprocess.Popen) -> None:
    """A code server may wait for a call that nobody will make again."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    root = tmp_path_factory.mktemp("deployment")
    write_home(root / "home")
    socket = root / "code.sock"
    (root / "workspace.yaml").write_text(f"load_from: [{{grpc_server: {{socket: {socket}, location_name: shards}}}}]")
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(root / "home"),
        "NEURORANKER_LAKE": str(root / "lake"),
        "PYTHONPATH": str(REPOSITORY),
        "DAGSTER_EVENT_LOG_CONSUMER_DAEMON_INTERVAL_SECONDS": "1",
    }
    server = [sys.executable, "-m", "dagster", "api", "grpc", "--socket", str(socket), "-m", shards.__name__]
    daemon = [sys.executable, "-c", DAEMON, "run", "-w", str(root / "workspace.yaml")]
    with (
        (root / "log").open("ab") as log,
        dg.DagsterInstance.from_config(str(root / "home")) as instance,  # its tables are there before the others start
        ExitStack() as stack,
    ):
        for command in (server, daemon):
            process = subprocess.Popen(command, env=environment, cwd=root, stdout=log, stderr=log)
            stack.callback(end, process)
        until("the code server", socket.exists)
        target = WorkspaceFileTarget([str(root / "workspace.yaml")])
        context = stack.enter_context(WorkspaceProcessContext(instance, target))
        yield Deployment(instance, shards.workspace(str(root / "lake")), context)


@dataclass
class Story:
    """A backfill in which one shard's input is damaged and the process of another is killed, and how it ended; and a run
    of :func:`shards.endless` that may take two seconds."""

    backfill: str
    status: str
    endless: str


@pytest.fixture(scope="module")
def story(deployment: Deployment) -> Story:
    workspace, instance = deployment.workspace, deployment.instance
    list(bring_up_to_date([shards.lengths], workspace, instance))
    damaged = next(workspace.lake.read("lengths", DAMAGED).glob("*.parquet"))
    damaged.rename(damaged.with_suffix(".whole"))
    damaged.write_bytes(damaged.with_suffix(".whole").read_bytes()[:100])
    backfill = deployment.backfill("doubled", SHARDS)
    endless = deployment.launch("endless", {"dagster/max_runtime": "2", "dagster/max_retries": "0"})

    def process() -> int | None:
        for run in deployment.runs(backfill).get(KILLED, []):
            if run.tags.get(PROCESS_TAG) and not run.is_finished:
                assert not worker_is_gone(run)
                return int(run.tags[PROCESS_TAG].partition(":")[0])
        return None

    until("the first run", lambda: deployment.runs(backfill))
    list(bring_up_to_date([shards.trained], workspace, instance))  # it wants the GPU too, and stands in no queue
    os.kill(until("the shard to be killed", process), signal.SIGKILL)
    return Story(backfill, deployment.ended(backfill), endless)


def test_never_two_steps_hold_the_gpu(deployment: Deployment, story: Story) -> None:
    steps = deployment.gpu_steps()
    runs = {run for _, _, run in steps}
    assert len(runs) == len(SHARDS) + 2, "every shard, the one that was killed again, and the planner's"
    for (began, ended, run), (next_began, _, next_run) in itertools.pairwise(steps):
        assert began < ended <= next_began, f"{run} and {next_run} overlap"


def test_a_run_of_a_backfill_carries_the_tags_of_its_step(deployment: Deployment, story: Story) -> None:
    for runs in deployment.runs(story.backfill).values():
        for run in runs:
            assert run.tags["neuroranker/device"] == "gpu"
            assert int(run.tags["dagster/priority"]) > 0
            assert int(run.tags["dagster/max_runtime"]) > 0


def test_a_shard_whose_process_dies_is_run_again_alone(deployment: Deployment, story: Story) -> None:
    runs = deployment.runs(story.backfill)
    assert {shard: len(found) for shard, found in runs.items()} == {**dict.fromkeys(SHARDS, 1), KILLED: 2}
    killed, again = runs[KILLED]
    assert killed.status == dg.DagsterRunStatus.FAILURE
    assert again.status == dg.DagsterRunStatus.SUCCESS
    assert again.parent_run_id == killed.run_id
    assert again.tags[PROCESS_TAG] != killed.tags[PROCESS_TAG]
    assert not deployment.instance.event_log_storage.get_concurrency_info("gpu").claimed_slots


def test_a_shard_that_fails_is_tried_again_in_its_run_and_then_not(deployment: Deployment, story: Story) -> None:
    assert story.status == "COMPLETED_FAILED"
    (failed,) = deployment.runs(story.backfill)[DAMAGED]
    assert failed.status == dg.DagsterRunStatus.FAILURE
    assert failed.tags["dagster/will_retry"] == "false"
    retries = deployment.instance.all_logs(failed.run_id, of_type=dg.DagsterEventType.STEP_UP_FOR_RETRY)
    assert len(retries) == load_settings("smoke").retries.limit


def test_the_failed_shard_alone_is_made_when_its_input_is_mended(deployment: Deployment, story: Story) -> None:
    before = deployment.latest("doubled")
    assert set(before) == {*SHARDS} - {DAMAGED}
    folder = deployment.workspace.lake.read("lengths", DAMAGED)
    (whole,) = folder.glob("*.whole")
    whole.rename(whole.with_suffix(".parquet"))
    again = deployment.ask(FROM_FAILURE, parentRunId=story.backfill, strategy="FROM_FAILURE")["backfillId"]
    assert deployment.ended(again) == "COMPLETED_SUCCESS"
    assert {shard: len(runs) for shard, runs in deployment.runs(again).items()} == {DAMAGED: 1}
    after = deployment.latest("doubled")
    assert {shard: run for shard, run in after.items() if shard != DAMAGED} == before
    assert after[DAMAGED] == deployment.runs(again)[DAMAGED][0].run_id
    assert all(deployment.workspace.lake.usable("doubled", shard).run_id == run for shard, run in after.items())


def test_a_run_that_takes_longer_than_its_tag_allows_is_stopped(deployment: Deployment, story: Story) -> None:
    def finished() -> dg.DagsterRun | None:
        run = deployment.instance.get_run_by_id(story.endless)
        return run if run and run.is_finished else None

    run = until("the end of the endless run", finished)
    assert run.status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED), "whichever is reported first"
    messages = [entry.message for entry in deployment.instance.all_logs(run.run_id)]
    assert any("maximum runtime of 2 seconds" in message for message in messages)
