"""Teacher and student end to end on the tiny model: they learn, resume to the bit, and stop when they diverge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.ranking.device import Compute, pick_compute
from neuroranker_pipeline.ranking.embeddings import TorchEncoder, rank_by_cosine
from neuroranker_pipeline.ranking.lists import ListSettings, positives, sample_lists
from neuroranker_pipeline.ranking.loop import TrainingDiverged, TrainingSettings
from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder
from neuroranker_pipeline.ranking.optimizer import freeze
from neuroranker_pipeline.ranking.scoring import mean_reciprocal_rank, score_candidates
from neuroranker_pipeline.ranking.student import StudentSettings, StudentTask, train_student
from neuroranker_pipeline.ranking.teacher import TeacherSettings, train_teacher
from neuroranker_pipeline_tests.ranking.conftest import FLOAT32, Collection

LISTS = ListSettings(negatives=4)
FAST = TrainingSettings(
    epochs=12, lists_per_step=5, learning_rate=2e-3, head_learning_rate=1e-2, dropout=0.1, precision="float32",
    log_every=1, checkpoint_seconds=0,
)  # fmt: skip


def teacher_settings(base, **training) -> TeacherSettings:
    return TeacherSettings(base=str(base), max_length=32, lists=LISTS, training=replace(FAST, **training))


def run_teacher(data: Collection, settings, folder, prior=None, **options):
    lists = sample_lists(data.candidates, data.qrels, settings.lists, 7, prior=prior)
    texts = data.queries, data.passages, positives(data.qrels)
    return train_teacher(lists, *texts, settings, 7, folder / "out", folder / "work", **options)


def run_student(data: Collection, settings, folder, teacher=None, **options):
    lists = sample_lists(data.candidates, data.qrels, settings.lists, 7, teacher=teacher)
    texts = data.queries, data.passages, positives(data.qrels)
    return train_student(lists, *texts, settings, 7, folder / "out", folder / "work", **options)


def losses(result) -> list[float]:
    return [line["loss"] for line in result.history if "loss" in line]


@pytest.fixture(scope="module")
def uninterrupted(tiny, collection, tmp_path_factory):
    return run_teacher(collection, teacher_settings(tiny, epochs=3), tmp_path_factory.mktemp("whole"))


def test_the_teacher_learns_and_its_folder_scores_as_it_did(tiny, collection, tmp_path):
    result = run_teacher(collection, teacher_settings(tiny, epochs=30), tmp_path, dev=collection.candidates)
    assert losses(result)[-1] < 0.7 * losses(result)[0]
    assert result.steps == 30 * 6
    assert result.examples == 30 * 30 * 5
    assert result.dev_mrr > 0.6
    saved = CrossEncoder.load(tmp_path / "out")
    scores = score_candidates(saved, collection.candidates, collection.queries, collection.passages, FLOAT32)
    assert mean_reciprocal_rank(scores, positives(collection.qrels)) == pytest.approx(result.dev_mrr)
    assert set(result.history[0]) == {"step", "loss", "lr", "examples_per_second"}


def test_equal_seeds_train_equal_models(tiny, collection, tmp_path, uninterrupted):
    again = run_teacher(collection, teacher_settings(tiny, epochs=3), tmp_path)
    assert losses(again) == losses(uninterrupted)


def test_a_run_cut_off_goes_on_with_the_same_losses(tiny, collection, tmp_path, uninterrupted):
    settings = teacher_settings(tiny, epochs=3, checkpoint_steps=4)

    def crash(label, done, total):
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_teacher(collection, settings, tmp_path, progress=crash)
    assert [folder.name for folder in (tmp_path / "work").iterdir()] == ["step-000000008"]
    seen = []
    resumed = run_teacher(collection, settings, tmp_path, progress=lambda label, done, total: seen.append(done))
    assert seen[0] == 9
    assert losses(resumed) == losses(uninterrupted)
    assert resumed.steps == uninterrupted.steps
    # a finished run is not trained again
    seen.clear()
    assert losses(run_teacher(collection, settings, tmp_path, progress=lambda *call: seen.append(call))) == losses(
        resumed
    )
    assert not seen


def test_a_checkpoint_of_another_run_is_not_used(tiny, collection, tmp_path):
    run_teacher(collection, teacher_settings(tiny, epochs=1, checkpoint_steps=2), tmp_path)
    seen = []
    run_teacher(
        collection, teacher_settings(tiny, epochs=1, checkpoint_steps=2, learning_rate=1e-3), tmp_path,
        progress=lambda label, done, total: seen.append(done),
    )  # fmt: skip
    assert seen == [1, 2, 3, 4, 5, 6]


def test_the_best_weights_are_kept(tiny, collection, tmp_path):
    settings = teacher_settings(tiny, epochs=4, eval_every=4, learning_rate=1e-2)
    result = run_teacher(collection, settings, tmp_path, dev=collection.candidates)
    measured = {line["step"]: line["dev_mrr"] for line in result.history if "dev_mrr" in line}
    assert list(measured) == [4, 8, 12, 16, 20, 24]
    assert result.dev_mrr == max(measured.values()) == measured[result.best_step]
    texts = collection.queries, collection.passages
    scores = score_candidates(CrossEncoder.load(tmp_path / "out"), collection.candidates, *texts, FLOAT32)
    assert mean_reciprocal_rank(scores, positives(collection.qrels)) == pytest.approx(result.dev_mrr)


def test_accumulated_parts_take_the_same_step(tiny, collection, tmp_path):
    whole = teacher_settings(tiny, epochs=2, dropout=0.0, lists_per_step=6)
    parts = replace(whole, training=replace(whole.training, accumulate=3, max_tokens=64))
    one, two = run_teacher(collection, whole, tmp_path / "a"), run_teacher(collection, parts, tmp_path / "b")
    assert losses(one) == pytest.approx(losses(two), rel=1e-4)


def test_a_frozen_part_keeps_its_weights_and_gets_no_gradient(tiny, collection, tmp_path):
    settings = teacher_settings(tiny, epochs=2, freeze_embeddings=True, frozen_layers=1)
    run_teacher(collection, settings, tmp_path)
    before, after = CrossEncoder.start(tiny, 32).transformer, CrossEncoder.load(tmp_path / "out").transformer
    changed = {name for name, p in after.named_parameters() if not torch.equal(p, before.get_parameter(name))}
    assert changed
    assert all(name.startswith("encoder.layer.1.") for name in changed)
    model = BiEncoder.load(tiny)
    freeze(model, settings.training)
    tokens = model.tokenize(["w1"]).batch([0], torch.device("cpu"))
    hidden = model.transformer(**tokens, output_hidden_states=True).hidden_states
    assert [state.requires_grad for state in hidden] == [False, False, True]


def test_dropout_is_replaced(tiny):
    model = BiEncoder.load(tiny)
    freeze(model, TrainingSettings(dropout=0.25))
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("loss", ["kl", "margin_mse"])
def test_the_student_follows_its_teacher(tiny, collection, oracle, tmp_path, loss, precision):
    settings = StudentSettings(
        base=str(tiny), max_length=32, distill_loss=loss, lists=LISTS,
        training=replace(FAST, epochs=8, precision=precision),
    )  # fmt: skip
    result = run_student(collection, settings, tmp_path, teacher=oracle, dev=collection.candidates)
    untouched = TorchEncoder(BiEncoder.load(tiny), FLOAT32)
    before = mean_reciprocal_rank(
        rank_by_cosine(collection.candidates, collection.queries, collection.passages, untouched),
        positives(collection.qrels),
    )
    assert result.dev_mrr > before
    assert losses(result)[-1] < losses(result)[0]


def test_the_control_differs_in_the_labels_alone(tiny, collection, oracle, tmp_path):
    distilled = StudentSettings(base=str(tiny), max_length=32, lists=LISTS, training=replace(FAST, epochs=2))
    control = replace(distilled, objective="hard_labels")
    one = run_student(collection, distilled, tmp_path / "a", teacher=oracle)
    two = run_student(collection, control, tmp_path / "b", teacher=oracle)
    assert one.examples == two.examples
    assert losses(one) != losses(two)
    with pytest.raises(BadInput, match="needs the teacher's scores"):
        run_student(collection, distilled, tmp_path / "c")


def test_a_share_of_the_weights_may_stay_what_they_were(tiny, collection, tmp_path):
    settings = StudentSettings(
        base=str(tiny), max_length=32, objective="hard_labels", lists=LISTS, training=replace(FAST, epochs=2)
    )
    run_student(collection, settings, tmp_path / "whole")
    settings = replace(settings, trained_share=0.25)
    result = run_student(collection, settings, tmp_path / "part", dev=collection.candidates)
    folders = {"start": tiny, "whole": tmp_path / "whole" / "out", "part": tmp_path / "part" / "out"}
    models = {name: BiEncoder.load(folder, max_length=32) for name, folder in folders.items()}
    weights = {name: model.state_dict() for name, model in models.items()}
    moved = 0.0
    for name, start in weights["start"].items():
        expected = start + 0.25 * (weights["whole"][name] - start)
        torch.testing.assert_close(weights["part"][name], expected)
        moved = max(moved, float((expected - start).abs().max()))
    assert moved > 1e-3
    saved = rank_by_cosine(
        collection.candidates, collection.queries, collection.passages, TorchEncoder(models["part"], FLOAT32)
    )
    assert result.dev_mrr == pytest.approx(mean_reciprocal_rank(saved, positives(collection.qrels)))
    with pytest.raises(ValueError, match="trained_share must be above 0"):
        replace(settings, trained_share=0.0)


def test_in_batch_contrast_alone_needs_no_candidates(tiny, collection, tmp_path):
    settings = StudentSettings(
        base=str(tiny), max_length=32, objective="hard_labels", contrast_weight=1.0,
        lists=ListSettings(negatives=0), training=replace(FAST, lists_per_step=15),
    )  # fmt: skip
    result = run_student(collection, settings, tmp_path)
    assert losses(result)[-1] < losses(result)[0]


def test_training_may_read_fewer_tokens_than_the_model(tiny, collection, oracle):
    lists = sample_lists(collection.candidates, collection.qrels, LISTS, 7, teacher=oracle)
    texts = {pid: f"{text} " + "w1 " * 40 for pid, text in collection.passages.items()}
    for train_length, longest in ((None, 32), (9, 9)):
        settings = StudentSettings(base=str(tiny), max_length=32, train_length=train_length, lists=LISTS, training=FAST)
        model = BiEncoder.load(tiny, max_length=32)
        task = StudentTask(model, lists, collection.queries, texts, settings, FLOAT32, None, {})
        assert task.passage_tokens.lengths.max() == longest
        assert model.max_length == 32
    with pytest.raises(ValueError, match="train_length must be from 8 to max_length, got 99"):
        StudentSettings(max_length=32, train_length=99)


def test_the_loss_of_a_step_by_hand(tiny, collection, oracle):
    """KL + 0.3 contrast + 0.5 labels, from vectors that the model gives outside the task."""
    settings = StudentSettings(base=str(tiny), max_length=32, label_weight=0.5, lists=LISTS, training=FAST)
    model = BiEncoder.load(tiny, max_length=32).eval()
    lists = sample_lists(collection.candidates, collection.qrels, LISTS, 7, teacher=oracle)
    relevant = positives(collection.qrels)
    task = StudentTask(model, lists, collection.queries, collection.passages, settings, FLOAT32, None, relevant)
    rows = np.array([3, 1, 8])
    value, scores = task.loss(rows)

    vectors = model.encode([collection.queries[lists.qids[row]] for row in rows], FLOAT32).astype(np.float64)
    pids = lists.pids[rows]
    passages = model.encode([collection.passages[pid] for pid in pids.ravel()], FLOAT32).astype(np.float64)
    cosines = vectors @ passages.T  # every list has its own passages: nothing is shared
    own = np.stack([cosines[i, 5 * i : 5 * i + 5] for i in range(3)])
    np.testing.assert_allclose(scores.detach().numpy(), own, atol=1e-5)

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    p, q = log_softmax(lists.teacher[rows].astype(np.float64)), log_softmax(own / 0.05)
    contrast = -log_softmax(cosines / 0.05)[np.arange(3), [0, 5, 10]].mean()
    expected = (np.exp(p) * (p - q)).sum(axis=1).mean() + 0.3 * contrast - 0.5 * q[:, 0].mean()
    assert value.item() == pytest.approx(expected, rel=1e-4)


def test_a_prior_keeps_the_teacher_near_it(tiny, collection, oracle, tmp_path):
    settings = replace(teacher_settings(tiny, epochs=1), prior_weight=0.5)
    result = run_teacher(collection, settings, tmp_path, prior=oracle)
    assert np.isfinite(losses(result)).all()
    with pytest.raises(BadInput, match="prior_weight"):
        run_teacher(collection, settings, tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(tiny, collection, tmp_path):
    settings = teacher_settings(tiny, learning_rate=1e30, head_learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(TrainingDiverged, match=r"diverged at step \d+ of 72: the loss is .*lower learning_rate"):
        run_teacher(collection, settings, tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_callers_random_state_is_left_alone(tiny, collection, tmp_path):
    before = torch.get_rng_state()
    run_teacher(collection, teacher_settings(tiny, epochs=1), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"lists_per_step": 6, "accumulate": 4}, "accumulate"),
        ({"frozen_layers": 2}, "freeze_embeddings"),
        ({"warmup": 1.0}, "warmup"),
        ({"patience": 0, "eval_every": 1}, "patience"),
        ({"patience": 1}, "eval_every"),
    ],
)
def test_bad_training_settings_are_named(values, field):
    with pytest.raises(ValueError, match=f"{field} must be"):
        TrainingSettings(**values)


def test_a_student_without_negatives_must_have_contrast():
    with pytest.raises(ValueError, match="contrast_weight must be"):
        StudentSettings(objective="hard_labels", contrast_weight=0.0, lists=ListSettings(negatives=0))
    with pytest.raises(ValueError, match="objective must be"):
        StudentSettings(lists=ListSettings(negatives=0))


def test_compute():
    assert pick_compute("cpu", "float32") == FLOAT32
    assert pick_compute("cpu", "bfloat16") == Compute(torch.device("cpu"), torch.bfloat16)
    if not torch.cuda.is_available():
        assert pick_compute("auto").device.type == "cpu"
        with pytest.raises(BadInput, match="no CUDA device"):
            pick_compute("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_both_models_learn_and_resume(tiny, collection, oracle, tmp_path):
    settings = teacher_settings(tiny, epochs=30, precision="auto", checkpoint_steps=50)

    def crash(label, done, total):
        if done == 70:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_teacher(collection, settings, tmp_path / "teacher", progress=crash)
    teacher = run_teacher(collection, settings, tmp_path / "teacher", dev=collection.candidates)
    assert "bfloat16" in teacher.device
    assert teacher.steps == 180
    assert teacher.dev_mrr > 0.6
    student = StudentSettings(base=str(tiny), max_length=32, lists=LISTS, training=replace(FAST, precision="auto"))
    result = run_student(collection, student, tmp_path / "student", teacher=oracle, dev=collection.candidates)
    assert losses(result)[-1] < losses(result)[0]
