"""The planner runs what is missing or stale, and nothing else. A toy graph of text files stands in for the real one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from neuroranker_pipeline.assets.lake_asset import FORCE_TAG, LakeAsset, Needs, lake_asset
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.checks.rule import Verdict, rule
from neuroranker_pipeline.errors import BadInput, NeuroRankerError, NotReady
from neuroranker_pipeline.orchestration.instance import end_dead_runs
from neuroranker_pipeline.orchestration.planner import Outcome, bring_up_to_date, is_fresh, selected
from neuroranker_pipeline.resources.processes import PROCESS_TAG, process_tag
from neuroranker_pipeline.resources.workspace import Workspace


@rule
def is_not_empty(text: str) -> Verdict:
    """There is something in the file."""
    return Verdict(bool(text))


Body = Callable[[Step], None]


class Toy:
    """source -> shard (by query shard) -> model (from the training shards and dev)."""

    def __init__(self, root: Path):
        self.text = "one"
        self.ran: list[str] = []
        self.faults: dict[str, list[Exception]] = {}  # what each file's writing ends in, time after time
        self.root = root
        self.assets = self._assets()

    def _assets(self) -> tuple[LakeAsset, ...]:
        @lake_asset(group="toy", kinds={"text"}, from_source="passages", checks=[is_not_empty])
        def source(step: Step) -> None:
            self._write(step, "source", self.text)
            step.check(is_not_empty(self.text))

        @lake_asset(group="toy", kinds={"text"}, needs=[source], settings=["bm25.k1"], shards="queries")
        def shard(step: Step) -> None:
            text = (step.read("source") / "text").read_text()
            self._write(step, f"shard {step.partition}", f"{text} {step.partition}")

        @lake_asset(group="toy", kinds={"text"}, needs=[Needs(shard, "train+dev")], settings=["seed"], pool="gpu")
        def model(step: Step) -> None:
            parts = [(folder / "text").read_text() for folder in step.read_all("shard")]
            step.record(len(parts), loss=0.5)
            step.curve([{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.5}])
            self._write(step, "model", "\n".join(parts))

        return (source, shard, model)

    def _write(self, step: Step, name: str, text: str) -> None:
        self.ran.append(name)
        if self.faults.get(name):
            raise self.faults[name].pop(0)
        (step.out / "text").write_text(text)

    def workspace(self, *overrides: str) -> Workspace:
        none = "unjudged.source=none"  # a shard less
        return Workspace(profile="smoke", lake_root=str(self.root), overrides=[none, *overrides])

    def run(self, instance: dg.DagsterInstance, *overrides: str) -> list[str]:
        """Bring the graph up to date; returns what ran."""
        self.ran.clear()
        list(bring_up_to_date(self.assets, self.workspace(*overrides), instance))
        return list(self.ran)


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp() as instance:
        yield instance


@pytest.fixture(scope="module")
def finished(instance: dg.DagsterInstance, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lake of a toy that was run."""
    toy = Toy(tmp_path_factory.mktemp("toy") / "lake")
    toy.run(instance)
    return toy.root


@pytest.fixture
def toy(finished: Path, tmp_path: Path) -> Toy:
    """A toy that was run already."""
    return Toy(Path(shutil.copytree(finished, tmp_path / "lake")))


@pytest.fixture
def new_toy(tmp_path: Path) -> Toy:
    """A toy that was never run."""
    return Toy(tmp_path / "lake")


SHARDS = [f"shard {key}" for key in ("train-00", "train-01", "dev", "gate", "test")]
EVERYTHING = ["source", *SHARDS, "model"]


def test_first_everything_then_nothing(new_toy: Toy, instance: dg.DagsterInstance) -> None:
    assert new_toy.run(instance) == EVERYTHING
    assert new_toy.run(instance) == []


def test_inputs_are_read_in_shard_order(toy: Toy, instance: dg.DagsterInstance) -> None:
    text = (toy.workspace().lake.read("model") / "text").read_text()
    assert text.splitlines() == ["one train-00", "one train-01", "one dev"]


