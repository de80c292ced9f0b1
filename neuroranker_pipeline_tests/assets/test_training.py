"""What the assets that train have in common."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from neuroranker_pipeline.assets import ASSETS
from neuroranker_pipeline.assets.training import finished, sampling_weight
from neuroranker_pipeline.config.load import load_settings
from neuroranker_pipeline.ranking.loop import TrainingResult

JOINED = [
    "data.weight=0.5",
    "training_collections={nq: {source: beir, folder: nq, weight: 3}, squad: {source: beir, folder: squad}}",
]


def test_a_query_is_learned_from_as_often_as_its_collection_says() -> None:
    step = SimpleNamespace(settings=load_settings("quickstart", JOINED))
    weight = sampling_weight(step, "train-00")  # type: ignore[arg-type]
    assert [weight(qid) for qid in ("17", "nq:17", "squad:17", "other:17")] == [0.5, 3.0, 1.0, 0.5]
    some = sampling_weight(step, "train-00", ["nq", "main"])  # type: ignore[arg-type]
    assert [some(qid) for qid in ("17", "nq:17", "squad:17")] == [0.5, 3.0, 0.0]
    unjudged = sampling_weight(step, "unjudged-00")  # type: ignore[arg-type]
    assert unjudged("17#query") == 1.0


def test_weights_make_stale_what_learns_and_nothing_before_it() -> None:
    plain, weighted = load_settings("quickstart"), load_settings("quickstart", ["data.weight=0.5"])
    changed = {asset.name for asset in ASSETS if asset.used_settings(plain) != asset.used_settings(weighted)}
    assert changed == {"teacher_checkpoint", "teacher_scores", "student_checkpoint", "student_control"}


def test_unjudged_queries_leave_fresh_what_belongs_to_judged_ones() -> None:
    plain = load_settings("quickstart")
    more = load_settings("quickstart", ["unjudged={source: sentences, count: 5}"])
    changed = {asset.name for asset in ASSETS if asset.used_settings(plain) != asset.used_settings(more)}
    assert changed == {"unjudged_queries"}
    for asset in ASSETS:
        if asset.name not in ("unjudged_queries", "student_checkpoint"):
            for partition in asset.partitions(plain):
                assert asset.inputs(plain, partition) == asset.inputs(more, partition), asset.name


def test_a_finished_model_is_not_made_again(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> TrainingResult:
        made.append(folder)
        (folder / "weights").write_text("w")
        if len(made) == 1:
            raise OSError("the disk is full")
        return TrainingResult(steps=3)

    with pytest.raises(OSError, match="full"):
        finished(tmp_path / "model", make)
    assert not (tmp_path / "model").exists()
    assert finished(tmp_path / "model", make).steps == 3
    assert finished(tmp_path / "model", make).steps == 3
    assert len(made) == 2
    assert json.loads((tmp_path / "model" / "training.json").read_text())["steps"] == 3


def test_mining_makes_both_students_stale() -> None:
    once, deeper = (load_settings("quickstart", [f"mining={{rounds: 1, depth: {depth}}}"]) for depth in (10, 20))
    changed = {asset.name for asset in ASSETS if asset.used_settings(once) != asset.used_settings(deeper)}
    assert changed == {"student_checkpoint", "student_control"}
