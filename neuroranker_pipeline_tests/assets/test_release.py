"""The gate over real int8 models: a good one passes, a worse one is blocked with its evidence, and a person may overrule."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest

from neuroranker_pipeline.assets import ASSETS
from neuroranker_pipeline.assets.corpus import raw_dataset
from neuroranker_pipeline.assets.lake_asset import FORCE_TAG, LakeAsset
from neuroranker_pipeline.assets.release import OVERRIDE_TAG, gate_evaluation, release_decision
from neuroranker_pipeline.assets.student import passage_embeddings
from neuroranker_pipeline.datasets.tables import CANDIDATES, QRELS, QUERIES, SCORES, read_table, write_table
from neuroranker_pipeline.datasets.trec import ranked
from neuroranker_pipeline.export.onnx import export_student
from neuroranker_pipeline.export.quantize import QuantizationSettings, quantize_student
from neuroranker_pipeline.orchestration.planner import is_fresh
from neuroranker_pipeline.ranking.embeddings import embedding_schema, rank_by_cosine
from neuroranker_pipeline.resources.manifest import Manifest
from neuroranker_pipeline.resources.releases import MODEL, Registry, Release
from neuroranker_pipeline.resources.workspace import Workspace
from neuroranker_pipeline.serving.interpolation import INTERPOLATION_FILE, WEIGHT
from neuroranker_pipeline.serving.onnx_model import OnnxEncoder
from neuroranker_pipeline_tests.export.models import ragged_texts
from neuroranker_pipeline_tests.export.worse import add_noise

QUERIES_AT_THE_GATE, CANDIDATES_OF_ONE = 24, 20


@pytest.fixture(scope="module")
def worse(student_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8 model of a student with noise in its weights."""
    root = tmp_path_factory.mktemp("worse")
    add_noise(student_dir, root / "student")
    export_student(root / "student", root / "onnx")
    quantize_student(root / "onnx", root / "int8", QuantizationSettings(min_cosine=0.01), ragged_texts(8))
    return root / "int8"


