"""The schedules: off until someone switches them on, in a named time zone, and each asks for the job it says."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget

from neuroranker_pipeline.assets import ASSETS
from neuroranker_pipeline.orchestration.jobs import graph_jobs
from neuroranker_pipeline.orchestration.schedules import graph_schedules
from neuroranker_pipeline_tests.orchestration.collection import GRAPH, Collection

SUNDAY = datetime(2026, 3, 1, 3, tzinfo=UTC)


def by_name(jobs: dict[str, dg.JobDefinition]) -> dict[str, dg.ScheduleDefinition]:
    return {schedule.name: schedule for schedule in graph_schedules(jobs)}


def request(schedule: dg.ScheduleDefinition, at: datetime) -> dg.RunRequest:
    with dg.build_schedule_context(scheduled_execution_time=at) as context:
        (found,) = schedule.evaluate_tick(context).run_requests or []
    return found


def test_they_are_off_and_say_when_they_run() -> None:
    schedules = by_name(graph_jobs(ASSETS))
    assert {name: (s.job_name, s.cron_schedule) for name, s in schedules.items()} == {
        "weekly_rebuild": ("whole_graph", "0 3 * * 0"),
        "nightly_evaluation": ("evaluate", "0 1 * * *"),
    }
    for schedule in schedules.values():
        assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
        assert schedule.execution_timezone == "UTC"
        assert "UTC" in (schedule.description or "")


def test_what_they_ask_for_is_valid() -> None:
    jobs = graph_jobs(ASSETS)
    for schedule in graph_schedules(jobs):
        found = request(schedule, SUNDAY)
        assert dg.validate_run_config(jobs[schedule.job_name], found.run_config)


def test_the_night_measures_again_and_builds_nothing(tmp_path: Path) -> None:
    collection, schedules = Collection(tmp_path), by_name(graph_jobs(GRAPH))
    weekly, nightly = (request(schedules[name], SUNDAY) for name in ("weekly_rebuild", "nightly_evaluation"))
    with dg.DagsterInstance.ephemeral() as instance:
        assert collection.run("whole_graph", instance, weekly.run_config).success
        before = collection.versions()
        collection.write(asked="who saw the")
        assert collection.run("evaluate", instance, nightly.run_config).success
        after = collection.versions()
        assert {pair for pair in after if after[pair] != before[pair]} == {"summary"}
        assert collection.run("whole_graph", instance, weekly.run_config).success
        changed = {pair for pair, version in collection.versions().items() if version != after[pair]}
    assert "queries" in changed, "the week's run sees the new data"
    assert "passages" not in changed


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkspaceProcessContext]:
    """The code location, served to a web server and daemon as `neuroranker dev` does, on an instance of its own."""
    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.local_temp() as instance:
        patch.setenv("NEURORANKER_PROFILE", "smoke")
        patch.setenv("NEURORANKER_LAKE", str(tmp_path_factory.mktemp("lake")))
        target = ModuleTarget("neuroranker_pipeline.definitions", None, None, "neuroranker")
        with WorkspaceProcessContext(instance, target) as context:
            yield context


SELECTOR = {"repositoryLocationName": "neuroranker", "repositoryName": "__repository__"}


def ask(deployment: WorkspaceProcessContext, query: str, **variables: Any) -> Any:
    """The answer of the web server's GraphQL."""
    from dagster_graphql.schema import create_schema

    result = create_schema().execute(query, context_value=deployment.create_request_context(), variables=variables)
    assert not result.errors, result.errors
    return result.data


STATE = """
query($selector: ScheduleSelector!) {
  scheduleOrError(scheduleSelector: $selector) {
    ... on Schedule { scheduleState { status nextTick { timestamp } } executionTimezone }
  }
}
"""
START = """
mutation($selector: ScheduleSelector!) {
  startSchedule(scheduleSelector: $selector) {
    __typename ... on ScheduleStateResult { scheduleState { status } } ... on PythonError { message }
  }
}
"""


def test_switching_one_on_shows_the_next_tick(deployment: WorkspaceProcessContext) -> None:
    selector = {**SELECTOR, "scheduleName": "weekly_rebuild"}
    before = ask(deployment, STATE, selector=selector)["scheduleOrError"]
    assert before["scheduleState"]["status"] == "STOPPED"
    assert before["scheduleState"]["nextTick"] is None
    assert ask(deployment, START, selector=selector)["startSchedule"]["scheduleState"]["status"] == "RUNNING"
    after = ask(deployment, STATE, selector=selector)["scheduleOrError"]
    tick = datetime.fromtimestamp(after["scheduleState"]["nextTick"]["timestamp"], UTC)
    assert (tick.weekday(), tick.hour, tick.minute) == (6, 3, 0)
    assert 0 < (tick - datetime.now(UTC)).total_seconds() <= 7 * 24 * 3600


SENSORS = """
query($selector: RepositorySelector!) {
  sensorsOrError(repositorySelector: $selector) {
    ... on Sensors { results { name description sensorState { status } targets { pipelineName } } }
  }
}
"""


def test_the_sensors_stand_there(deployment: WorkspaceProcessContext) -> None:
    found = ask(deployment, SENSORS, selector=SELECTOR)["sensorsOrError"]["results"]
    assert {sensor["name"]: sensor["sensorState"]["status"] for sensor in found} == {
        "new_raw_data": "STOPPED",
        "changed_inputs": "STOPPED",
        "failed_runs": "RUNNING",
    }
    assert all(sensor["description"] for sensor in found)
    targets = {sensor["name"]: [t["pipelineName"] for t in sensor["targets"] or ()] for sensor in found}
    assert targets["new_raw_data"] == ["whole_graph"]
