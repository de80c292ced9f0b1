"""The student as ONNX, and as int8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from neuroranker_pipeline.assets.corpus import passages, qrels, queries
from neuroranker_pipeline.assets.lake_asset import Needs, lake_asset
from neuroranker_pipeline.assets.previews import bars
from neuroranker_pipeline.assets.retrieval import bm25_candidates
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.assets.student import passage_embeddings, student_checkpoint
from neuroranker_pipeline.assets.teacher import base_scores
from neuroranker_pipeline.assets.training import texts_for
from neuroranker_pipeline.checks import export as checks
from neuroranker_pipeline.datasets.tables import read_batches, read_table

if TYPE_CHECKING:
    from neuroranker_pipeline.ranking.embeddings import Encoder

PARITY_TEXTS = 64
CALIBRATION_TEXTS = 256


@lake_asset(
    group="export",
    kinds={"onnx"},
    needs=[student_checkpoint, passages],
    checks=[checks.onnx_agrees_with_pytorch],
    code_version="2",
)
def student_onnx(step: Step) -> None:
    """The student as one ONNX graph, from token ids to unit vectors."""
    from neuroranker_pipeline.export.onnx import export_student, parity

    student = step.read("student_checkpoint")
    export_student(student, step.out)
    texts = ragged_texts(_some_texts(step, PARITY_TEXTS))
    difference = parity(student, step.out, texts)
    step.record(largest_difference=difference)
    step.check(checks.onnx_agrees_with_pytorch(difference, len(texts)))


@lake_asset(
    group="export",
    kinds={"onnx"},
    needs=[
        student_onnx,
        Needs(passage_embeddings, "all"),
        Needs(base_scores, "dev"),
        Needs(bm25_candidates, "dev"),
        passages,
        queries,
        qrels,
    ],
    settings=["quantization", "bounds.int8_loss", "bounds.batch_sensitivity", "cascade_depth", "interpolation"],
    checks=[checks.int8_loses_little, checks.ranking_is_stable],
    code_version="3",
)
def student_onnx_int8(step: Step) -> None:
    """The student with 8-bit weights; held to the float32 model's quality on the dev split. With it, how much BM25's score
    adds to its own."""
    from neuroranker_pipeline.export.quantize import batch_sensitivity, quantize_student
    from neuroranker_pipeline.ranking.embeddings import cosine_scores, encode_texts, rank_by_cosine, read_embeddings
    from neuroranker_pipeline.ranking.lists import positives
    from neuroranker_pipeline.ranking.scoring import mean_reciprocal_rank, top_by
    from neuroranker_pipeline.serving.onnx_model import OnnxEncoder

    calibration = _some_texts(step, CALIBRATION_TEXTS)
    quantize_student(step.read("student_onnx"), step.out, step.settings.quantization, calibration)
    relevant = positives(read_table(step.read("qrels")))
    dev = top_by(read_table(step.read("base_scores", "dev")), step.settings.cascade_depth)
    texts, found = texts_for(step, dev)
    int8 = OnnxEncoder(step.out)
    int8_mrr = mean_reciprocal_rank(rank_by_cosine(dev, texts, found, int8), relevant)
    asked = encode_texts(texts, list(texts), OnnxEncoder(step.read("student_onnx")), "qid")
    float32 = cosine_scores(dev, asked, read_embeddings(step.read_all("passage_embeddings"), pc.unique(dev["pid"])))
    float32_mrr = mean_reciprocal_rank(float32, relevant)
    _choose_bm25_weight(step, int8, relevant)
    change = batch_sensitivity(step.out, ragged_texts(calibration[:PARITY_TEXTS]))
    step.record(**{"dev/MRR@10": int8_mrr, "dev/float32/MRR@10": float32_mrr, "batch_sensitivity": change})
    bounds = step.settings.bounds
    step.check(checks.int8_loses_little(int8_mrr, float32_mrr, bounds.int8_loss))
    step.check(checks.ranking_is_stable(change, bounds.batch_sensitivity))


def _choose_bm25_weight(step: Step, int8: Encoder, relevant: Mapping[str, set[str]]) -> None:
    """Keep the weight of BM25's score beside the model, chosen on the dev split by the scores of the served search: those of
    BM25's candidates, from their stored vectors and the int8 model's vector of the query. An empty grid keeps none."""
    from neuroranker_pipeline.ranking.embeddings import cosine_scores, encode_texts, read_embeddings
    from neuroranker_pipeline.ranking.interpolation import choose_weight

    if not step.settings.interpolation.grid:
        return
    candidates = read_table(step.read("bm25_candidates", "dev"))
    texts, _ = texts_for(step, candidates, passages=False)
    asked = encode_texts(texts, list(texts), int8, "qid")
    vectors = read_embeddings(step.read_all("passage_embeddings"), pc.unique(candidates["pid"]))
    scores = cosine_scores(candidates, asked, vectors)
    choice = choose_weight(scores, candidates, relevant, step.settings.interpolation.grid)
    choice.write(step.out)
    step.record(bm25_weight=choice.weight, **{"dev/int8 + BM25/MRR@10": choice.grid[choice.weight]})
    step.show("interpolation", bars({f"weight {weight:g}": value for weight, value in choice.grid.items()}))


def ragged_texts(texts: Sequence[str]) -> list[str]:
    """The texts cut to word counts from 1 up to their own, so that a batch of them is as ragged as can be."""
    shares = np.linspace(0, 1, len(texts))
    return [" ".join(text.split()[: max(1, round(share * 256))]) for share, text in zip(shares, texts, strict=True)]


def _some_texts(step: Step, count: int) -> list[str]:
    """``count`` passages, spread over the first batch of the collection."""
    batch = next(iter(read_batches(step.read("passages"), ["text"])))
    rows = np.linspace(0, batch.num_rows - 1, min(count, batch.num_rows)).astype(int)
    return batch["text"].take(rows.tolist()).to_pylist()
