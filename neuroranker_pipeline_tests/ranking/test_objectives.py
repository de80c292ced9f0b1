"""What teacher and student minimize: each objective from the model's own outputs, and in two processes as in one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from neuroranker_pipeline.datasets.tables import SCORES
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.ranking.device import pick_compute
from neuroranker_pipeline.ranking.distributed import World
from neuroranker_pipeline.ranking.lists import TrainingLists, positives, sample_lists
from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder
from neuroranker_pipeline.ranking.settings import ListSettings, StudentSettings, TeacherSettings, TrainingSettings
from neuroranker_pipeline.ranking.student import StudentTask, train_student
from neuroranker_pipeline.ranking.teacher import TeacherTask, train_teacher
from neuroranker_pipeline_tests.ranking.conftest import FLOAT32, Collection

LISTS = ListSettings(negatives=4)
TRAINING = TrainingSettings(
    epochs=4, lists_per_step=5, learning_rate=2e-3, head_learning_rate=1e-2, dropout=0.0, precision="float32",
    log_every=1, checkpoint_seconds=0,
)  # fmt: skip
STUDENT = StudentSettings(max_length=32, lists=LISTS, training=TRAINING, label_weight=0.5)
TEACHER = TeacherSettings(max_length=32, lists=LISTS, training=TRAINING)
STEP = np.array([3, 1, 8, 20, 11])  # the lists of a step


@pytest.fixture(scope="module")
def scores(collection) -> pa.Table:
    """What a strong ranker says: 5 for the positive, less and less for the rest."""
    positive = np.isin(collection.candidates["pid"].to_pylist(), [f"p{i}-4" for i in range(30)])
    score = np.where(positive, 5.0, -collection.candidates["rank"].to_numpy() / 5).astype(np.float32)
    return pa.table([collection.candidates["qid"], collection.candidates["pid"], score], schema=SCORES)


@pytest.fixture(scope="module")
def lists(collection, scores) -> TrainingLists:
    return sample_lists(collection.candidates, collection.qrels, LISTS, 7, prior=scores, teacher=scores)


def student_task(tiny: Path, data: Collection, lists: TrainingLists, settings: StudentSettings, world: World = World()):
    model = BiEncoder.load(tiny, max_length=32).eval()
    texts = data.queries, data.passages
    return StudentTask(model, lists, *texts, settings, FLOAT32, data.candidates, positives(data.qrels), world)


def teacher_task(tiny: Path, data: Collection, lists: TrainingLists, settings: TeacherSettings, world: World = World()):
    model = CrossEncoder.start(tiny, max_length=32, seed=7).eval()
    texts = data.queries, data.passages
    return TeacherTask(model, lists, *texts, settings, FLOAT32, data.candidates, positives(data.qrels), world)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def encoded(task: StudentTask, data: Collection, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Query vectors (lists, d) and passage vectors (lists, candidates, d) of some lists, float64."""
    pids = task.lists.pids[rows]
    queries = task.model.encode([data.queries[task.lists.qids[row]] for row in rows], FLOAT32)
    passages = task.model.encode([data.passages[pid] for pid in pids.ravel()], FLOAT32)
    return queries.astype(np.float64), passages.astype(np.float64).reshape(*pids.shape, -1)


def test_a_teacher_may_follow_the_margins_of_a_stronger_one(tiny, collection, scores, lists):
    task = teacher_task(tiny, collection, lists, replace(TEACHER, loss="margin_mse"))
    value, ours = task.loss(STEP)
    pairs = [(collection.queries[lists.qids[row]], collection.passages[pid]) for row in STEP for pid in lists.pids[row]]
    alone = task.model.score(*map(list, zip(*pairs, strict=True)), FLOAT32).astype(np.float64).reshape(5, 5)
    np.testing.assert_allclose(ours.detach().numpy(), alone, atol=1e-5)
    target = lists.teacher[STEP].astype(np.float64)
    expected = np.mean(((alone[:, :1] - alone[:, 1:]) - (target[:, :1] - target[:, 1:])) ** 2)
    assert value.item() == pytest.approx(expected, rel=1e-4)


