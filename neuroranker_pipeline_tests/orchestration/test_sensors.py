"""The sensors: new raw data is built from once, a failed run is put on record, and cheap tables follow their inputs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from neuroranker_pipeline.assets import ASSETS
from neuroranker_pipeline.assets.corpus import raw_dataset, raw_version
from neuroranker_pipeline.datasets import prepare
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.orchestration.instance import end_dead_runs
from neuroranker_pipeline.orchestration.jobs import JOB_TAG, WHOLE_GRAPH
from neuroranker_pipeline.orchestration.sensors import changed_inputs, describe, failed_runs, new_raw_data
from neuroranker_pipeline.resources.failures import WEBHOOK_VARIABLE
from neuroranker_pipeline.resources.processes import PROCESS_TAG
from neuroranker_pipeline.resources.workspace import Workspace
from neuroranker_pipeline_tests.orchestration.collection import PAIRS, Collection
from neuroranker_pipeline_tests.resources.hook import Hook, webhook


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    return Collection(tmp_path)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


class Ticks:
    """The ticks of the sensor for new raw data, each with the cursor that the one before left."""

    def __init__(self, collection: Collection):
        self.collection = collection
        self.cursor: str | None = None

    def __call__(self) -> dg.RunRequest | str:
        """What the next tick requests, or why it requests nothing."""
        resources = {"workspace": self.collection.workspace}
        with dg.build_sensor_context(cursor=self.cursor, resources=resources) as context:
            data = new_raw_data.evaluate_tick(context)
        self.cursor = data.cursor or self.cursor
        requests = data.run_requests or []
        if requests:
            (found,) = requests
            return found
        return data.skip_message or ""

    def requested(self) -> dg.RunRequest:
        """What the second look at new data requests."""
        assert "new raw data" in str(self()), "the first look only takes note"
        found = self()
        assert isinstance(found, dg.RunRequest)
        return found


def test_touched_data_is_built_from_and_nothing_else_is_made(
    collection: Collection, instance: dg.DagsterInstance
) -> None:
    ticks, job = Ticks(collection), new_raw_data.job_name
    assert job == WHOLE_GRAPH
    first = ticks.requested()
    assert first.tags["neuroranker/raw_data"] == raw_version(collection.workspace)
    assert collection.run(job, instance, first.run_config, **first.tags).success
    assert list(collection.versions()) == PAIRS
    assert ticks() == "the raw data has not changed"

    os.utime(collection.folder / "queries.tsv")
    assert ticks() == "the raw data has not changed", "what counts is the content"

    before = collection.versions()
    collection.write(asked="who saw the")
    second = ticks.requested()
    assert ticks() == "the raw data has not changed", "it is requested once"
    assert collection.run(job, instance, second.run_config, **second.tags).success
    after = collection.versions()
    changed = {pair for pair, version in after.items() if version != before[pair]}
    followed = {pair for pair in PAIRS if pair.startswith("shard_text")}
    assert changed == {"queries", "qrels", "given_candidates", *followed, "summary"}
    assert after["passages"] == before["passages"]

    collection.write()
    third = ticks.requested()
    assert third.run_key != first.run_key, "data that changed back is new again"
    assert third.tags == first.tags


def test_data_that_is_built_already_is_not_built_again(collection: Collection, instance: dg.DagsterInstance) -> None:
    """When the sensor is switched on after a run on the command line."""
    collection.run("corpus", instance)
    ticks = Ticks(collection)
    assert ticks() == "the raw data has not changed"
    collection.write(asked="who saw the")
    assert isinstance(ticks.requested(), dg.RunRequest)


def test_data_that_still_arrives_is_waited_for(collection: Collection) -> None:
    ticks = Ticks(collection)
    for asked in ("one", "one two", "one two three"):
        collection.write(asked=asked)
        assert "it may still be arriving" in str(ticks())
    assert isinstance(ticks(), dg.RunRequest)


def test_a_log_of_queries_is_raw_data_too(collection: Collection) -> None:
    def version(complete: bool = False) -> str:
        workspace = collection.workspace
        workspace.overrides.extend(["unjudged.source=file", "unjudged.file=log.txt"])
        return raw_version(workspace, complete)

    with pytest.raises(BadInput, match=r"log\.txt is not there"):
        version(complete=True)
    found = {raw_version(collection.workspace), version()}
    for text in ("where do owls sleep", "where do foxes sleep"):
        (collection.root / "log.txt").write_text(text)
        found.add(version(complete=True))
    assert len(found) == 4


def test_missing_data_is_named(collection: Collection) -> None:
    (collection.folder / "qrels.tsv").unlink()
    ticks = Ticks(collection)
    reason = str(ticks())
    assert reason.startswith("the raw data cannot be read")
    assert "qrels.tsv" in reason


def test_files_are_read_again_only_when_they_changed(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    digest = hashlib.file_digest

    def noted(stream: Any, name: str) -> Any:
        read.append(Path(stream.name).name)
        return digest(stream, name)

    monkeypatch.setattr(prepare.hashlib, "file_digest", noted)
    ticks = Ticks(collection)
    ticks()
    assert set(read) == {"passages.tsv", "queries.tsv", "qrels.tsv"}
    assert len(read) == 3
    read.clear()
    ticks()
    assert read == []
    (collection.folder / "qrels.tsv").write_text((collection.folder / "qrels.tsv").read_text() + "q0\tp1\n")
    ticks()
    assert read == ["qrels.tsv"]


def failed(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.RunFailureSensorContext:
    """The context in which the sensor hears of a failed run."""
    records = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE).records
    event = records[-1].event_log_entry.dagster_event
    assert event is not None
    context = dg.build_run_status_sensor_context("failed_runs", event, instance, run)
    return context.for_run_failure()


def test_a_failed_shard_and_its_job_are_put_on_record(collection: Collection, instance: dg.DagsterInstance) -> None:
    repository, workspace = collection.definitions().get_repository_def(), collection.workspace

    def tick(cursor: str | None) -> str | None:
        with dg.build_sensor_context(
            instance, cursor, repository_def=repository, sensor_name="failed_runs", resources={"workspace": workspace}
        ) as context:
            return failed_runs.evaluate_tick(context).cursor

    collection.fail("dev")
    collection.run("retrieval", instance)  # all but that shard
    with dg.DagsterInstance.local_temp() as instance:
        begun = tick(None)
        result = collection.run("retrieval", instance)
        for _ in range(3):  # Dagster may take one failed run a tick
            begun = tick(begun)
    folder = Path(workspace.lake.base) / "failures"
    records = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    by_name = {record["what"]: record for record in records}
    assert set(by_name) == {"shard_text[dev]", "job retrieval"}
    shard = by_name["shard_text[dev]"]
    assert "a disk that fails for dev" in shard["reason"]
    assert (shard["partition"], shard["profile"], shard["steps"]) == ("dev", "animals", ["shard_text"])
    assert shard["tags"][JOB_TAG] == result.run_id
    assert shard["started_at"] <= shard["failed_at"]
    assert shard["seconds"] >= 0
    assert by_name["job retrieval"]["reason"].startswith("shard_text[dev] failed: ")
    lines = [file.read_text() for file in sorted(folder.glob("*.md"))]
    assert all(line.count("\n") == 1 and line.startswith("- 20") for line in lines)
    assert any("**shard_text[dev]** after" in line and f"`{shard['run_id']}`" in line for line in lines)
    assert not list(folder.glob(".*")), "nothing unfinished is left"


def test_a_failed_check_is_recorded_with_its_evidence(collection: Collection, instance: dg.DagsterInstance) -> None:
    (collection.folder / "queries.tsv").write_text("qid\ttext\tsplit\nq1\twhere is the cat\ttrain\n")
    (collection.folder / "qrels.tsv").write_text("qid\tpid\nq1\tp1\n")
    result = collection.run("corpus", instance)
    (run,) = instance.get_runs(dg.RunsFilter(tags={JOB_TAG: result.run_id}, statuses=[dg.DagsterRunStatus.FAILURE]))
    record = describe(failed(instance, run), "animals")
    assert record.what == "queries"
    (check,) = record.failed_checks
    assert (check["asset"], check["name"]) == ("queries", "queries_are_valid")
    assert "dev" in check["evidence"]["problems"]
    assert json.loads(record.to_json())["failed_checks"] == [dict(check)]


def test_a_stopped_run_is_recorded(collection: Collection, instance: dg.DagsterInstance) -> None:
    collection.fail("stop:train-00")
    result = collection.run("retrieval", instance)
    tags = {JOB_TAG: result.run_id}
    (run,) = instance.get_runs(dg.RunsFilter(tags=tags, statuses=[dg.DagsterRunStatus.FAILURE]))
    record = describe(failed(instance, run), "animals")
    assert (record.what, record.reason) == (
        "shard_text[train-00]",
        "it was stopped, by a signal or by whoever runs it",
    )


def test_a_killed_run_is_recorded(collection: Collection, instance: dg.DagsterInstance) -> None:
    job = collection.jobs["corpus"]
    run = instance.create_run_for_job(job, tags={PROCESS_TAG: "999999999:1.00"})
    start = dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, job_name=job.name)
    instance.report_dagster_event(start, run_id=run.run_id)
    assert end_dead_runs(instance) == [run.run_id]
    record = describe(failed(instance, run), "animals")
    assert record.what == "job corpus"
    assert "The process that ran this was killed." in record.reason
    assert record.steps == []


def test_the_webhook_gets_the_same_json(
    collection: Collection, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection.fail("dev")
    result = collection.run("retrieval", instance)
    with webhook() as address:
        monkeypatch.setenv(WEBHOOK_VARIABLE, f"{address}/204/secret")
        failed_runs(failed(instance, result.dagster_run), workspace=collection.workspace)
    ((kind, body),) = Hook.posted
    assert kind == "application/json"
    (file,) = (Path(collection.workspace.lake.base) / "failures").glob("*.json")
    assert body == json.loads(file.read_text())
    assert body["run_id"] == result.run_id


def test_a_webhook_that_does_not_answer_fails_nothing(
    collection: Collection, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection.fail("dev")
    result = collection.run("retrieval", instance)
    with webhook() as address:
        monkeypatch.setenv(WEBHOOK_VARIABLE, f"{address}/500/secret")
        failed_runs(failed(instance, result.dagster_run), workspace=collection.workspace)
    assert len(Hook.posted) == 1
    assert list((Path(collection.workspace.lake.base) / "failures").glob("*.json"))


NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
TABLES = {"passages", "queries", "qrels", "given_candidates", "unjudged_queries"}


class Automation:
    """The ticks of the automation conditions over the whole graph."""

    def __init__(self, instance: dg.DagsterInstance, tmp_path: Path):
        workspace = Workspace(profile="smoke", lake_root=str(tmp_path))
        self.instance = instance
        self.definitions = dg.Definitions(
            assets=[raw_dataset, *(asset.to_dagster(workspace.settings) for asset in ASSETS)],
            resources={"workspace": workspace},
        )
        self.selection = changed_inputs.asset_selection
        self.cursor: Any = None

    def __call__(self, minutes: int) -> set[str]:
        """The assets that a tick so long after noon requests."""
        result = dg.evaluate_automation_conditions(
            self.definitions,
            self.instance,
            asset_selection=self.selection,
            evaluation_time=NOON + timedelta(minutes=minutes),
            cursor=self.cursor,
        )
        self.cursor = result.cursor
        keys = self.definitions.resolve_asset_graph().get_all_asset_keys()
        return {key.to_user_string() for key in keys if result.get_num_requested(key)}

    def observe(self, version: str) -> None:
        tags = {DATA_VERSION_TAG: version}
        self.instance.report_runless_asset_event(dg.AssetObservation("raw_dataset", tags=tags))

    def make(self, *names: str) -> None:
        for name in names:
            self.instance.report_runless_asset_event(dg.AssetMaterialization(name))


def test_cheap_tables_follow_the_raw_data_and_nothing_else_does(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    tick = Automation(instance, tmp_path)
    assert tick(5) == set()
    assert tick(61) == {"raw_dataset"}, "once an hour, somebody looks"
    tick.observe("one")
    assert tick(62) == TABLES
    tick.make(*TABLES)
    assert tick(63) == set(), "no index, no model: what costs hours is not made by itself"
    tick.observe("one")
    assert tick(64) == set(), "the same version is nothing new"
    tick.observe("two")
    assert tick(65) == TABLES
    assert tick(121) == {"raw_dataset"}


def test_only_what_needs_no_gpu_and_no_jvm_runs_by_itself() -> None:
    automated = {asset.name for asset in ASSETS if asset.automation}
    assert automated == TABLES
    assert all(asset.pool is None and asset.shards is None for asset in ASSETS if asset.automation)
    assert changed_inputs.default_status == dg.DefaultSensorStatus.STOPPED


def test_the_report_and_the_bento_may_grow_only_so_old() -> None:
    policies = {asset.name: asset.freshness for asset in ASSETS if asset.freshness}
    assert {"eval_report", "ranker_bento"} <= policies.keys()
    for policy in policies.values():
        assert policy.warn_window.to_timedelta() < policy.fail_window.to_timedelta()
    assert policies["eval_report"].fail_window.to_timedelta() < policies["ranker_bento"].fail_window.to_timedelta()