class Gate:
    """A lake that holds what the gate reads."""

    def __init__(self, root: Path, base: Path, instance: dg.DagsterInstance):
        self.workspace = Workspace(profile="smoke", lake_root=str(root), overrides=list(self.rules()))
        lake = self.workspace.lake
        self.instance = instance
        sentences = [" ".join(text.split()[:12]) for text in ragged_texts(200, seed=3) if len(text.split()) > 20]
        passages = self.passages = {f"p{i:03d}": text for i, text in enumerate(sentences)}
        rng = np.random.default_rng(0)
        qids = [f"q{i:02d}" for i in range(QUERIES_AT_THE_GATE)]
        relevant = dict(zip(qids, passages, strict=False))
        # A question is half of its passage, so a model that works finds it; BM25 is stood in for by chance.
        questions = {qid: " ".join(passages[pid].split()[:6]) for qid, pid in relevant.items()}
        rows = [
            (qid, pid, float(rng.random()))
            for qid in qids
            for pid in {relevant[qid], *rng.choice(list(passages), CANDIDATES_OF_ONE).tolist()}
        ]
        scores = pa.table(
            [pa.array(column) for column in zip(*sorted(rows), strict=True)], names=["qid", "pid", "score"]
        )
        candidates = ranked(scores)
        gate, grades = [["gate"] * len(qids)], pa.array([1] * len(qids), pa.int32())
        self.publish("passages", None, pa.table({"pid": list(passages), "text": sentences}))
        self.publish("queries", None, pa.table([qids, list(questions.values()), *gate], schema=QUERIES))
        self.publish("qrels", None, pa.table([qids, list(relevant.values()), grades, *gate], schema=QRELS))
        self.publish("bm25_candidates", "gate", candidates.cast(CANDIDATES))
        known = rank_by_cosine(candidates, questions, passages, OnnxEncoder(base))
        self.publish("base_scores", "gate", known.cast(SCORES))
        with lake.publish("eval_report", "test", **self.made("report")) as draft:
            draft.figures = {"BM25/MRR@10": 0.25, "base student/MRR@10": 0.5, "student int8/MRR@10": 0.625}

    @staticmethod
    def rules(**rules: float) -> Iterator[str]:
        """The gate's own defaults, which the smoke profile relaxes."""
        yield from (
            f"release.{name}={value}"
            for name, value in ({"over_bm25": 0.0, "loss_to_base": 0.05, "loss_to_release": 0.03} | rules).items()
        )

    @staticmethod
    def made(fingerprint: str) -> dict[str, Any]:
        return {"fingerprint": fingerprint, "code_version": "1", "settings": {}, "inputs": {}}

    def publish(self, asset: str, partition: str | None, table: pa.Table) -> None:
        with self.workspace.lake.publish(asset, partition, **self.made(asset)) as draft:
            write_table(draft.path, table, table.schema)

    def use(self, model: Path) -> str:
        """Make an int8 folder the one to be judged, and its vectors the stored ones; returns its data version."""
        vectors = OnnxEncoder(model).encode(list(self.passages.values()))
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), vectors.shape[1])
        stored = pa.table([list(self.passages), column], schema=embedding_schema(vectors.shape[1]))
        for shard in passage_embeddings.partitions(self.workspace.settings):
            self.publish("passage_embeddings", shard, stored)
        with self.workspace.lake.publish("student_onnx_int8", None, **self.made(str(model))) as draft:
            for file in model.iterdir():
                (draft.path / file.name).write_bytes(file.read_bytes())
        return self.workspace.lake.usable("student_onnx_int8").data_version

    def run(self, asset: LakeAsset, tags: dict[str, str] | None = None) -> dg.ExecuteInProcessResult:
        return dg.materialize(
            [raw_dataset, *(asset.to_dagster(self.workspace.settings) for asset in ASSETS)],
            selection=[asset.name],
            instance=self.instance,
            resources={"workspace": self.workspace},
            tags=tags,
            raise_on_error=False,
        )

    def judge(self, override: str | None = None) -> Manifest:
        """Run the gate as the UI would; returns the decision's manifest."""
        assert self.run(gate_evaluation).success
        done = self.run(release_decision, {OVERRIDE_TAG: override} if override else None)
        manifest = self.workspace.lake.manifest("release_decision")
        assert manifest is not None
        assert manifest.run_id == done.run_id
        return manifest

    def decision(self) -> dict[str, Any]:
        manifest = self.workspace.lake.manifest("release_decision")
        assert manifest is not None
        return json.loads((self.workspace.lake.open(manifest) / "decision.json").read_text())

    def release(self, model: Path, name: str, keep: int = 3, **more: Any) -> Release:
        """Release a model, with files that stand in for its Bento."""
        made = Release(
            0,
            f"ranker:{name}",
            self.use(model),
            f"bento {name}",
            "ada@lab",
            "now",
            figures={"test/MRR@10": 0.7},
            **more,
        )
        return Registry(self.workspace.lake).add(made, {MODEL: model}, keep=keep)


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def gate(onnx_dir: Path, tmp_path: Path, instance: dg.DagsterInstance) -> Gate:
    return Gate(tmp_path / "lake", onnx_dir, instance)


def failed(manifest: Manifest) -> list[str]:
    return [check.name for check in manifest.failed_checks]