def test_a_setting_makes_stale_only_what_uses_it_and_what_follows(toy: Toy, instance: dg.DagsterInstance) -> None:
    assert toy.run(instance, "seed=7") == ["model"]
    assert toy.run(instance, "seed=7", "bm25.k1=0.8") == SHARDS, "equal content leaves the model fresh"
    assert toy.run(instance, "seed=7", "bm25.k1=0.8", "student.training.learning_rate=1e-3") == []


def test_a_failed_check_stops_the_run_and_all_that_follows(new_toy: Toy, instance: dg.DagsterInstance) -> None:
    new_toy.text = ""
    with pytest.raises(NotReady, match=r"source failed a blocking check.*is_not_empty \(There is something"):
        new_toy.run(instance)
    assert new_toy.ran == ["source"]
    workspace = new_toy.workspace()
    assert not is_fresh(new_toy.assets[0], workspace, None), "a failed check is never fresh"
    result = dg.materialize(
        [asset.to_dagster(workspace.settings) for asset in new_toy.assets],
        selection=["shard"],
        partition_key="dev",
        instance=instance,
        resources={"workspace": workspace},
        raise_on_error=False,
    )
    assert not result.success, "a run that selects only what follows must be refused too"
    new_toy.text = "mended"
    assert new_toy.run(instance) == EVERYTHING


def test_inputs_of_different_lineages_are_refused(toy: Toy, instance: dg.DagsterInstance) -> None:
    """After a new source, the old shards must not be read beside it."""

    @lake_asset(group="toy", kinds={"text"}, needs=[toy.assets[0], Needs(toy.assets[1], "dev")])
    def reader(step: Step) -> None:
        (step.out / "text").write_text("read")

    list(bring_up_to_date([toy.assets[0], toy.assets[1], reader], toy.workspace(), instance))
    toy.text = "another"
    (toy.root / "smoke" / "source" / "CURRENT").unlink()
    list(bring_up_to_date([toy.assets[0]], toy.workspace(), instance))
    with pytest.raises(
        NotReady, match=r"shard\[dev\] was made from another source: run `neuroranker run --select shard`"
    ):
        reader.fingerprint(toy.workspace(), None)


def test_a_damaged_manifest_is_made_again(toy: Toy, instance: dg.DagsterInstance) -> None:
    (toy.workspace().lake.read("model") / "manifest.json").write_text("")
    with pytest.raises(NotReady, match="manifest is damaged"):
        toy.workspace().lake.usable("model")
    assert toy.run(instance) == ["model"]


def test_a_lost_shard_alone_is_made_again(toy: Toy, instance: dg.DagsterInstance) -> None:
    (toy.root / "smoke" / "shard" / "gate" / "CURRENT").unlink()
    assert toy.run(instance) == ["shard gate"]


def test_a_partitioned_asset_without_a_key_is_refused(toy: Toy, instance: dg.DagsterInstance) -> None:
    workspace = toy.workspace()
    with pytest.raises(BadInput, match="one partition at a time"):
        dg.materialize(
            [asset.to_dagster(workspace.settings) for asset in toy.assets],
            selection=["shard"],
            instance=instance,
            resources={"workspace": workspace},
        )
    assert workspace.lake.manifest("shard") is None


def test_an_error_in_a_body_names_the_asset_and_the_reason(toy: Toy, instance: dg.DagsterInstance) -> None:
    @lake_asset(group="toy", kinds={"text"})
    def broken(step: Step) -> None:
        raise BadInput("data.tsv line 3: no tab")

    with pytest.raises(NeuroRankerError, match=r"broken failed: .*data\.tsv line 3: no tab"):
        list(bring_up_to_date([broken], toy.workspace(), instance))
    assert toy.workspace().lake.manifest("broken") is None


def test_a_declared_check_must_be_run(toy: Toy, instance: dg.DagsterInstance) -> None:
    @lake_asset(group="toy", kinds={"text"}, checks=[is_not_empty])
    def careless(step: Step) -> None:
        (step.out / "text").write_text("unchecked")

    with pytest.raises(NeuroRankerError, match="declares checks that its body did not run: is_not_empty"):
        list(bring_up_to_date([careless], toy.workspace(), instance))
    assert toy.workspace().lake.manifest("careless") is None


