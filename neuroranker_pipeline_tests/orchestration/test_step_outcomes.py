"""What the run metrics hear of a step: that it was made, from what; that it was reused; that it failed, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.orchestration.planner import bring_up_to_date
from neuroranker_pipeline_tests.orchestration.test_planner import Toy


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "lake")


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp() as instance:
        yield instance


def run(toy: Toy, instance: dg.DagsterInstance, *overrides: str) -> None:
    """Bring the first asset up to date: one Dagster run is enough here."""
    list(bring_up_to_date(toy.assets[:1], toy.workspace(*overrides), instance))


def test_a_step_is_made_then_reused_without_a_run_and_with_one(toy: Toy, instance: dg.DagsterInstance) -> None:
    workspace = toy.workspace()
    run(toy, instance)
    run(toy, instance)
    source = toy.assets[0].to_dagster(workspace.settings)
    launched = dg.materialize([source], instance=instance, resources={"workspace": workspace})
    assert launched.success
    steps = workspace.metrics.query("SELECT asset, outcome, run_id FROM steps ORDER BY started_at")[1]
    made = workspace.lake.usable("source").run_id
    assert steps == [("source", "made", made), ("source", "reused", ""), ("source", "reused", launched.run_id)]


def test_a_failed_step_leaves_its_reason_on_one_line(toy: Toy, instance: dg.DagsterInstance) -> None:
    toy.faults = {"source": [BadInput("queries.tsv:7: no tab\nin it")]}
    with pytest.raises(Exception, match="no tab"):
        run(toy, instance)
    sql = "SELECT asset, partition, error, seconds >= 0, run_id <> '' FROM steps WHERE outcome = 'failed'"
    assert toy.workspace().metrics.query(sql)[1] == [
        ("source", None, "BadInput: queries.tsv:7: no tab in it", True, True)
    ]


def test_metrics_that_cannot_be_written_do_not_hide_why_a_step_failed(toy: Toy, instance: dg.DagsterInstance) -> None:
    toy.faults = {"source": [BadInput("the reason")]}
    blocked = Path(toy.workspace().metrics.root)
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where the store belongs")
    with pytest.raises(Exception, match="the reason"):
        run(toy, instance)


def test_a_materialization_says_what_made_it_and_how_large_it_is(toy: Toy, instance: dg.DagsterInstance) -> None:
    run(toy, instance, "seed=5")
    workspace = toy.workspace("seed=5")
    sql = "SELECT version, bytes, settings, versions FROM latest"
    ((version, size, settings, versions),) = workspace.metrics.query(sql)[1]
    manifest = workspace.lake.usable("source")
    assert version == manifest.version
    assert size == sum(entry["bytes"] for entry in manifest.files.values())
    assert json.loads(settings)["seed"] == 5
    assert json.loads(versions)["torch"]


def test_what_a_step_measures_for_the_metrics_alone_stays_out_of_the_manifest(tmp_path: Path) -> None:
    from neuroranker_pipeline.assets.lake_asset import lake_asset
    from neuroranker_pipeline.assets.step import Step

    values = {"ranker": ["a"], "qid": ["q1"], "measure": ["MRR@10"], "value": [0.5]}

    @lake_asset(group="toy", kinds={"text"})
    def measured(step: Step) -> None:
        step.record(1, shown=1.0)
        step.measure({"student/score mean": 0.25})
        step.keep_per_query(pa.table(values))

    workspace = Toy(tmp_path / "lake").workspace()
    assert dg.materialize([measured.to_dagster(workspace.settings)], resources={"workspace": workspace}).success
    assert workspace.lake.usable("measured").figures == {"shown": 1.0}
    assert workspace.metrics.query("SELECT ranker, statistic, value FROM scores")[1] == [("student", "mean", 0.25)]
    assert workspace.metrics.query("SELECT asset, qid, value FROM per_query")[1] == [("measured", "q1", 0.5)]


def test_metrics_that_cannot_be_written_hide_no_failure_beside_what_was_reused(
    toy: Toy, instance: dg.DagsterInstance
) -> None:
    run(toy, instance)
    toy.faults = {"shard dev": [BadInput("the reason")]}
    store = Path(toy.workspace().metrics.root)
    store.rename(store.with_name("away"))
    store.write_text("a file where the store belongs")
    with pytest.raises(Exception, match="the reason"):
        list(bring_up_to_date(toy.assets, toy.workspace(), instance))