def test_a_good_model_passes_and_the_test_split_decides_nothing(gate: Gate, int8_dir: Path) -> None:
    model = gate.use(int8_dir)
    judged = gate.judge()
    assert failed(judged) == []
    decision = gate.decision()
    assert (decision["outcome"], decision["passed"], decision["model"]) == ("released", True, model)
    assert decision["compared_with"] is None
    assert decision["queries"] == QUERIES_AT_THE_GATE
    assert decision["test"] == {"test": {"BM25": 0.25, "base student": 0.5, "student int8": 0.625}}
    measured = gate.workspace.lake.usable("gate_evaluation").figures
    assert measured["gate/search/MRR@10"] == pytest.approx(decision["means"]["search"])
    assert measured["gate/search/MRR@10"] > 0.9
    values = read_table(gate.workspace.lake.read("gate_evaluation"))
    assert set(values["ranker"].to_pylist()) == {"BM25", "base student", "student int8", "search"}
    runs = gate.workspace.lake.read("gate_evaluation") / "runs"
    names = ["BM25.trec", "base-student.trec", "search.trec", "student-int8.trec"]
    assert sorted(file.name for file in runs.iterdir()) == names
    assert decision["evidence"] == "weak", "two dozen queries"
    (check,) = (check for check in judged.checks if check.name == "search_not_worse_than_base")
    assert "it takes 72 to find a loss of 0.050" in str(check.metadata["evidence"])


def test_what_search_ships_is_judged_and_not_the_student_alone(gate: Gate, int8_dir: Path, tmp_path: Path) -> None:
    """The same model, but BM25's score, which stands here for chance, outweighs it."""
    good = gate.release(int8_dir, "good")
    shutil.copytree(int8_dir, tmp_path / "outweighed")
    (tmp_path / "outweighed" / INTERPOLATION_FILE).write_text(json.dumps({WEIGHT: 10}))
    gate.use(tmp_path / "outweighed")
    assert "search_not_worse_than_best_release" in failed(gate.judge())
    decision = gate.decision()
    assert decision["means"]["student int8"] > 0.9 > decision["means"]["search"] + 0.2
    assert decision["means"]["release 1"] == pytest.approx(decision["means"]["student int8"], abs=0.05)
    (beside,) = decision["besides"]
    assert beside["against"] == "student int8"
    assert beside["difference"] < -0.2

    gate.release(tmp_path / "outweighed", "outweighed")
    gate.use(changed(int8_dir, tmp_path / "again"))
    assert failed(gate.judge()) == []
    means = gate.decision()["means"]
    assert means["release 2"] == pytest.approx(decision["means"]["search"], abs=0.05), "by its own weight"
    assert (gate.decision()["compared_with"]["release"], gate.decision()["measured"]) == (good.number, [1, 2])


def changed(model: Path, folder: Path) -> Path:
    """Another model by one byte."""
    shutil.copytree(model, folder)
    (folder / "note").write_text(folder.name)
    return folder


def test_a_worse_model_is_blocked_and_only_it_can_be_let_through(
    gate: Gate, int8_dir: Path, worse: Path, tmp_path: Path
) -> None:
    released = gate.release(int8_dir, "good")
    model = gate.use(worse)
    assert failed(gate.judge()) == ["search_not_worse_than_base", "search_not_worse_than_best_release"]
    decision = gate.decision()
    assert (decision["outcome"], decision["compared_with"]["release"]) == ("blocked", released.number)
    against = {test["against"]: test for test in decision["tests"]}
    assert against["release 1"]["difference"] < -0.2
    assert against["release 1"]["p"] < 0.05
    assert against["release 1"]["effect"] < 0
    assert decision["test"]["test"]["release 1"] == 0.7
    assert "**failed**" in (gate.workspace.lake.open(gate.judge()) / "decision.md").read_text()

    passed = gate.judge("the index is being replaced")
    assert failed(passed) == []
    assert sum("the index is being replaced" in str(check.metadata.get("overridden")) for check in passed.checks) == 2
    decision = gate.decision()
    assert (decision["outcome"], decision["passed"]) == ("released by a person's override", False)
    word = Registry(gate.workspace.lake).history().override_of(model)
    assert word is not None
    assert decision["override"] == asdict(word)
    assert (word.model, word.run) == (model, passed.run_id)
    assert is_fresh(release_decision, gate.workspace, None)

    gate.use(changed(worse, tmp_path / "other"))
    assert gate.run(gate_evaluation).success
    unseen = gate.run(release_decision, {OVERRIDE_TAG: "whatever it is"})
    (event,) = [event for event in unseen.all_events if event.is_step_failure]
    assert "the gate has not judged this model yet" in str(event.step_failure_data.error)
    assert "search_not_worse_than_base" in failed(gate.judge())
    assert gate.decision()["override"] is None