def test_runs_are_recorded_in_dagster_and_in_the_metrics(new_toy: Toy, instance: dg.DagsterInstance) -> None:
    new_toy.run(instance)
    event = instance.get_latest_materialization_event(dg.AssetKey("model"))
    assert event is not None
    assert event.asset_materialization is not None
    manifest = new_toy.workspace().lake.usable("model")
    assert event.asset_materialization.tags is not None
    assert event.asset_materialization.tags["dagster/data_version"] == manifest.data_version
    assert event.run_id == manifest.run_id
    metrics = new_toy.workspace().metrics
    _, rows = metrics.query("SELECT asset, count(*) FROM materializations GROUP BY asset ORDER BY asset")
    assert rows == [("model", 1), ("shard", 5), ("source", 1)]
    _, rows = metrics.query("SELECT step, value FROM curves WHERE name = 'loss' ORDER BY step")
    assert rows == [(1, 0.7), (2, 0.5)]


def test_the_source_is_observed_once_a_version(toy: Toy, instance: dg.DagsterInstance) -> None:
    toy.run(instance)
    toy.run(instance)
    key = dg.AssetKey("raw_dataset")
    (record,) = instance.fetch_observations(key, limit=10).records
    assert record.asset_observation is not None
    # Dagster's own observations say besides who gave the version.
    tags = {**record.asset_observation.tags, "dagster/data_version_is_user_provided": "true"}
    instance.report_runless_asset_event(dg.AssetObservation(key, tags=tags))
    toy.run(instance)
    assert len(instance.fetch_observations(key, limit=10).records) == 2


def test_a_shard_that_fails_stops_only_what_needs_it(new_toy: Toy, instance: dg.DagsterInstance) -> None:
    new_toy.faults = {"shard gate": [BadInput("gate.tsv: empty")], "shard test": [BadInput("test.tsv: empty")]}
    message = (
        r"^2 steps failed: shard\[gate\] failed: gate\.tsv: empty \(run .*\); "
        r"shard\[test\] failed: test\.tsv: empty \(run .*\)$"
    )
    with pytest.raises(NeuroRankerError, match=message):
        new_toy.run(instance)
    assert new_toy.ran == EVERYTHING, "the model needs neither gate nor test"
    new_toy.faults["shard train-01"] = [BadInput("train.tsv: empty")]
    events = []
    with pytest.raises(NeuroRankerError, match=r"^shard\[train-01\] failed: train\.tsv: empty"):
        for event in bring_up_to_date(new_toy.assets, new_toy.workspace("bm25.k1=0.8", "seed=7"), instance):
            events.append(event)
    outcomes = {event.partition or event.asset: event for event in events if isinstance(event, Outcome)}
    assert [name for name, outcome in outcomes.items() if outcome.error] == ["train-01", "model"]
    assert outcomes["train-01"].ran
    assert not outcomes["model"].ran
    assert str(outcomes["model"].error) == "waits for shard[train-01]"
    assert outcomes["gate"].manifest is not None
    assert new_toy.run(instance, "bm25.k1=0.8", "seed=7") == ["shard train-01", "model"]


def test_what_is_no_fault_of_the_input_is_tried_again(new_toy: Toy, instance: dg.DagsterInstance) -> None:
    new_toy.faults = {"model": [OSError("the disk is away")], "shard dev": [BadInput("dev.tsv: empty")]}
    with pytest.raises(NeuroRankerError, match=r"^shard\[dev\] failed"):
        new_toy.run(instance)
    assert new_toy.ran == ["source", *SHARDS], "bad input would be as bad again"
    new_toy.ran.clear()
    *_, outcome = bring_up_to_date(new_toy.assets, new_toy.workspace(), instance)
    assert isinstance(outcome, Outcome)
    assert new_toy.ran == ["shard dev", "model", "model"]
    assert outcome.attempts == 2
    event = instance.get_latest_materialization_event(dg.AssetKey("model"))
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["attempt"].value == 2
    _, rows = new_toy.workspace().metrics.query("SELECT asset, value FROM figures WHERE name = 'attempt'")
    assert rows == [("model", 2.0)]


