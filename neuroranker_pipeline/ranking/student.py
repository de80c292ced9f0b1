"""The student: a bi-encoder distilled from the teacher's scores, or fitted to the hard labels as a control."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.progress import Progress, silent
from neuroranker_pipeline.ranking.device import Compute, Device, pick_compute
from neuroranker_pipeline.ranking.embeddings import TorchEncoder, rank_by_cosine
from neuroranker_pipeline.ranking.lists import TrainingLists, positives, sample_lists
from neuroranker_pipeline.ranking.loop import TrainingResult, fit
from neuroranker_pipeline.ranking.losses import in_batch_contrast, kl_divergence, listwise_softmax, margin_mse
from neuroranker_pipeline.ranking.models import BiEncoder, forward_rows
from neuroranker_pipeline.ranking.scoring import mean_reciprocal_rank, texts
from neuroranker_pipeline.ranking.settings import StudentSettings


def train_student(
    candidates: pa.Table,
    qrels: pa.Table,
    queries: Mapping[str, str],
    passages: Mapping[str, str],
    settings: StudentSettings,
    seed: int,
    out: Path,
    work: Path,
    teacher: pa.Table | None = None,
    dev: pa.Table | None = None,
    prior: pa.Table | None = None,
    device: Device = "auto",
    progress: Progress = silent,
) -> TrainingResult:
    """Fit a bi-encoder to the training queries' candidates and save it in ``out``.

    teacher: the teacher's scores. Lists are drawn from what it scored whichever the objective: give the control the
    same table. The other arguments are those of ``train_teacher``.

    Raises ``BadInput``, ``ModelNotFound`` or ``TrainingDiverged``.
    """
    if settings.objective == "distill" and teacher is None:
        raise BadInput("student.objective is 'distill': training needs the teacher's scores")
    compute = pick_compute(device, settings.training.precision)
    model = BiEncoder.load(settings.base, settings.layers, settings.max_length)
    lists = sample_lists(candidates, qrels, settings.lists, seed, prior=prior, teacher=teacher)
    task = StudentTask(model, lists, queries, passages, settings, compute, dev, positives(qrels))
    label = "distilling the student" if settings.objective == "distill" else "training the control"
    result = fit(task, settings.training, seed, compute, work, progress, label)
    result.skipped = lists.skipped
    model.save(out)
    return result


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
    ) -> None:
        self.model, self.lists, self.settings, self.compute = model, lists, settings, compute
        self.queries, self.passages, self.dev, self.relevant = queries, passages, dev, relevant
        qids, self.query_row = np.unique(lists.qids, return_inverse=True)
        pids, passage_row = np.unique(lists.pids.ravel().astype(str), return_inverse=True)
        self.passage_row = passage_row.reshape(lists.pids.shape)  # (lists, candidates) -> row of passage_tokens
        self.query_tokens = model.tokenize(texts(qids.tolist(), queries, "qid"), settings.train_length)
        self.passage_tokens = model.tokenize(texts(pids.tolist(), passages, "pid"), settings.train_length)
        row_of = {pid: row for row, pid in enumerate(pids.tolist())}
        self.relevant_rows = [
            np.array(sorted(row_of[pid] for pid in lists.relevant[qid] if pid in row_of)) for qid in qids.tolist()
        ]

    def __len__(self) -> int:
        return len(self.lists)

    def digest(self) -> str:
        return f"{self.lists.digest()} {self.settings!r}"

    def loss(self, lists: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        settings, max_tokens = self.settings, self.settings.training.max_tokens
        rows, column = np.unique(self.passage_row[lists], return_inverse=True)
        query_vectors = forward_rows(self.model, self.query_tokens, self.query_row[lists], max_tokens)
        passage_vectors = forward_rows(self.model, self.passage_tokens, rows, max_tokens)
        with torch.autocast(query_vectors.device.type, enabled=False):  # cosines need more than bfloat16's 3 digits
            cosines = query_vectors @ passage_vectors.T  # (lists, passages of the step)
        columns = torch.from_numpy(column.reshape(len(lists), -1)).to(cosines.device)
        scores = cosines.gather(1, columns)  # (lists, candidates)
        loss = self._list_loss(scores, lists)
        if settings.label_weight:
            loss = loss + settings.label_weight * listwise_softmax(scores / settings.student_temperature)
        if settings.contrast_weight:
            relevant = torch.from_numpy(self._relevant(lists, rows)).to(cosines.device)
            contrast = in_batch_contrast(cosines, columns[:, 0], relevant, settings.contrast_temperature)
            loss = loss + settings.contrast_weight * contrast
        return loss, scores

    def _list_loss(self, scores: torch.Tensor, lists: np.ndarray) -> torch.Tensor:
        settings = self.settings
        if settings.objective == "hard_labels" or self.lists.teacher is None:
            return listwise_softmax(scores / settings.student_temperature)
        teacher = torch.from_numpy(self.lists.teacher[lists]).to(scores.device)
        if settings.distill_loss == "kl":
            return kl_divergence(scores, teacher, settings.student_temperature, settings.teacher_temperature)
        return margin_mse(scores / settings.student_temperature, teacher / settings.teacher_temperature)

    def _relevant(self, lists: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(lists, passages of the step) bool: judged positives, which are nobody's negatives."""
        return np.stack([np.isin(rows, self.relevant_rows[query]) for query in self.query_row[lists]])

    def evaluate(self) -> float | None:
        if self.dev is None or not len(self.dev):
            return None
        encoder = TorchEncoder(self.model, self.compute)
        return mean_reciprocal_rank(rank_by_cosine(self.dev, self.queries, self.passages, encoder), self.relevant)
