"""The student as ONNX, and as int8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.assets.corpus import passages, qrels, queries
from neuroranker_pipeline.assets.lake_asset import Needs, lake_asset
from neuroranker_pipeline.assets.previews import bars
from neuroranker_pipeline.assets.retrieval import bm25_candidates
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.assets.student import passage_embeddings, student_checkpoint
from neuroranker_pipeline.assets.training import texts_for
from neuroranker_pipeline.assets.unjudged import dev_positives
from neuroranker_pipeline.checks import export as checks
from neuroranker_pipeline.datasets.tables import read_batches, read_table

if TYPE_CHECKING:
    from neuroranker_pipeline.ranking.embeddings import Embeddings

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
        Needs(bm25_candidates, "dev"),
        passages,
        queries,
        qrels,
    ],
    settings=[
        "quantization",
        "bounds.int8_loss",
        "bounds.alpha",
        "bounds.batch_sensitivity",
        "learned_levels",
        "interpolation",
        "seed",
    ],
    checks=[checks.int8_loses_little, checks.ranking_is_stable],
    code_version="4",
)
def student_onnx_int8(step: Step) -> None:
    """The student with 8-bit weights; held to the float32 model's quality on the dev split, over all candidates. With it,
    how much BM25's score adds to its own."""
    from neuroranker_pipeline.export.quantize import batch_sensitivity, quantize_student
    from neuroranker_pipeline.ranking.dev import compare_on_dev
    from neuroranker_pipeline.ranking.embeddings import cosine_scores, encode_texts, rank_by_cosine, read_embeddings
    from neuroranker_pipeline.serving.onnx_model import OnnxEncoder

    calibration = _some_texts(step, CALIBRATION_TEXTS)
    quantize_student(step.read("student_onnx"), step.out, step.settings.quantization, calibration)
    relevant, dev = dev_positives(step), read_table(step.read("bm25_candidates", "dev"))
    texts, found = texts_for(step, dev)
    int8 = rank_by_cosine(dev, texts, found, OnnxEncoder(step.out))
    asked = encode_texts(texts, list(texts), OnnxEncoder(step.read("student_onnx")), "qid")
    stored = read_embeddings(step.read_all("passage_embeddings"), pc.unique(dev["pid"]))
    bounds, float32 = step.settings.bounds, cosine_scores(dev, asked, stored)
    test = compare_on_dev(int8, float32, relevant, -bounds.int8_loss, step.settings.seed)
    _choose_bm25_weight(step, dev, texts, stored, relevant)
    change = batch_sensitivity(step.out, ragged_texts(calibration[:PARITY_TEXTS]))
    step.record(**{"dev/MRR@10": test.model, "dev/float32/MRR@10": test.other, "batch_sensitivity": change})
    step.check(checks.int8_loses_little(test, bounds.alpha))
    step.check(checks.ranking_is_stable(change, bounds.batch_sensitivity))


def _choose_bm25_weight(
    step: Step, dev: pa.Table, texts: Mapping[str, str], stored: Embeddings, relevant: Mapping[str, set[str]]
) -> None:
    """Keep the weight of BM25's score beside the model, chosen on the dev split by the scores of the served search. An empty
    grid keeps none."""
    from neuroranker_pipeline.ranking.interpolation import choose_weight, search_run
    from neuroranker_pipeline.ranking.scoring import top_by
    from neuroranker_pipeline.serving.search import DEPTH

    if not step.settings.interpolation.grid:
        return
    scores = search_run(dev, texts, step.out, stored)  # without a weight yet: the cosine alone
    choice = choose_weight(scores, top_by(dev, DEPTH), relevant, step.settings.interpolation.grid)
    choice.write(step.out)
    step.record(bm25_weight=choice.weight, **{"dev/search/MRR@10": choice.grid[choice.weight]})
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
