"""The nightly evaluation of the finished graph, run from the command line as the daemon runs it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
import yaml

from neuroranker_pipeline.assets import ASSETS
from neuroranker_pipeline.config.load import load_settings
from neuroranker_pipeline.orchestration.instance import TEMPLATE
from neuroranker_pipeline.orchestration.jobs import graph_jobs, parts_of
from neuroranker_pipeline.orchestration.schedules import graph_schedules
from neuroranker_pipeline.resources.lake import Lake, label
from neuroranker_pipeline.resources.workspace import Workspace
from neuroranker_pipeline_tests.e2e.conftest import PROFILE, Graph

pytestmark = pytest.mark.e2e


def versions(lake: Lake) -> dict[str, str]:
    pairs = [(asset.name, key) for asset in ASSETS for key in asset.partitions(load_settings(PROFILE))]
    return {label(*pair): lake.usable(*pair).version for pair in pairs}


def run(job: str, graph: Graph, home: Path, lake: Path, *options: str) -> str:
    command = ["-m", "dagster", "job", "execute", "-m", "neuroranker_pipeline.definitions", "-j", job, *options]
    environment = {
        **graph.environment,
        "DAGSTER_HOME": str(home),
        "NEURORANKER_LAKE": str(lake),
        "NEURORANKER_PROFILE": PROFILE,
    }
    done = subprocess.run(
        [sys.executable, *command],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_night_measures_again_and_the_release_stays(graph: Graph, tmp_path: Path) -> None:
    home, root = tmp_path / "home", tmp_path / "lake"
    home.mkdir()
    shutil.copyfile(TEMPLATE, home / "dagster.yaml")
    shutil.copytree(graph.root / "lake", root, ignore=shutil.ignore_patterns(".dagster"))
    lake = Lake(root, PROFILE)
    before = versions(lake)
    (nightly,) = [schedule for schedule in graph_schedules(graph_jobs(ASSETS)) if schedule.name == "nightly_evaluation"]
    with dg.build_schedule_context(scheduled_execution_time=datetime(2026, 3, 1, 1, tzinfo=UTC)) as tick:
        (request,) = nightly.evaluate_tick(tick).run_requests or []
    (tmp_path / "night.yaml").write_text(yaml.safe_dump(dict(request.run_config)))
    run(nightly.job_name, graph, home, root, "-c", str(tmp_path / "night.yaml"))
    after = versions(lake)
    evaluation = {asset.name for asset in parts_of(ASSETS)["evaluate"]}
    assert {pair.partition("[")[0] for pair in after if after[pair] != before[pair]} == evaluation

    workspace = Workspace(profile=PROFILE, lake_root=str(root))
    for asset in ASSETS:
        for key in asset.partitions(workspace.settings):
            assert asset.fresh(workspace, key), "the same measures leave the decision and the Bento as they are"
