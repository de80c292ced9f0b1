"""The persistent Dagster instance of a profile, and what to do after a run that was killed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import dagster as dg
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES

from neuroranker_pipeline.resources.processes import PROCESS_TAG, is_alive
from neuroranker_pipeline.resources.workspace import Workspace

TEMPLATE = Path(__file__).parents[1] / "config" / "dagster.yaml"


def dagster_home(workspace: Workspace) -> Path:
    """``$DAGSTER_HOME``, else ``.dagster/<profile>`` in the lake (in ``./data_lake`` when the lake is not local).

    The folder is made, with its ``dagster.yaml``, if it is not there.
    """
    chosen = os.environ.get("DAGSTER_HOME")
    root = Path(workspace.lake_root) if workspace.lake.is_local else Path("data_lake")
    home = Path(chosen) if chosen else root.resolve() / ".dagster" / workspace.settings.profile
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        shutil.copyfile(TEMPLATE, home / "dagster.yaml")
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
        tag = run.tags.get(PROCESS_TAG)
        if tag is None or is_alive(tag):  # without a tag, no step of ours has begun, and no slot is held
            continue
        # In this order: a run that is marked as failed is never looked at again.
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        instance.report_run_failed(run, "The process that ran this was killed.")
        ended.append(run.run_id)
    return ended
