"""The persistent Dagster instance of a profile, and what to do after a run that was killed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import dagster as dg
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES
from dagster._core.storage.tags import GRPC_INFO_TAG

from neuroranker_pipeline.resources.processes import PROCESS_TAG, is_alive
from neuroranker_pipeline.resources.workspace import Workspace

TEMPLATE = Path(__file__).parents[1] / "config" / "dagster.yaml"
# What earlier versions put there: a home that still has it, unedited, gets the present one.
FORMER_TEMPLATES = {"5401727b200062a64aaef9e400cc7c17c423d29f3f43de816b343b000d49d047"}
SERVER_SECONDS = 5  # for a code server on this machine to answer


def dagster_home(workspace: Workspace) -> Path:
    """``$DAGSTER_HOME``, else ``.dagster/<profile>`` in the lake (in ``./data_lake`` when the lake is not local).

    The folder is made, with its ``dagster.yaml``, if it is not there.
    """
    chosen = os.environ.get("DAGSTER_HOME")
    root = Path(workspace.lake_root) if workspace.lake.is_local else Path("data_lake")
    home = Path(chosen) if chosen else root.resolve() / ".dagster" / workspace.settings.profile
    home.mkdir(parents=True, exist_ok=True)
    config = home / "dagster.yaml"
    if not config.exists() or hashlib.sha256(config.read_bytes()).hexdigest() in FORMER_TEMPLATES:
        shutil.copyfile(TEMPLATE, config)
    return home


def open_instance(workspace: Workspace) -> dg.DagsterInstance:
    """The profile's persistent instance, cleared of what killed runs left behind."""
    home = dagster_home(workspace)
    os.environ["DAGSTER_HOME"] = str(home)
    instance = dg.DagsterInstance.from_config(str(home))
    end_dead_runs(instance)
    return instance


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs failed whose process is gone, and free the pool slots they still hold; returns their ids.

    Without this, the next step in the same pool would wait for ever for a slot that nobody will give back.
    """
    ended = []
    for run in instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS_RUN_STATUSES)):
        if worker_is_gone(run):
            # In this order: a run that is marked as failed is never looked at again.
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            instance.report_run_failed(run, "The process that ran this was killed.")
            ended.append(run.run_id)
    return ended


def worker_is_gone(run: dg.DagsterRun) -> bool:
    """Whether the process that works on a run is known to be dead.

    A run of which a step has begun names its process. Before that, a run that the daemon launched names the code server
    that started it, which knows its processes. Whatever cannot be told from this machine is taken to be alive.
    """
    if tag := run.tags.get(PROCESS_TAG):
        return not is_alive(tag)
    # While it starts, the server may not have heard of it yet; run monitoring has a time limit for that.
    if run.status == dg.DagsterRunStatus.STARTED and (server := run.tags.get(GRPC_INFO_TAG)):
        return not _is_running(run.run_id, **json.loads(server))
    return False


def _is_running(
    run_id: str, host: str, port: int | None = None, socket: str | None = None, use_ssl: bool = False
) -> bool:
    """Whether the code server at an address runs a run; one that is slow, or on another machine and silent, might."""
    import grpc
    from dagster._grpc.client import DagsterGrpcClient
    from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
    from dagster._serdes import deserialize_value

    client = DagsterGrpcClient(host=host, port=port, socket=socket, use_ssl=use_ssl)
    try:
        answer = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run_id), timeout=SERVER_SECONDS)
    except DagsterUserCodeUnreachableError as error:
        cause = error.__cause__
        nobody_listens = isinstance(cause, grpc.RpcError) and cause.code() == grpc.StatusCode.UNAVAILABLE
        return not (nobody_listens and (socket is not None or host in ("localhost", "127.0.0.1", "::1")))
    return deserialize_value(answer, CanCancelExecutionResult).can_cancel