def test_margins_need_targets_and_are_learned(tiny, collection, scores, tmp_path):
    plain = sample_lists(collection.candidates, collection.qrels, LISTS, 7)
    settings = replace(TEACHER, base=str(tiny), loss="margin_mse")
    arguments = collection.queries, collection.passages, positives(collection.qrels), settings, 7
    with pytest.raises(BadInput, match="needs target scores of a stronger ranker"):
        train_teacher(plain, *arguments, tmp_path / "out", tmp_path / "none")
    result = train_teacher(plain, *arguments, tmp_path / "out", tmp_path / "work", targets=scores)
    losses = [line["loss"] for line in result.history if "loss" in line]
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])


def test_pointwise_takes_every_pair_alone(tiny, collection, lists):
    value, ours = teacher_task(tiny, collection, lists, replace(TEACHER, loss="pointwise")).loss(STEP)
    x = ours.detach().numpy().astype(np.float64)
    chance = 1 / (1 + np.exp(-x))
    chance[:, 1:] = 1 - chance[:, 1:]
    assert value.item() == pytest.approx(-np.log(chance).mean(), rel=1e-5)


def test_each_prefix_of_the_vectors_ranks_by_itself(tiny, collection, lists):
    task = student_task(tiny, collection, lists, replace(STUDENT, dimensions=(4, 16)))
    value, ours = task.loss(STEP)
    queries, passages = encoded(task, collection, STEP)
    expected, whole = [], np.einsum("nd,nkd->nk", queries, passages)
    target = log_softmax(lists.teacher[STEP].astype(np.float64))
    for d in (4, 16, 32):
        q, p = (x[..., :d] / np.linalg.norm(x[..., :d], axis=-1, keepdims=True) for x in (queries, passages))
        student = log_softmax(np.einsum("nd,nkd->nk", q, p) / 0.05)
        every = log_softmax(q @ p.reshape(25, d).T / 0.05)  # no passage is in two lists
        contrast = -every[np.arange(5), np.arange(5) * 5].mean()
        kl = (np.exp(target) * (target - student)).sum(axis=1).mean()
        expected.append(kl - 0.5 * student[:, 0].mean() + 0.3 * contrast)
    assert value.item() == pytest.approx(np.mean(expected), rel=1e-4)
    np.testing.assert_allclose(ours.detach().numpy(), whole, atol=1e-5)


def test_a_student_of_nested_dimensions_is_saved_whole(tiny, collection, lists, tmp_path):
    settings = replace(STUDENT, base=str(tiny), dimensions=(4,), training=replace(TRAINING, epochs=1))
    texts = collection.queries, collection.passages
    train_student(lists, *texts, positives(collection.qrels), settings, 7, tmp_path / "out", tmp_path / "work")
    assert BiEncoder.load(tmp_path / "out").dimension == 32


def test_prefixes_must_be_shorter_than_the_vectors(tiny, collection, lists):
    with pytest.raises(BadInput, match=r"student\.dimensions must be below the model's 32, got 32"):
        student_task(tiny, collection, lists, replace(STUDENT, dimensions=(8, 32)))
    for wrong in ((16, 4), (4, 4), (0, 4)):
        with pytest.raises(ValueError, match="dimensions must be positive and ascending"):
            StudentSettings(dimensions=wrong)


