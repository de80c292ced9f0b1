"""The student: a bi-encoder distilled from the teacher's scores, or fitted to the hard labels as a control."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.progress import Progress, silent
from neuroranker_pipeline.ranking.device import Compute, Device, pick_compute, to_device
from neuroranker_pipeline.ranking.distributed import World
from neuroranker_pipeline.ranking.embeddings import TorchEncoder, rank_by_cosine
from neuroranker_pipeline.ranking.forward import forward_rows
from neuroranker_pipeline.ranking.lists import TrainingLists, no_lists
from neuroranker_pipeline.ranking.loop import TrainingResult, fit
from neuroranker_pipeline.ranking.losses import in_batch_contrast, kl_divergence, listwise_softmax, margin_mse, prefix
from neuroranker_pipeline.ranking.models import BiEncoder
from neuroranker_pipeline.ranking.scoring import mean_reciprocal_rank, scores_table, texts
from neuroranker_pipeline.ranking.settings import StudentSettings


def train_student(
    lists: TrainingLists,
    queries: Mapping[str, str],
    passages: Mapping[str, str],
    relevant: Mapping[str, set[str]],
    settings: StudentSettings,
    seed: int,
    out: Path,
    work: Path,
    *,
    dev: pa.Table | None = None,
    device: Device = "auto",
    progress: Progress = silent,
    world: World = World(),
) -> TrainingResult:
    """Fit a bi-encoder to training lists and save it in ``out``.

    lists: for the objective ``distill`` they must hold the teacher's scores. Give the control the same lists, which
    reads nothing but their order. The other arguments are those of ``train_teacher``.

    Raises ``BadInput``, ``ModelNotFound`` or ``TrainingDiverged``.
    """
    compute = pick_compute(device, settings.training.precision)
    model = BiEncoder.load(settings.base, settings.layers, settings.max_length)
    task = StudentTask(model, lists, queries, passages, settings, compute, dev, relevant, world)
    label = "distilling the student" if settings.objective == "distill" else "training the control"
    result = fit(task, settings.training, seed, compute, work, progress, label, world)
    result.skipped = lists.skipped
    if settings.trained_share < 1:
        average_weights(model, BiEncoder.load(settings.base, settings.layers), settings.trained_share)
        if (mrr := task.evaluate()) is not None:
            result.dev_mrr = float(world.gather(np.array([mrr]))[0])  # one figure for all, as in the loop
    if world.main:
        model.save(out)
    return result


@torch.no_grad()
def average_weights(model: BiEncoder, start: BiEncoder, share: float) -> None:
    """Make every weight of ``model`` ``share`` of itself and the rest that of ``start`` (WiSE-FT, Wortsman et al. 2022)."""
    first = start.state_dict()
    for name, weight in model.state_dict().items():
        if weight.is_floating_point():
            weight.lerp_(first[name].to(weight.device), 1 - share)


class StudentTask:
    """The student's loss over training lists, and its MRR@10 on dev candidates."""

    def __init__(
        self,
        model: BiEncoder,
        lists: TrainingLists,
        queries: Mapping[str, str],
        passages: Mapping[str, str],
        settings: StudentSettings,
        compute: Compute,
        dev: pa.Table | None,
        relevant: Mapping[str, set[str]],
        world: World = World(),
    ) -> None:
        self.model, self.lists, self.settings, self.compute = model, lists, settings, compute
        self.queries, self.passages, self.dev, self.relevant, self.world = queries, passages, dev, relevant, world
        if not len(lists):
            raise no_lists(settings.lists)
        if settings.dimensions and settings.dimensions[-1] >= model.dimension:
            raise BadInput(
                f"student.dimensions must be below the model's {model.dimension}, got {settings.dimensions[-1]}"
            )
        self.teacher = _teacher_scores(lists, settings)
        qids, self.query_row = _numbered(lists.qids)
        pids, passage_row = _numbered(lists.pids.ravel())
        self.passage_row = passage_row.reshape(lists.pids.shape)  # (lists, candidates) -> row of passage_tokens
        self.query_tokens = model.tokenize(texts(qids.to_pylist(), queries, "qid"), settings.train_length)
        self.passage_tokens = model.tokenize(texts(pids.to_pylist(), passages, "pid"), settings.train_length)
        self.positives = _positives(lists, qids, pids)

    def __len__(self) -> int:
        return len(self.lists)

    def digest(self) -> str:
        return f"{self.lists.digest()} {self.settings!r}"

    def loss(self, lists: np.ndarray, world: World = World()) -> tuple[torch.Tensor, torch.Tensor]:
        """This process's share of the mean loss over ``lists``, a scalar, and its own lists' scores.

        In-batch contrast sees the passages of all processes: each encodes its share of them.
        """
        own = world.share(lists)
        rows, column = np.unique(self.passage_row[lists], return_inverse=True)
        columns = world.share(column.reshape(len(lists), -1))
        queries = self._encode_queries(own)
        passages = self._encode_passages(rows, world)
        if not len(own):  # the others still wait for this process's part of the gradient
            return passages.sum() * 0.0, passages.new_zeros(columns.shape)
        mask = self._known_positives(own, rows, passages.device)
        loss, scores = passages.new_zeros(()), []
        with torch.autocast(passages.device.type, enabled=False):  # cosines need more than bfloat16's 3 digits
            lengths = (self.model.dimension, *self.settings.dimensions)
            for length in lengths:
                cosines = prefix(queries, length) @ prefix(passages, length).T  # (lists, passages of the step)
                loss_of_prefix, scores_of_prefix = self._loss(cosines, columns, own, mask)
                loss = loss + loss_of_prefix / len(lengths)
                scores.append(scores_of_prefix)
        return loss * (len(own) / len(lists)), scores[0]

    def _encode_queries(self, lists: np.ndarray) -> torch.Tensor:
        """The lists' query vectors, (lists, dimension)."""
        if not len(lists):
            return torch.zeros(0, self.model.dimension)
        return forward_rows(self.model, self.query_tokens, self.query_row[lists], self.settings.training.max_tokens)

    def _encode_passages(self, rows: np.ndarray, world: World) -> torch.Tensor:
        """The vectors of all ``rows``, (rows, dimension), of which this process computes its share."""
        max_tokens = self.settings.training.max_tokens
        if world.size == 1:
            return forward_rows(self.model, self.passage_tokens, rows, max_tokens)
        # Requires a gradient even on a process without rows, which has to take part in the backward sum.
        device = next(self.model.parameters()).device
        vectors = torch.zeros(len(rows), self.model.dimension, device=device, requires_grad=torch.is_grad_enabled())
        own = world.share(np.arange(len(rows)))
        if len(own):
            encoded = forward_rows(self.model, self.passage_tokens, rows[own], max_tokens)
            vectors = vectors.index_copy(0, to_device(own, device), encoded)
        return world.all_sum(vectors)

    def _loss(
        self, cosines: torch.Tensor, columns: np.ndarray, lists: np.ndarray, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of some lists from their cosines, and the scores (lists, candidates) that stand in ``columns``."""
        settings = self.settings
        place = to_device(columns, cosines.device)
        scores = cosines.gather(1, place)
        loss = self._list_loss(scores, lists)
        if settings.label_weight:
            loss = loss + settings.label_weight * listwise_softmax(scores / settings.student_temperature)
        if settings.contrast_weight:
            contrast = in_batch_contrast(cosines, place[:, 0], mask, settings.contrast_temperature)
            loss = loss + settings.contrast_weight * contrast
        return loss, scores

    def _list_loss(self, scores: torch.Tensor, lists: np.ndarray) -> torch.Tensor:
        settings = self.settings
        if self.teacher is None:
            return listwise_softmax(scores / settings.student_temperature)
        teacher = to_device(self.teacher[lists], scores.device)
        if settings.distill_loss == "kl":
            return kl_divergence(scores, teacher, settings.student_temperature, settings.teacher_temperature)
        return margin_mse(scores / settings.student_temperature, teacher / settings.teacher_temperature)

    def _known_positives(self, lists: np.ndarray, rows: np.ndarray, device: torch.device) -> torch.Tensor:
        """(lists, passages of the step) bool: judged positives, which are nobody's negatives. ``rows`` ascends."""
        offsets, passage = self.positives
        query = self.query_row[lists]
        count = offsets[query + 1] - offsets[query]
        place = np.repeat(offsets[query] - np.cumsum(count) + count, count) + np.arange(count.sum())
        found = passage[place]
        column = np.searchsorted(rows, found).clip(max=len(rows) - 1)
        inside = rows[column] == found
        mask = torch.zeros(len(lists), len(rows), dtype=torch.bool, device=device)
        index = to_device(np.stack([np.repeat(np.arange(len(lists)), count)[inside], column[inside]]), device)
        return mask.index_put_((index[0], index[1]), torch.ones((), dtype=torch.bool, device=device))

    def evaluate(self) -> float | None:
        """Dev MRR@10, the same on every process; each scores its share of the rows."""
        if self.dev is None or not len(self.dev):
            return None
        own = self.dev.take(self.world.share(np.arange(len(self.dev))))
        encoder = TorchEncoder(self.model, self.compute)
        scores = rank_by_cosine(own, self.queries, self.passages, encoder)["score"].to_numpy()
        return mean_reciprocal_rank(scores_table(self.dev, self.world.gather(scores)), self.relevant)


def _teacher_scores(lists: TrainingLists, settings: StudentSettings) -> np.ndarray | None:
    """The scores to distil, (lists, candidates) float32, or ``None`` for the control."""
    if settings.objective == "hard_labels":
        return None
    if lists.teacher is None:
        raise BadInput("student.objective is 'distill': training needs the teacher's scores")
    if not settings.scale_teacher:
        return lists.teacher
    spread = lists.teacher.std(axis=1, dtype=np.float64).mean()
    if not spread > 0:
        raise BadInput("student.scale_teacher: the teacher's scores are all alike within each training list")
    return (lists.teacher / spread).astype(np.float32)


def _numbered(ids: list[str] | np.ndarray) -> tuple[pa.Array, np.ndarray]:
    """The distinct ids in order of appearance, and the number of each of ``ids``, int64."""
    coded = pa.array(ids, pa.string()).dictionary_encode()
    return coded.dictionary, coded.indices.to_numpy().astype(np.int64)


def _positives(lists: TrainingLists, qids: pa.Array, pids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The judged positives of query ``i`` among ``pids``: the second array, int64, from its offset ``i`` to the next."""
    known = [lists.relevant[qid] for qid in qids.to_pylist()]
    query = np.repeat(np.arange(len(known)), [len(some) for some in known])
    number = pc.index_in(pa.array([pid for some in known for pid in some], pa.string()), value_set=pids)
    drawn = number.is_valid().to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(query[drawn], minlength=len(known)))])
    return offsets, number.drop_null().to_numpy().astype(np.int64)