def test_a_release_does_not_make_its_own_decision_stale(gate: Gate, int8_dir: Path, onnx_dir: Path) -> None:
    gate.use(int8_dir)
    gate.judge()
    gate.release(int8_dir, "first")
    assert is_fresh(gate_evaluation, gate.workspace, None), "the only release: it is compared with none"
    gate.use(onnx_dir)
    assert not is_fresh(gate_evaluation, gate.workspace, None)
    assert failed(gate.judge()) == []
    assert (
        gate.workspace.lake.usable("gate_evaluation").inputs["release 1"] == gate.decision()["compared_with"]["model"]
    )
    registry = Registry(gate.workspace.lake)
    gate.release(onnx_dir, "second", compared_with=1, measured=(1,))
    assert is_fresh(gate_evaluation, gate.workspace, None)
    registry.roll_back(None, "", "ada@lab")
    assert is_fresh(gate_evaluation, gate.workspace, None), "nor does a roll-back"
    assert is_fresh(release_decision, gate.workspace, None)


def test_the_best_release_is_kept_and_what_is_deleted_makes_nothing_stale(
    gate: Gate, int8_dir: Path, onnx_dir: Path, worse: Path, tmp_path: Path
) -> None:
    gate.release(int8_dir, "best")
    for name in ("worse", "and worse", "still worse"):
        gate.release(changed(worse, tmp_path / name), name, keep=9)
    gate.use(onnx_dir)
    assert failed(gate.judge()) == []
    decision = gate.decision()
    assert (decision["compared_with"]["release"], decision["measured"]) == (1, [1, 2, 3, 4])
    inputs = gate.workspace.lake.usable("gate_evaluation").inputs
    assert [name for name in inputs if name.startswith("release ")] == [f"release {n}" for n in (1, 2, 3, 4)]
    gate.release(onnx_dir, "new", keep=1, compared_with=1, measured=(1, 2, 3, 4))
    registry = Registry(gate.workspace.lake)
    assert [number for number in range(1, 6) if registry.kept(number)] == [1, 4, 5]
    assert is_fresh(gate_evaluation, gate.workspace, None)
    assert is_fresh(release_decision, gate.workspace, None)

    assert gate.run(gate_evaluation, {FORCE_TAG: "1"}).success, "nor does it stand in the way of doing it again"
    assert gate.run(release_decision, {FORCE_TAG: "1"}).success
    again = gate.decision()
    assert (again["compared_with"]["release"], again["measured"]) == (1, [1, 2, 3, 4])
    assert "release 2" not in again["means"]
    report = gate.workspace.lake.read("release_decision") / "decision.md"
    assert "No longer kept, and not measured again: release 2, release 3." in report.read_text()


def test_a_damaged_last_release_is_named(gate: Gate, int8_dir: Path, onnx_dir: Path) -> None:
    gate.release(int8_dir, "first")
    gate.use(onnx_dir)
    file = Registry(gate.workspace.lake).open(1) / MODEL / "model.onnx"
    file.unlink()
    file.write_bytes(b"short")
    done = gate.run(gate_evaluation)
    assert not done.success
    (event,) = [event for event in done.all_events if event.is_step_failure]
    assert "release 1 is damaged: " in str(event.step_failure_data.error)


def test_without_a_judged_query_nothing_is_released(gate: Gate, int8_dir: Path) -> None:
    gate.use(int8_dir)
    gate.publish("qrels", None, QRELS.empty_table())
    done = gate.run(gate_evaluation)
    assert not done.success
    (event,) = [event for event in done.all_events if event.is_step_failure]
    assert "no query of the gate split is judged, so no model can be released" in str(event.step_failure_data.error)
