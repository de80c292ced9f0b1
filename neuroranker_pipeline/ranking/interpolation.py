"""How much BM25's score adds to a model's: the weight chosen on judged queries, kept and told with the model.

The score itself, and where its weight lies, is in :mod:`neuroranker_pipeline.serving.interpolation`, which the service
carries; here it is computed for tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.serving.interpolation import INTERPOLATION_FILE, WEIGHT, bm25_weight, search_scores
from neuroranker_pipeline.serving.onnx_model import read_json

if TYPE_CHECKING:
    from neuroranker_pipeline.ranking.embeddings import Embeddings
    from neuroranker_pipeline.serving.onnx_model import OnnxEncoder


@dataclass(frozen=True)
class Choice:
    """The best weight of a grid: MRR@10 by weight, over so many judged queries."""

    weight: float
    grid: Mapping[float, float]
    queries: int

    def write(self, folder: Path) -> None:
        """Keep it beside a model, where whoever ranks with the model finds it."""
        about = {
            WEIGHT: self.weight,
            "measure": "MRR@10",
            "split": "dev",
            "queries": self.queries,
            "grid": [{"weight": weight, "value": value} for weight, value in self.grid.items()],
        }
        (folder / INTERPOLATION_FILE).write_text(json.dumps(about, indent=2) + "\n", "utf-8")


def interpolate(scores: pa.Table, first_stage: pa.Table, weight: float) -> pa.Table:
    """``scores`` + ``weight`` x ``first_stage``, each standardized per query, as a scores table in the rows of ``scores``.

    Both hold the same (qid, pid) pairs. A weight of 0 leaves ``scores`` as they are.
    """
    from neuroranker_pipeline.ranking.ensemble import combine

    if not weight:
        return scores
    return combine({"model": scores, "first stage": first_stage}, {"model": 1.0, "first stage": weight})


def search_run(candidates: pa.Table, queries: Mapping[str, str], model: Path, passages: Embeddings) -> pa.Table:
    """What the service's ``/search`` gives for queries whose BM25 ``candidates`` (qid, pid, score) are known.

    A scores table of BM25's first ``DEPTH`` of every query: the cosine of the passage's stored vector with the query's,
    which the int8 ``model`` (its folder) computes, and BM25's score by the weight kept there. Equal to the bit, and in
    ``ranked``'s order, to what a search of the packaged collection gives. queries: qid -> text; ``passages``: what
    ``read_embeddings`` finds of the candidates. Raises ``BadInput`` for a query or passage that is missing.
    """
    from neuroranker_pipeline.serving.onnx_model import OnnxEncoder

    asked = encode_queries(queries, pc.unique(candidates["qid"]).to_pylist(), OnnxEncoder(model))
    return search_scores_of(candidates, asked, passages, bm25_weight(model) or 0.0)


def encode_queries(queries: Mapping[str, str], qids: list[str], encoder: OnnxEncoder) -> Embeddings:
    """The queries' vectors as the service computes them; raises ``BadInput`` for an id without text."""
    from neuroranker_pipeline.ranking.embeddings import Embeddings
    from neuroranker_pipeline.ranking.scoring import texts

    return Embeddings(pa.array(qids, pa.string()), encoder.encode_queries(texts(qids, queries, "qid")))


def search_scores_of(candidates: pa.Table, queries: Embeddings, passages: Embeddings, weight: float) -> pa.Table:
    """As ``search_run``, from the queries' vectors and BM25's weight; best first in BM25's order."""
    from neuroranker_pipeline.ranking.scoring import query_numbers, scores_table, top_by
    from neuroranker_pipeline.serving.search import DEPTH

    found = top_by(candidates, DEPTH)
    asked, rows = queries.rows(found["qid"], "qid"), passages.rows(found["pid"])
    bm25, scores = found["score"].to_numpy(), np.empty(len(found), np.float32)
    starts = np.searchsorted(query_numbers(found), np.arange(len(pc.unique(found["qid"])) + 1))
    for start, end in pairwise(starts.tolist()):
        part = slice(start, end)
        stored = passages.vectors[rows[part]].astype(np.float16)  # as the collection keeps them
        scores[part] = search_scores(stored, queries.vectors[asked[start]], bm25[part], weight)[1]
    return scores_table(found, scores)


def choose_weight(
    scores: pa.Table, first_stage: pa.Table, relevant: Mapping[str, set[str]], grid: Sequence[float]
) -> Choice:
    """The weight of ``grid`` with the highest MRR@10, the smallest of equals. Without judged queries that is the smallest.

    relevant: the positives of each judged query, none of which was trained on.
    """
    from neuroranker_pipeline.ranking.scoring import mean_reciprocal_rank

    found = {
        weight: mean_reciprocal_rank(interpolate(scores, first_stage, weight), relevant) for weight in sorted(grid)
    }
    return Choice(max(found, key=lambda weight: found[weight]), found, len(relevant))


def card_section(model: Path) -> str:
    """What a model's card says of its weight, as a section of Markdown; nothing for a model without one."""
    about = read_json(model / INTERPOLATION_FILE)
    if not about:
        return ""
    rows = [f"| {row['weight']:g} | {row['value']:.4f} |" for row in about["grid"]]
    table = "\n".join([f"| weight | {about['measure']} |", "| --- | --- |", *rows])
    return (
        "## With BM25\n\n"
        "Where BM25's scores are known, the final score is the int8 model's cosine, standardized over the candidates of the "
        f"query, plus {about[WEIGHT]:g} x BM25's score, standardized likewise (`{INTERPOLATION_FILE}`). The weight is the "
        f"best of these over {about['queries']:,} queries of the {about['split']} split, the smallest of equals; 0 is the "
        f"model alone:\n\n{table}\n"
    )
