"""The loop itself, on a task whose loss and dev measure the test decides: when it stops, and what it keeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.ranking import loop
from neuroranker_pipeline.ranking.checkpoint import load_checkpoint
from neuroranker_pipeline.ranking.device import Compute
from neuroranker_pipeline.ranking.distributed import World
from neuroranker_pipeline.ranking.lists import positives, sample_lists
from neuroranker_pipeline.ranking.loop import TrainingDiverged, fit
from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder
from neuroranker_pipeline.ranking.settings import ListSettings, StudentSettings, TrainingSettings
from neuroranker_pipeline.ranking.student import StudentTask
from neuroranker_pipeline_tests.ranking.conftest import FLOAT32

SETTINGS = TrainingSettings(
    epochs=8, lists_per_step=5, learning_rate=1e-3, head_learning_rate=1e-3, precision="float32", log_every=10,
    checkpoint_seconds=0,
)  # fmt: skip
STEPS = 48


class Linear:
    """A task that fits a cross-encoder's head to fixed vectors: lists of four, of which the first is right."""

    def __init__(self, base, broken=lambda step, scores: 0.0, measures=()) -> None:
        self.model = CrossEncoder.start(base, 32)
        self.features = torch.randn(30, 4, 32, generator=torch.Generator().manual_seed(1))
        self.broken, self.measures, self.steps = broken, iter(measures), 0

    def __len__(self) -> int:
        return 30

    def digest(self) -> str:
        return "linear"

    def loss(self, lists, world):
        self.steps += 1
        scores = (self.features[lists] @ self.model.head.weight.T).squeeze(-1)
        loss = torch.nn.functional.cross_entropy(scores, torch.zeros(len(lists), dtype=torch.int64))
        return loss + self.broken(self.steps, scores), scores

    def evaluate(self):
        return next(self.measures, None)


def nan_loss(step, scores):
    return float("nan") if step == 17 else 0.0


def nan_gradient(step, scores):
    """Zero, whose derivative is 0 x infinity at step 17."""
    return (scores * 0.0).sqrt().sum() if step == 17 else 0.0


@pytest.mark.parametrize(("broken", "told"), [(nan_loss, "the loss is nan"), (nan_gradient, "the gradient nan")])
def test_the_step_that_diverged_is_named_and_the_last_good_checkpoint_kept(tiny, tmp_path, broken, told):
    settings = replace(SETTINGS, checkpoint_steps=5, log_every=40)
    task = Linear(tiny, broken)
    with pytest.raises(TrainingDiverged, match=rf"diverged at step 17 of 48: .*{told}.*lower learning_rate"):
        fit(task, settings, 1, FLOAT32, tmp_path)
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-000000015"]
    fingerprint = loop._fingerprint(Linear(tiny), settings, 1)
    tensors, state = load_checkpoint(tmp_path, fingerprint)
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert state["result"]["steps"] == 15


def test_broken_weights_are_never_measured(tiny, tmp_path):
    measured = []

    class Measured(Linear):
        def evaluate(self):
            measured.append(bool(torch.isfinite(self.model.head.weight).all()))
            return 0.5

    with pytest.raises(TrainingDiverged, match="step 17"):
        fit(Measured(tiny, nan_loss), replace(SETTINGS, eval_every=6, log_every=40), 1, FLOAT32, tmp_path)
    assert measured == [True, True]


def test_one_score_for_everything_stops_the_run(tiny, tmp_path):
    class Collapsed(Linear):
        def loss(self, lists, world):
            scores = self.model.head.bias.expand(len(lists), 4)
            return scores.mean(), scores

    where = f"at step {loop.FLAT_STEPS} of 48: .*the same score for {loop.FLAT_STEPS} steps"
    with pytest.raises(TrainingDiverged, match=f"{where}; lower learning_rate .* or head_learning_rate .*more queries"):
        fit(Collapsed(tiny), SETTINGS, 1, FLOAT32, tmp_path)


def test_a_student_with_one_vector_for_everything_stops(tiny, collection, tmp_path):
    training = replace(SETTINGS, epochs=5, learning_rate=1e-12)
    settings = StudentSettings(
        base=str(tiny), objective="hard_labels", lists=ListSettings(negatives=4), training=training
    )
    model = BiEncoder.load(tiny)
    torch.nn.init.zeros_(model.transformer.encoder.layer[-1].output.LayerNorm.weight)
    torch.nn.init.ones_(model.transformer.encoder.layer[-1].output.LayerNorm.bias)
    lists = sample_lists(collection.candidates, collection.qrels, settings.lists, 7)
    relevant = positives(collection.qrels)
    task = StudentTask(model, lists, collection.queries, collection.passages, settings, FLOAT32, None, relevant)
    with pytest.raises(TrainingDiverged, match=f"the same score for {loop.FLAT_STEPS} steps") as stopped:
        fit(task, training, 7, FLOAT32, tmp_path)
    assert "head_learning_rate" not in str(stopped.value)