def test_a_scaled_teacher_has_no_unit(tiny, collection, lists):
    scaled = replace(STUDENT, scale_teacher=True, teacher_temperature=0.7)
    loud = replace(lists, teacher=lists.teacher * 30 + 4)
    values = {
        (settings.scale_teacher, name): student_task(tiny, collection, given, settings).loss(STEP)[0].item()
        for settings in (scaled, replace(scaled, scale_teacher=False))
        for name, given in (("plain", lists), ("loud", loud))
    }
    assert values[True, "plain"] == pytest.approx(values[True, "loud"], rel=1e-5)
    assert values[False, "plain"] != pytest.approx(values[False, "loud"], rel=1e-3)
    spread = np.mean([np.std(row) for row in lists.teacher.astype(np.float64)])
    by_hand = replace(scaled, scale_teacher=False, teacher_temperature=0.7 * spread)
    expected = student_task(tiny, collection, lists, by_hand).loss(STEP)[0].item()
    assert values[True, "plain"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(BadInput, match="all alike"):
        student_task(tiny, collection, replace(lists, teacher=np.ones_like(lists.teacher)), scaled)


def test_the_control_reads_no_teacher(tiny, collection, lists):
    control = replace(STUDENT, objective="hard_labels")
    with_scores = student_task(tiny, collection, lists, control).loss(STEP)[0].item()
    without = student_task(tiny, collection, replace(lists, teacher=None), control).loss(STEP)[0].item()
    assert with_scores == without
    assert with_scores != pytest.approx(student_task(tiny, collection, lists, STUDENT).loss(STEP)[0].item())
    with pytest.raises(BadInput, match="needs the teacher's scores"):
        student_task(tiny, collection, replace(lists, teacher=None), STUDENT)


def test_the_mask_of_known_positives(tiny, collection, lists):
    """Against a membership test of every (list, passage), with positives that other queries have drawn as negatives."""
    rng = np.random.default_rng(3)
    everything = sorted(set(lists.pids.ravel()))
    relevant = {qid: {*pids, *rng.choice(everything, 6), "never-drawn"} for qid, pids in lists.relevant.items()}
    relevant[lists.qids[STEP[0]]] = {"never-drawn"}
    task = student_task(tiny, collection, replace(lists, relevant=relevant), STUDENT)
    rows = np.unique(task.passage_row[STEP])
    pid_of = dict(zip(task.passage_row.ravel().tolist(), lists.pids.ravel(), strict=True))
    expected = [[pid_of[row] in relevant[lists.qids[one]] for row in rows] for one in STEP]
    mask = task._known_positives(STEP, rows, torch.device("cpu")).numpy()
    assert mask.tolist() == expected
    assert not mask[0].any()
    assert mask[1:].sum() > 4


def shares(tasks, world: World) -> list[dict[str, torch.Tensor]]:
    """For steps of five lists and of one: what this process has of the loss, and the summed gradients."""
    found = []
    for task in tasks:
        for step in (STEP, STEP[:1]):
            task.model.zero_grad()
            loss, scores = task.loss(step, world)
            assert scores.shape == (len(world.share(step)), 5)
            loss.backward()
            world.sum_gradients(task.model.parameters())
            # A process without lists has no gradients of its own.
            gradients = {name: p.grad for name, p in task.model.named_parameters() if p.grad is not None}
            found.append({"loss": loss.detach()} | {name: grad.clone() for name, grad in gradients.items()})
        found.append({"dev": torch.tensor(task.evaluate())})
    return found


def tasks_of(tiny: Path, data: Collection, lists: TrainingLists, world: World):
    nested = replace(STUDENT, dimensions=(8,), distill_loss="margin_mse")
    return [
        teacher_task(tiny, data, lists, replace(TEACHER, prior_weight=0.3, prior_temperature=1.0), world),
        student_task(tiny, data, lists, STUDENT, world),
        student_task(tiny, data, lists, nested, world),
    ]


def one_of_two(rank: int, tiny: Path, data: Collection, lists: TrainingLists, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder / 'meet'}", rank=rank, world_size=2)
    world = World(rank, 2)
    torch.save(shares(tasks_of(tiny, data, lists, world), world), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_compute_what_one_does(tiny, collection, lists, tmp_path):
    multiprocessing.spawn(one_of_two, (tiny, collection, lists, tmp_path), nprocs=2)
    alone = shares(tasks_of(tiny, collection, lists, World()), World())
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for one, left, right in zip(alone, first, second, strict=True):
        if "dev" in one:
            assert left["dev"].item() == right["dev"].item() == pytest.approx(one["dev"].item())
            continue
        assert left.pop("loss") + right.pop("loss") == pytest.approx(one.pop("loss").item(), rel=1e-5)
        assert any(gradient.abs().max() > 1e-3 for gradient in one.values())
        for name, gradient in one.items():
            torch.testing.assert_close(left[name], gradient, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(right[name], left[name], rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_objective_waits_for_the_gpu(tiny, collection, lists):
    compute = pick_compute("cuda", "bfloat16")
    nested = replace(STUDENT, dimensions=(8,), scale_teacher=True)
    tasks = [
        *(teacher_task(tiny, collection, lists, replace(TEACHER, loss=loss)) for loss in ("pointwise", "margin_mse")),
        *tasks_of(tiny, collection, lists, World()),
        student_task(tiny, collection, lists, nested),
    ]
    for task in tasks:
        task.model.to(compute.device)
        for mode in ("default", "error"):  # the first call sets up libraries, which may wait
            torch.cuda.set_sync_debug_mode(mode)
            try:
                with compute.autocast():
                    loss, _ = task.loss(STEP)
                loss.backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert torch.isfinite(loss)
