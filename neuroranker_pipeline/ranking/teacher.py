"""The teacher: a cross-encoder fitted to relevance judgments over BM25 candidates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.progress import Progress, silent
from neuroranker_pipeline.ranking.device import Compute, Device, pick_compute
from neuroranker_pipeline.ranking.lists import TrainingLists, positives, sample_lists
from neuroranker_pipeline.ranking.loop import TrainingResult, fit
from neuroranker_pipeline.ranking.losses import listwise_softmax, pointwise_bce, soften
from neuroranker_pipeline.ranking.models import CrossEncoder, forward_rows
from neuroranker_pipeline.ranking.scoring import mean_reciprocal_rank, score_candidates, texts
from neuroranker_pipeline.ranking.settings import TeacherSettings


def train_teacher(
    candidates: pa.Table,
    qrels: pa.Table,
    queries: Mapping[str, str],
    passages: Mapping[str, str],
    settings: TeacherSettings,
    seed: int,
    out: Path,
    work: Path,
    dev: pa.Table | None = None,
    prior: pa.Table | None = None,
    device: Device = "auto",
    progress: Progress = silent,
) -> TrainingResult:
    """Fit a cross-encoder to the training queries' candidates and save it in ``out``.

    candidates, dev: candidates tables of the training and of the dev queries; qrels: judgments of both;
    queries, passages: text by id.
    prior: another ranker's scores of the training candidates and positives (the untouched base student's, say),
    needed with ``prior_weight``, ``lists.order: prior`` or ``lists.false_negative_margin``.
    work: holds the checkpoints; a run that was cut off goes on from there.

    Raises ``BadInput``, ``ModelNotFound`` or ``TrainingDiverged``.
    """
    if settings.prior_weight and prior is None:
        raise BadInput("teacher.prior_weight is set: training needs the prior scores of the candidates")
    compute = pick_compute(device, settings.training.precision)
    model = CrossEncoder.start(settings.base, settings.max_length, settings.layers, seed)
    lists = sample_lists(candidates, qrels, settings.lists, seed, prior=prior)
    task = TeacherTask(model, lists, queries, passages, settings, compute, dev, positives(qrels))
    result = fit(task, settings.training, seed, compute, work, progress, "training the teacher")
    result.skipped = lists.skipped
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
    ) -> None:
        self.model, self.lists, self.settings, self.compute = model, lists, settings, compute
        self.queries, self.passages, self.dev, self.relevant = queries, passages, dev, relevant
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

    def loss(self, lists: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.rows[lists]
        scores = forward_rows(self.model, self.tokens, rows.ravel(), self.settings.training.max_tokens).view(rows.shape)
        if self.settings.loss == "listwise":
            targets = None
            if self.settings.prior_weight and self.lists.prior is not None:
                prior = torch.from_numpy(self.lists.prior[lists]).to(scores.device)
                targets = soften(prior, self.settings.prior_weight, self.settings.prior_temperature)
            return listwise_softmax(scores, targets), scores
        labels = torch.zeros_like(scores)
        labels[:, 0] = 1.0
        return pointwise_bce(scores, labels), scores

    def evaluate(self) -> float | None:
        if self.dev is None or not len(self.dev):
            return None
        scores = score_candidates(self.model, self.dev, self.queries, self.passages, self.compute)
        return mean_reciprocal_rank(scores, self.relevant)