def test_it_is_not_tried_for_ever(new_toy: Toy, instance: dg.DagsterInstance) -> None:
    new_toy.faults = {"source": [OSError("the disk is away")] * 9}
    with pytest.raises(NeuroRankerError, match=r"^source failed: .*the disk is away"):
        new_toy.run(instance, "retries.limit=2")
    assert new_toy.ran == ["source"] * 3
    with pytest.raises(NeuroRankerError, match=r"^source failed: .*the disk is away"):
        new_toy.run(instance, "retries.limit=0")
    assert new_toy.ran == ["source"]


def test_a_run_makes_nothing_again_unless_forced(toy: Toy, instance: dg.DagsterInstance) -> None:
    """A backfill of all shards leaves alone those that are up to date."""
    workspace = toy.workspace()

    def materialize(**tags: str) -> dg.ExecuteInProcessResult:
        toy.ran.clear()
        return dg.materialize(
            [asset.to_dagster(workspace.settings) for asset in toy.assets],
            selection=["shard"],
            partition_key="dev",
            instance=instance,
            resources={"workspace": workspace},
            tags=tags,
        )

    version = workspace.lake.usable("shard", "dev").version
    (kept,) = materialize().asset_materializations_for_node("shard")
    assert toy.ran == []
    assert kept.metadata["reused"].value is True
    assert workspace.lake.usable("shard", "dev").version == version
    (made,) = materialize(**{FORCE_TAG: "true"}).asset_materializations_for_node("shard")
    assert toy.ran == ["shard dev"]
    assert "reused" not in made.metadata
    assert workspace.lake.usable("shard", "dev").version != version
    assert kept.tags["dagster/data_version"] == made.tags["dagster/data_version"]  # type: ignore[index]


def test_outcomes_say_what_ran(toy: Toy, instance: dg.DagsterInstance) -> None:
    events = list(bring_up_to_date(toy.assets, toy.workspace("seed=7"), instance))
    ran = [event.asset for event in events if isinstance(event, Outcome) and event.ran]
    assert ran == ["model"]


def test_selection_brings_all_that_is_needed() -> None:
    assert [asset.name for asset in selected(["bm25_candidates"])] == [
        "passages",
        "queries",
        "qrels",
        "given_candidates",
        "unjudged_queries",
        "lucene_index",
        "bm25_parameters",
        "bm25_candidates",
    ]
    with pytest.raises(BadInput, match=r"--select bm26: no such asset; the assets are passages, queries"):
        selected(["bm26"])


def test_runs_of_dead_processes_are_ended_and_their_slots_freed(instance: dg.DagsterInstance) -> None:
    @dg.asset
    def anything() -> None: ...

    job = dg.Definitions(assets=[anything]).resolve_implicit_global_asset_job_def()
    dead = instance.create_run_for_job(job, tags={PROCESS_TAG: "999999999:1.00"})
    alive = instance.create_run_for_job(job, tags={PROCESS_TAG: process_tag()})
    for run in (dead, alive):
        instance.report_dagster_event(
            dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, job_name=job.name), run_id=run.run_id
        )
    storage = instance.event_log_storage
    storage.set_concurrency_slots("gpu", 1)
    assert storage.claim_concurrency_slot("gpu", dead.run_id, "model").is_claimed
    assert not storage.claim_concurrency_slot("gpu", alive.run_id, "model").is_claimed
    assert end_dead_runs(instance) == [dead.run_id]
    assert instance.get_run_by_id(dead.run_id).status == dg.DagsterRunStatus.FAILURE  # type: ignore[union-attr]
    assert instance.get_run_by_id(alive.run_id).status == dg.DagsterRunStatus.STARTED  # type: ignore[union-attr]
    assert storage.claim_concurrency_slot("gpu", alive.run_id, "model").is_claimed
