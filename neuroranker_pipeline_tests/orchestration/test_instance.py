"""The shipped ``dagster.yaml``, the tags of queued runs, and runs whose process is dead."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.tags import GRPC_INFO_TAG

from neuroranker_pipeline.orchestration import instance as module
from neuroranker_pipeline.orchestration.instance import TEMPLATE, dagster_home, end_dead_runs, worker_is_gone
from neuroranker_pipeline.orchestration.run_queue import StepTagsRunCoordinator, WatchfulRunLauncher, queue_tags
from neuroranker_pipeline.resources.processes import PROCESS_TAG, is_alive, process_tag
from neuroranker_pipeline.resources.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return Workspace(profile="smoke", lake_root=str(tmp_path / "lake"))


@pytest.fixture
def instance(workspace: Workspace) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(dagster_home(workspace))) as instance:
        yield instance


@dg.asset
def anything() -> None: ...


JOB = dg.Definitions(assets=[anything]).resolve_implicit_global_asset_job_def()


def started(instance: dg.DagsterInstance, **tags: str) -> dg.DagsterRun:
    run = instance.create_run_for_job(JOB, tags=tags)
    event = dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, job_name=JOB.name)
    instance.report_dagster_event(event, run_id=run.run_id)
    reloaded = instance.get_run_by_id(run.run_id)
    assert reloaded is not None
    return reloaded


def test_limits_queue_monitoring_and_retries(instance: dg.DagsterInstance) -> None:
    config = instance.get_concurrency_config()
    assert config.pool_config.default_pool_limit == 1
    assert config.run_queue_config is not None
    assert config.run_queue_config.tag_concurrency_limits == [{"key": "neuroranker/device", "value": "gpu", "limit": 1}]
    assert isinstance(instance.run_coordinator, StepTagsRunCoordinator)
    assert isinstance(instance.run_launcher, WatchfulRunLauncher)
    assert instance.run_monitoring_enabled
    assert instance.run_monitoring_max_runtime_seconds > 0
    assert instance.run_retries_enabled
    assert instance.run_retries_max_retries == 2
    assert not instance.run_retries_retry_on_asset_or_op_failure, "a failed check is not run again for ever"


def test_a_home_keeps_what_its_owner_wrote_and_follows_us_otherwise(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dagster_home(workspace) / "dagster.yaml"
    assert config.read_bytes() == TEMPLATE.read_bytes()
    config.write_text("telemetry: {enabled: true}\n")
    dagster_home(workspace)
    assert config.read_text() == "telemetry: {enabled: true}\n"
    config.write_text("telemetry: {enabled: false}\n")
    monkeypatch.setattr(module, "FORMER_TEMPLATES", {hashlib.sha256(config.read_bytes()).hexdigest()})
    dagster_home(workspace)
    assert config.read_bytes() == TEMPLATE.read_bytes()


GPU_STEP = {"neuroranker/device": "gpu", "dagster/priority": "1", "dagster/max_runtime": "60"}


@pytest.mark.parametrize(
    ("steps", "tags"),
    [
        ([], {}),
        ([{}, {"dagster/kind": "x"}], {}),
        ([GPU_STEP, {}], GPU_STEP),
        (
            [GPU_STEP, {"dagster/priority": "10", "dagster/max_runtime": "5"}],
            {**GPU_STEP, "dagster/priority": "10", "dagster/max_runtime": "65"},
        ),
    ],
)
def test_a_run_is_as_urgent_as_its_most_urgent_step_and_as_long_as_all(
    steps: list[dict[str, str]], tags: dict[str, str]
) -> None:
    assert queue_tags(steps) == tags


def test_processes_of_this_machine_and_of_others() -> None:
    assert is_alive(process_tag())
    code = "from neuroranker_pipeline.resources.processes import process_tag; print(process_tag())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert not is_alive(ended)
    pid, _, _ = process_tag().partition(":")
    assert not is_alive(f"{pid}:1.00@{socket.gethostname()}"), "another process had this pid"
    assert is_alive(f"{pid}:1.00@some-other-machine"), "nobody can tell"


def test_a_run_that_a_dead_code_server_started_is_ended(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    """The daemon, its code server and the run were killed before a step could name its process."""
    gone = json.dumps({"host": "localhost", "socket": str(tmp_path / "gone.sock")})
    remote = json.dumps({"host": "code.invalid", "port": 4000})
    killed, elsewhere = (started(instance, **{GRPC_INFO_TAG: server}) for server in (gone, remote))
    working = started(instance, **{GRPC_INFO_TAG: gone, PROCESS_TAG: process_tag()})
    assert [worker_is_gone(run) for run in (killed, elsewhere, working)] == [True, False, False]
    assert end_dead_runs(instance) == [killed.run_id]
    assert instance.get_run_by_id(working.run_id).status == dg.DagsterRunStatus.STARTED  # type: ignore[union-attr]


def test_monitoring_hears_of_a_dead_process(instance: dg.DagsterInstance) -> None:
    dead = started(instance, **{PROCESS_TAG: f"{os.getpid()}:1.00@{socket.gethostname()}"})
    alive = started(instance, **{PROCESS_TAG: process_tag()})
    launcher = instance.run_launcher
    assert launcher.supports_check_run_worker_health
    assert [launcher.check_run_worker_health(run).status.value for run in (dead, alive)] == ["FAILED", "RUNNING"]
