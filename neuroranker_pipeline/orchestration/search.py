"""Two-stage search over the collection, from the lake's artifacts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from neuroranker_pipeline.datasets.tables import read_texts
from neuroranker_pipeline.errors import NotReady
from neuroranker_pipeline.resources.lake import label
from neuroranker_pipeline.resources.workspace import Workspace


@dataclass(frozen=True)
class Hit:
    """A passage found: its final rank and score, BM25's rank, the student's cosine (``score``), and the passage."""

    rank: int
    final_score: float
    bm25_rank: int
    score: float
    pid: str
    text: str


def open_search(workspace: Workspace) -> Callable[[str, int], list[Hit]]:
    """A function from (question, number of passages) to hits, best first: BM25's candidates by the cosine of the
    passage's stored vector with the question's, which the int8 student computes, and as much of BM25's score as the
    student's weight says.

    Raises ``NotReady`` when the index, the embeddings or the student have not been made.
    """
    from neuroranker_pipeline.assets import (
        bm25_parameters,
        lucene_index,
        passage_embeddings,
        passages,
        student_onnx_int8,
    )
    from neuroranker_pipeline.assets.retrieval import tuned_parameters
    from neuroranker_pipeline.datasets.joined import MAIN
    from neuroranker_pipeline.ranking.embeddings import read_embeddings
    from neuroranker_pipeline.ranking.interpolation import encode_queries, search_scores_of
    from neuroranker_pipeline.ranking.scoring import top_by
    from neuroranker_pipeline.retrieval.bm25 import Searcher
    from neuroranker_pipeline.serving.interpolation import bm25_weight
    from neuroranker_pipeline.serving.onnx_model import OnnxEncoder

    lake, settings = workspace.lake, workspace.settings
    encoder = OnnxEncoder(lake.read(student_onnx_int8.name))
    weight = bm25_weight(encoder.model_file.parent) or 0.0
    bm25 = tuned_parameters(settings.bm25, lake.read(bm25_parameters.name))
    searcher = Searcher(lake.read(lucene_index.name) / MAIN, bm25)
    student, shards = lake.usable(student_onnx_int8.name), []
    for shard in passage_embeddings.partitions(settings):
        embedded = lake.usable(passage_embeddings.name, shard)
        if student.inputs.get(label(embedded.asset, shard)) != embedded.data_version:
            raise NotReady("the embeddings and the int8 student are of different models: run `neuroranker run`")
        shards.append(lake.open(embedded))
    embeddings = read_embeddings(shards)
    collection = lake.read(passages.name)

    def search(question: str, count: int) -> list[Hit]:
        candidates = searcher.search({"question": question})
        if not candidates.num_rows:
            return []
        asked = encode_queries({"question": question}, ["question"], encoder)
        cosines = search_scores_of(candidates, asked, embeddings, 0.0)
        best = top_by(search_scores_of(candidates, asked, embeddings, weight), count).to_pylist()
        ranks, scores = _by_pid(candidates, "rank"), _by_pid(cosines, "score")
        pids = [row["pid"] for row in best]
        texts = read_texts(collection, "pid", pids)
        return [
            Hit(row["rank"], row["score"], ranks[pid], scores[pid], pid, texts[pid])
            for pid, row in zip(pids, best, strict=True)
        ]

    return search


def _by_pid(found: pa.Table, column: str) -> dict[str, Any]:
    """One column of one query's candidates."""
    return dict(zip(found["pid"].to_pylist(), found[column].to_pylist(), strict=True))
