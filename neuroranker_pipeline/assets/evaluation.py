"""Every ranker of the chain on the test splits."""

from __future__ import annotations

import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.assets.corpus import passages, qrels, queries
from neuroranker_pipeline.assets.export import student_onnx, student_onnx_int8
from neuroranker_pipeline.assets.lake_asset import Needs, lake_asset
from neuroranker_pipeline.assets.retrieval import bm25_candidates
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.assets.student import passage_embeddings, student_checkpoint, student_control
from neuroranker_pipeline.assets.teacher import base_scores, teacher_checkpoint, teacher_scores
from neuroranker_pipeline.assets.training import texts_for, training_history
from neuroranker_pipeline.checks import evaluation as checks
from neuroranker_pipeline.datasets.shards import judgments_of, queries_of_shard
from neuroranker_pipeline.datasets.tables import count_rows, read_table, read_texts
from neuroranker_pipeline.resources.manifest import Manifest

if TYPE_CHECKING:
    from neuroranker_pipeline.evaluation.evaluation import Evaluation
    from neuroranker_pipeline.evaluation.report import ReportContext

SHOWN_VERSIONS = ("torch", "transformers", "onnxruntime", "pyserini", "dagster", "bentoml")


@lake_asset(
    group="evaluation",
    kinds={"duckdb", "markdown", "html"},
    needs=[
        Needs(bm25_candidates, "own"),
        Needs(base_scores, "own"),
        Needs(teacher_scores, "own"),
        Needs(passage_embeddings, "all"),
        teacher_checkpoint,
        student_checkpoint,
        student_control,
        student_onnx,
        student_onnx_int8,
        passages,
        queries,
        qrels,
    ],
    settings=["device", "seed", "cascade_depth"],
    shards="tests",
    checks=[checks.agrees_with_trec_eval],
    by_content=False,
)
def eval_report(step: Step) -> None:
    """BM25, base student, teacher, student, its control and its exports on one test split: measured per query, tested in
    pairs."""
    from neuroranker_pipeline.evaluation.evaluation import evaluate
    from neuroranker_pipeline.evaluation.report import file_name, render_markdown, write_report
    from neuroranker_pipeline.evaluation.trec_eval import trec_eval_means

    assert step.partition is not None
    runs = _runs(step)
    asked = queries_of_shard(read_table(step.read("queries")), step.partition, step.settings.shards.train_queries)
    texts = dict(zip(asked["qid"].to_pylist(), asked["text"].to_pylist(), strict=True))
    judged = judgments_of(read_table(step.read("qrels")), texts)  # those too for which BM25 found nothing: they count 0
    level = step.settings.data.relevance_level(step.partition)
    result = evaluate(runs, judged, seed=step.settings.seed, relevance_level=level)
    report = write_report(result, _context(step, result, texts), step.out)
    step.record(result.queries, **result.figures())
    step.show("report", render_markdown(report))
    files = {name: step.out / "runs" / f"{file_name(name)}.trec" for name in runs}
    step.check(checks.agrees_with_trec_eval(result.figures(), trec_eval_means(files, judged, level)))


def _runs(step: Step) -> dict[str, pa.Table]:
    """Every ranker's run over the same candidates, in the order they are shown."""
    from neuroranker_pipeline.ranking.device import pick_compute
    from neuroranker_pipeline.ranking.embeddings import (
        Encoder,
        TorchEncoder,
        cosine_scores,
        encode_texts,
        rank_by_cosine,
        read_embeddings,
    )
    from neuroranker_pipeline.ranking.models import BiEncoder
    from neuroranker_pipeline.ranking.scoring import cascade_run, scores_table
    from neuroranker_pipeline.serving.engine import OnnxEncoder

    compute = pick_compute(step.settings.device)
    step.device = str(compute)
    candidates, base = read_table(step.read("bm25_candidates")), read_table(step.read("base_scores"))
    texts, found = texts_for(step, candidates)
    student = TorchEncoder(BiEncoder.load(step.read("student_checkpoint")), compute)
    asked = encode_texts(texts, sorted(texts), student, "qid")
    pids = pc.unique(candidates["pid"])
    teacher = read_table(step.read("teacher_scores"))
    runs = {
        "BM25": candidates,
        "base student": base,
        "cross-encoder": cascade_run(base, scores_table(teacher, teacher["cross_encoder"].to_numpy())),
        "teacher": cascade_run(base, teacher),
        "student": cosine_scores(candidates, asked, read_embeddings(step.read_all("passage_embeddings"), pids)),
    }
    others: dict[str, Encoder] = {
        "hard-label control": TorchEncoder(BiEncoder.load(step.read("student_control")), compute),
        "student ONNX": OnnxEncoder(step.read("student_onnx")),
        "student int8": OnnxEncoder(step.read("student_onnx_int8")),
    }
    for done, (name, encoder) in enumerate(others.items()):
        step.progress("measuring rankers", done, len(others))
        runs[name] = rank_by_cosine(candidates, texts, found, encoder)
    return runs


def _context(step: Step, result: Evaluation, texts: dict[str, str]) -> ReportContext:
    """What the report says beside the numbers."""
    from neuroranker_pipeline.evaluation.report import ReportContext

    _, pids = result.example_ids()
    models = {
        "teacher": "teacher_checkpoint",
        "student": "student_checkpoint",
        "hard-label control": "student_control",
        "student ONNX": "student_onnx",
        "student int8": "student_onnx_int8",
    }
    trained = ("teacher", "student", "hard-label control")
    return ReportContext(
        profile=step.settings.profile,
        split=step.partition or "test",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset={
            "name": step.source.name,
            "passages": count_rows(step.read("passages")),
            "queries": count_rows(step.read("queries")),
            "judgments": count_rows(step.read("qrels")),
            "licence": step.source.licence,
        },
        settings=asdict(step.settings),
        versions={
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in SHOWN_VERSIONS},
        },
        costs=[_cost(name, step.manifest(asset)) for name, asset in models.items()],
        histories={name: training_history(step.read(models[name])) for name in trained},
        queries=texts,
        passages=read_texts(step.read("passages"), "pid", pids),
        notes=[
            "The teacher is the cross-encoder's score plus the base student's, brought to the same spread. Both re-score "
            f"the base student's top {step.settings.cascade_depth}; the candidates below keep the base student's order.",
            "The hard-label control is the student trained on the same lists in the same steps, without the teacher.",
        ],
    )


def _cost(name: str, manifest: Manifest) -> dict[str, Any]:
    weights = max(int(entry["bytes"]) for entry in manifest.files.values())
    seconds = manifest.figures.get("training_seconds")
    return {"name": name, "bytes": weights, **({"seconds": seconds} if seconds is not None else {})}
