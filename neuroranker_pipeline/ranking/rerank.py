"""Re-rank a run with any of our models: a teacher, a student, or an ONNX export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa

from neuroranker_pipeline.progress import Progress, silent
from neuroranker_pipeline.ranking.device import Compute, pick_compute
from neuroranker_pipeline.ranking.embeddings import Encoder, rank_by_cosine
from neuroranker_pipeline.ranking.ensemble import combine
from neuroranker_pipeline.ranking.hub import resolve_model
from neuroranker_pipeline.ranking.members import Single, open_base, open_member, read_members, score_pairs
from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder
from neuroranker_pipeline.ranking.scoring import scores_table, texts

if TYPE_CHECKING:
    from neuroranker_pipeline.serving.cross_encoder import OnnxCrossEncoder


class Ranker(Protocol):
    """Gives every candidate a score."""

    def rerank(
        self,
        candidates: pa.Table,
        queries: Mapping[str, str],
        passages: Mapping[str, str],
        progress: Progress = silent,
    ) -> pa.Table:
        """A scores table with the rows of ``candidates`` (qid, pid, ...), in their order."""


@dataclass(frozen=True)
class VectorRanker:
    """Ranks by the cosine of query and passage vectors."""

    encoder: Encoder

    def rerank(
        self,
        candidates: pa.Table,
        queries: Mapping[str, str],
        passages: Mapping[str, str],
        progress: Progress = silent,
    ) -> pa.Table:
        scores = rank_by_cosine(candidates, queries, passages, self.encoder)
        progress("re-ranking", len(scores), len(scores))
        return scores


@dataclass(frozen=True)
class TorchRanker:
    """Ranks by a cross-encoder's score of each query-passage pair, or by a bi-encoder's cosine."""

    model: CrossEncoder | BiEncoder
    compute: Compute

    def rerank(
        self,
        candidates: pa.Table,
        queries: Mapping[str, str],
        passages: Mapping[str, str],
        progress: Progress = silent,
    ) -> pa.Table:
        return score_pairs(self.model, candidates, queries, passages, self.compute, progress)


@dataclass(frozen=True)
class EnsembleRanker:
    """Ranks by the weighted sum of its members' scores, each standardized over the candidates of a query."""

    members: Mapping[str, Ranker]
    weights: Mapping[str, float]

    def rerank(
        self,
        candidates: pa.Table,
        queries: Mapping[str, str],
        passages: Mapping[str, str],
        progress: Progress = silent,
    ) -> pa.Table:
        scores = {name: member.rerank(candidates, queries, passages, progress) for name, member in self.members.items()}
        return combine(scores, self.weights)


@dataclass(frozen=True)
class OnnxPairRanker:
    """Ranks as the service does with a cross-encoder: by the logit of each query-passage pair."""

    model: OnnxCrossEncoder

    def rerank(
        self,
        candidates: pa.Table,
        queries: Mapping[str, str],
        passages: Mapping[str, str],
        progress: Progress = silent,
    ) -> pa.Table:
        rows_of: dict[str, list[int]] = {}
        for row, qid in enumerate(candidates["qid"].to_pylist()):
            rows_of.setdefault(qid, []).append(row)
        asked, read = texts(list(rows_of), queries, "qid"), texts(candidates["pid"].to_pylist(), passages, "pid")
        scores, done = np.empty(len(read), np.float32), 0
        for query, rows in zip(asked, rows_of.values(), strict=True):
            scores[rows] = self.model.score(query, [read[row] for row in rows])
            done += len(rows)
            progress("re-ranking", done, len(read))
        return scores_table(candidates, scores)


def load_ranker(model: str | Path, compute: Compute | None = None) -> Ranker:
    """Open a teacher, student or ONNX folder, or a model named as ``resolve_model`` allows.

    A teacher that is an ensemble ranks as one; that of one cross-encoder, by the cross-encoder alone.
    ``compute`` is chosen by ``pick_compute()`` when not given; ONNX models run on the CPU. Raises ``ModelNotFound``,
    or ``BadInput`` when the folder is none of these.
    """
    folder = resolve_model(model)
    if (folder / "model.onnx").is_file():
        from neuroranker_pipeline.serving.cross_encoder import OnnxCrossEncoder, open_model  # needs onnxruntime

        exported = open_model(folder)
        return OnnxPairRanker(exported) if isinstance(exported, OnnxCrossEncoder) else VectorRanker(exported)
    compute, held = compute or pick_compute(), read_members(folder)
    if isinstance(held, Single):
        return TorchRanker(open_member(folder), compute)
    places = {name: held.members[name].folder for name in held.weights}
    models = {name: open_base(held) if at is None else open_member(folder / at) for name, at in places.items()}
    return EnsembleRanker({name: TorchRanker(model, compute) for name, model in models.items()}, held.weights)


def rerank(
    model: str | Path,
    candidates: pa.Table,
    queries: Mapping[str, str],
    passages: Mapping[str, str],
    compute: Compute | None = None,
    progress: Progress = silent,
) -> pa.Table:
    """Score the candidates of a run with ``model``: a scores table in the rows' order."""
    return load_ranker(model, compute).rerank(candidates, queries, passages, progress)