def test_a_run_without_progress_stops_early_with_its_best_weights(tiny, tmp_path):
    settings = replace(SETTINGS, eval_every=4, patience=2, checkpoint_steps=7)
    measures = [0.1, 0.3, 0.2, 0.3]  # at step 8 the best; an equal one later is no progress
    whole = fit(Linear(tiny, measures=measures), settings, 1, FLOAT32, tmp_path / "whole")
    assert (whole.steps, whole.best_step, whole.dev_mrr) == (16, 8, 0.3)
    assert [line["step"] for line in whole.history if "loss" in line] == [10, 16]

    kept = Linear(tiny, measures=measures)

    def crash(label, done, total):
        if done == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(kept, settings, 1, FLOAT32, tmp_path / "cut", crash)
    kept = Linear(tiny, measures=measures[3:])
    resumed = fit(kept, settings, 1, FLOAT32, tmp_path / "cut")
    assert (resumed.steps, resumed.best_step, resumed.dev_mrr) == (16, 8, 0.3)
    assert [line.get("loss") for line in resumed.history] == [line.get("loss") for line in whole.history]
    # the weights are those of step 8, and a run that stopped is not gone on with
    short = Linear(tiny, measures=measures)
    fit(short, replace(settings, patience=None), 1, FLOAT32, tmp_path / "long")
    assert torch.equal(kept.model.head.weight, short.model.head.weight)
    again = Linear(tiny)
    assert fit(again, settings, 1, FLOAT32, tmp_path / "cut").steps == 16
    assert again.steps == 0


def test_a_checkpoint_is_due_by_the_clock_at_a_line_of_the_history(tiny, tmp_path):
    settings = replace(SETTINGS, checkpoint_seconds=1e-9)
    found = []
    fit(
        Linear(tiny), settings, 1, FLOAT32, tmp_path,
        lambda label, done, total: found.append(sorted(folder.name for folder in tmp_path.glob("step-*"))),
    )  # fmt: skip
    assert found[8] == []
    assert found[9] == found[18] == ["step-000000010"]
    assert found[-1] == ["step-000000048"]


def test_the_history_does_not_depend_on_checkpoints(tiny, tmp_path):
    plain = fit(Linear(tiny), SETTINGS, 1, FLOAT32, tmp_path / "a")
    saved = fit(Linear(tiny), replace(SETTINGS, checkpoint_steps=7), 1, FLOAT32, tmp_path / "b")
    assert [line["loss"] for line in plain.history] == [line["loss"] for line in saved.history]
    assert [line["step"] for line in plain.history] == [10, 20, 30, 40, 48]
    assert plain.examples == 48 * 5 * 4
    assert plain.seconds > 0


def test_random_numbers_depend_on_seed_step_and_process_alone():
    def draw(*place):
        with torch.random.fork_rng(devices=[]):
            loop._seed(*place, torch.device("cpu"))
            return torch.rand(4)

    assert torch.equal(draw(1, 2, 0), draw(1, 2, 0))
    drawn = [draw(1, 2, 0), draw(1, 3, 0), draw(2, 2, 0), draw(1, 2, 1), draw(12, 0, 0)]
    assert len({tuple(numbers.tolist()) for numbers in drawn}) == len(drawn)


def test_a_step_needs_a_list_for_every_process(tiny, tmp_path):
    with pytest.raises(BadInput, match=r"lists_per_step: 5 lists a step in 5 parts are too few for 2 processes"):
        fit(Linear(tiny), replace(SETTINGS, accumulate=5), 1, FLOAT32, tmp_path, world=World(0, 2))


def test_more_layers_than_there_are_cannot_be_frozen(tiny, tmp_path):
    settings = replace(SETTINGS, freeze_embeddings=True, frozen_layers=3)
    with pytest.raises(BadInput, match="frozen_layers: the model has 2 layers, 3 cannot be frozen"):
        fit(Linear(tiny), settings, 1, FLOAT32, tmp_path)


def test_the_learning_rate_rises_and_falls(tiny, tmp_path):
    result = fit(Linear(tiny), replace(SETTINGS, warmup=0.25, log_every=1), 1, FLOAT32, tmp_path)
    rates = np.array([line["lr"] for line in result.history])
    assert rates[0] == pytest.approx(1e-3 / 12)
    assert rates.argmax() == 11
    assert rates.max() == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-3 / 36)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_never_waits_for_the_gpu(tiny, tmp_path):
    class OnDevice(Linear):
        def loss(self, lists, world):
            if self.steps == 0:
                self.features = self.features.to("cuda")
                self.labels = torch.zeros(len(lists), dtype=torch.int64, device="cuda")
            self.steps += 1
            scores = (self.features[: len(lists)] @ self.model.head.weight.T).squeeze(-1)
            return torch.nn.functional.cross_entropy(scores, self.labels), scores

    run = loop._Run(OnDevice(tiny), SETTINGS, 1, Compute(torch.device("cuda"), torch.bfloat16), "", World())
    run.advance()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            run.advance()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    run.settle()
    assert np.isfinite(run.window.losses).all()
    assert len(run.window.losses) == 6
