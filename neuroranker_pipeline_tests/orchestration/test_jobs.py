"""A job brings its part of the graph up to date: what is stale, a run each, and what is fresh not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from neuroranker_pipeline.assets import ASSETS
from neuroranker_pipeline.config.load import load_settings
from neuroranker_pipeline.orchestration import jobs as module
from neuroranker_pipeline.orchestration.jobs import (
    JOB_TAG,
    WHOLE_GRAPH,
    UpToDate,
    config_of,
    graph_jobs,
    parts_of,
    shard_jobs,
)
from neuroranker_pipeline.orchestration.planner import ASSET_TAG, one_at_a_time
from neuroranker_pipeline.resources.processes import PROCESS_TAG
from neuroranker_pipeline.resources.workspace import Workspace
from neuroranker_pipeline_tests.orchestration.collection import PAIRS, Collection


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    return Collection(tmp_path)


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def runs_of(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> list[dg.DagsterRun]:
    """The runs that a job's run started, in order."""
    return instance.get_runs(dg.RunsFilter(tags={JOB_TAG: result.run_id}), ascending=True)


def made_by(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> list[str]:
    return [run.tags[ASSET_TAG] for run in runs_of(instance, result)]


def step_failure(result: dg.ExecuteInProcessResult) -> dg.StepFailureData:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    return event.step_failure_data


def test_every_asset_has_one_job_beside_the_whole_graph() -> None:
    parts = parts_of(ASSETS)
    assert {"corpus", "retrieval", "train", "evaluate", "release", WHOLE_GRAPH} <= parts.keys()
    assert parts.pop(WHOLE_GRAPH) == list(ASSETS)
    assert sorted(asset.name for part in parts.values() for asset in part) == sorted(asset.name for asset in ASSETS)
    assert {asset.name for asset in parts["retrieval"]} == {"lucene_index", "bm25_parameters", "bm25_candidates"}
    assert "ranker_bento" in {asset.name for asset in parts["release"]}
    assert all(job.description for job in graph_jobs(ASSETS).values())


def test_tags_tell_the_queue_what_a_job_will_use() -> None:
    jobs = graph_jobs(ASSETS)
    assert jobs["train"].tags["neuroranker/device"] == "gpu"
    assert int(jobs["train"].tags["dagster/priority"]) > 0
    assert "neuroranker/device" not in jobs[WHOLE_GRAPH].tags
    for name, job in jobs.items():
        assert int(job.tags["dagster/max_runtime"]) > 0, name
        (node,) = job.nodes
        assert node.definition.pool == "graph", "jobs of one profile wait for one another"


def test_a_job_runs_what_is_stale_and_then_nothing(collection: Collection, instance: dg.DagsterInstance) -> None:
    first = collection.run(WHOLE_GRAPH, instance)
    assert first.success
    assert made_by(instance, first) == PAIRS
    assert all(run.status == dg.DagsterRunStatus.SUCCESS for run in runs_of(instance, first))
    versions = collection.versions()
    second = collection.run(WHOLE_GRAPH, instance)
    assert second.success
    assert made_by(instance, second) == ["summary"], "what has a freshness policy is answered from the lake"
    assert collection.versions() == versions
    event = instance.get_latest_materialization_event(dg.AssetKey("summary"))
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["reused"].value is True
    assert event.run_id != collection.workspace.lake.usable("summary").run_id
    (output,) = [event for event in first.all_events if event.is_successful_output]
    assert output.step_output_data.metadata["runs"].value == len(PAIRS)


def test_a_part_comes_with_what_it_needs(collection: Collection, instance: dg.DagsterInstance) -> None:
    result = collection.run("retrieval", instance)
    assert made_by(instance, result) == ["queries", *(pair for pair in PAIRS if pair.startswith("shard_text"))]


def test_a_part_alone_takes_what_is_there(collection: Collection, instance: dg.DagsterInstance) -> None:
    alone = config_of(collection.jobs["evaluate"], UpToDate(needs=False, again=True))
    early = collection.run("evaluate", instance, alone)
    assert not early.success
    assert "shard_text[train-00] has not been made yet" in step_failure(early).error.to_string()
    collection.run(WHOLE_GRAPH, instance)
    before = collection.versions()
    collection.write(asked="who saw the")  # nothing above the part is looked at
    again = collection.run("evaluate", instance, alone)
    assert again.success
    changed = {pair for pair, version in collection.versions().items() if before[pair] != version}
    assert changed == {"summary"}


def test_a_shard_that_fails_is_run_again_alone(collection: Collection, instance: dg.DagsterInstance) -> None:
    collection.fail("dev", "gate")
    result = collection.run(WHOLE_GRAPH, instance)
    assert not result.success
    failure = step_failure(result)
    for shard in ("dev", "gate"):
        assert f"a disk that fails for {shard}" in failure.user_failure_data.description
    assert "shard_text[test] | made" in failure.user_failure_data.metadata["assets"].value
    before = collection.versions()
    assert set(before) == set(PAIRS) - {"shard_text[dev]", "shard_text[gate]", "summary"}
    collection.fail()
    assert made_by(instance, collection.run(WHOLE_GRAPH, instance)) == [
        "shard_text[dev]",
        "shard_text[gate]",
        "summary",
    ]
    after = collection.versions()
    assert {pair: after[pair] for pair in before} == before


def test_a_job_that_is_stopped_begins_nothing_more(collection: Collection, instance: dg.DagsterInstance) -> None:
    collection.fail("stop:train-00")
    result = collection.run("retrieval", instance)
    assert not result.success
    assert made_by(instance, result) == ["queries", "shard_text[train-00]"]


def test_a_job_waits_for_a_run_on_the_command_line(
    collection: Collection, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOKS", 1)
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LOOKS", 0)
    with one_at_a_time(collection.workspace):
        result = collection.run("corpus", instance)
    assert not result.success
    assert len([event for event in result.all_events if event.is_step_up_for_retry]) == 1
    assert "is being run by another process" in step_failure(result).error.to_string()
    assert collection.versions() == {}


def test_runs_name_their_process(collection: Collection, instance: dg.DagsterInstance) -> None:
    result = collection.run("corpus", instance)
    for run_id in (result.run_id, *(run.run_id for run in runs_of(instance, result))):
        run = instance.get_run_by_id(run_id)
        assert run is not None
        assert PROCESS_TAG in run.tags


def test_every_partitioned_asset_has_a_job_for_its_shards() -> None:
    workspace = Workspace(profile="smoke")
    definitions = dg.Definitions(
        assets=[asset.to_dagster(workspace.settings) for asset in ASSETS],
        jobs=shard_jobs(ASSETS),
        resources={"workspace": workspace},
    )
    for asset in ASSETS:
        if asset.shards:
            job = definitions.resolve_job_def(f"{asset.name}_shards")
            assert job.partitions_def is not None
            assert job.partitions_def.get_partition_keys() == asset.partitions(load_settings("smoke"))
            assert (job.tags.get("neuroranker/device") == "gpu") == (asset.pool == "gpu")
