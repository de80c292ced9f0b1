"""The teacher: a cross-encoder fitted to relevance judgments over BM25 candidates, or to a stronger ranker's scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.progress import Progress, silent
from neuroranker_pipeline.ranking.device import Compute, Device, pick_compute, to_device
from neuroranker_pipeline.ranking.distributed import World
from neuroranker_pipeline.ranking.forward import forward_rows
from neuroranker_pipeline.ranking.lists import TrainingLists, no_lists
from neuroranker_pipeline.ranking.loop import TrainingResult, fit
from neuroranker_pipeline.ranking.losses import listwise_softmax, margin_mse, pointwise_bce, soften
from neuroranker_pipeline.ranking.models import CrossEncoder
from neuroranker_pipeline.ranking.scoring import mean_reciprocal_rank, score_candidates, scores_table, texts
from neuroranker_pipeline.ranking.settings import TeacherSettings


def train_teacher(
    lists: TrainingLists,
    queries: Mapping[str, str],
    passages: Mapping[str, str],
    relevant: Mapping[str, set[str]],
    settings: TeacherSettings,
    seed: int,
    out: Path,
    work: Path,
    *,
    targets: pa.Table | None = None,
    dev: pa.Table | None = None,
    device: Device = "auto",
    progress: Progress = silent,
    world: World = World(),
) -> TrainingResult:
    """Fit a cross-encoder to training lists and save it in ``out``.

    lists: drawn by ``sample_lists``; with ``prior_weight`` they must hold another ranker's scores (``prior``).
    queries, passages: text by id, of the lists and of ``dev``; relevant: the judged positives of the dev queries.
    targets: a scores table of a stronger cross-encoder or an ensemble, with every passage of the lists, for the loss
    ``margin_mse``; without it that loss takes the scores the lists were drawn with (``teacher``).
    dev: a candidates table, of which the best weights are chosen by MRR@10.
    work: holds the checkpoints; a run that was cut off goes on from there.
    world: the processes of the run; the first of them saves.

    Raises ``BadInput``, ``ModelNotFound`` or ``TrainingDiverged``.
    """
    if targets is not None:
        lists = lists.with_teacher(targets)
    compute = pick_compute(device, settings.training.precision)
    model = CrossEncoder.start(settings.base, settings.max_length, settings.layers, seed)
    task = TeacherTask(model, lists, queries, passages, settings, compute, dev, relevant, world)
    result = fit(task, settings.training, seed, compute, work, progress, "training the teacher", world)
    result.skipped = lists.skipped
    if world.main:
        model.save(out)
    return result


class TeacherTask:
    """The teacher's loss over training lists, and its MRR@10 on dev candidates."""

    def __init__(
        self,
        model: CrossEncoder,
        lists: TrainingLists,
        queries: Mapping[str, str],
        passages: Mapping[str, str],
        settings: TeacherSettings,
        compute: Compute,
        dev: pa.Table | None,
        relevant: Mapping[str, set[str]],
        world: World = World(),
    ) -> None:
        self.model, self.lists, self.settings, self.compute = model, lists, settings, compute
        self.queries, self.passages, self.dev, self.relevant, self.world = queries, passages, dev, relevant, world
        if not len(lists):
            raise no_lists(settings.lists)
        if settings.prior_weight and lists.prior is None:
            raise BadInput("teacher.prior_weight is set: training needs the prior scores of the candidates")
        if settings.loss == "margin_mse" and lists.teacher is None:
            raise BadInput("teacher.loss is 'margin_mse': training needs target scores of a stronger ranker")
        width = lists.pids.shape[1]
        self.tokens = model.tokenize(
            texts(np.repeat(lists.qids, width).tolist(), queries, "qid"),
            texts(lists.pids.ravel().tolist(), passages, "pid"),
        )
        self.rows = np.arange(len(self.tokens)).reshape(-1, width)  # (lists, candidates) -> row of ``tokens``

    def __len__(self) -> int:
        return len(self.lists)

    def digest(self) -> str:
        return f"{self.lists.digest()} {self.settings!r}"

    def loss(self, lists: np.ndarray, world: World = World()) -> tuple[torch.Tensor, torch.Tensor]:
        """This process's share of the mean loss over ``lists``, a scalar, and its own lists' scores."""
        own = world.share(lists)
        rows = self.rows[own]
        if not len(own):
            device = next(self.model.parameters()).device
            return torch.zeros((), device=device, requires_grad=True), torch.zeros(rows.shape, device=device)
        scores = forward_rows(self.model, self.tokens, rows.ravel(), self.settings.training.max_tokens).view(rows.shape)
        return self._list_loss(scores, own) * (len(own) / len(lists)), scores

    def _list_loss(self, scores: torch.Tensor, lists: np.ndarray) -> torch.Tensor:
        settings = self.settings
        if settings.loss == "pointwise":
            labels = torch.zeros_like(scores)
            labels[:, 0] = 1.0
            return pointwise_bce(scores, labels)
        if settings.loss == "margin_mse":
            return margin_mse(scores, _on(scores, self.lists.teacher, lists))
        if not settings.prior_weight:
            return listwise_softmax(scores)
        prior = _on(scores, self.lists.prior, lists)
        return listwise_softmax(scores, soften(prior, settings.prior_weight, settings.prior_temperature))

    def evaluate(self) -> float | None:
        """Dev MRR@10, the same on every process; each scores its share of the rows."""
        if self.dev is None or not len(self.dev):
            return None
        own = self.dev.take(self.world.share(np.arange(len(self.dev))))
        scores = score_candidates(self.model, own, self.queries, self.passages, self.compute)["score"].to_numpy()
        return mean_reciprocal_rank(scores_table(self.dev, self.world.gather(scores)), self.relevant)


def _on(scores: torch.Tensor, others: np.ndarray | None, lists: np.ndarray) -> torch.Tensor:
    """Some lists' rows of another ranker's scores, on the device of ``scores``."""
    assert others is not None  # the constructor saw to it
    return to_device(others[lists], scores.device)
