"""Every ranker of the chain on the test splits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.assets.corpus import LEAKS_FILE, passages, qrels, queries
from neuroranker_pipeline.assets.export import student_onnx, student_onnx_int8
from neuroranker_pipeline.assets.lake_asset import Needs, lake_asset
from neuroranker_pipeline.assets.policies import NIGHTLY
from neuroranker_pipeline.assets.retrieval import bm25_candidates
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.assets.student import passage_embeddings, student_checkpoint, student_control
from neuroranker_pipeline.assets.teacher import base_scores, teacher_checkpoint, teacher_scores
from neuroranker_pipeline.assets.timing import SAME_COST, latencies
from neuroranker_pipeline.assets.training import texts_for, training_history
from neuroranker_pipeline.checks import evaluation as checks
from neuroranker_pipeline.datasets.shards import judgments_of
from neuroranker_pipeline.datasets.tables import count_rows, read_table, read_texts
from neuroranker_pipeline.evaluation.rankers import BASE, FIRST_STAGE, INT8, SEARCH
from neuroranker_pipeline.orchestration.partitions import WHOLE_DEV, reported_parts
from neuroranker_pipeline.resources import software
from neuroranker_pipeline.resources.evaluations import past_measures
from neuroranker_pipeline.resources.manifest import Manifest

if TYPE_CHECKING:
    from neuroranker_pipeline.evaluation.evaluation import Evaluation
    from neuroranker_pipeline.evaluation.latency import Latency
    from neuroranker_pipeline.evaluation.report import ReportContext

EXPORTS = ("student ONNX", INT8)
WEIGHTS = (".safetensors", ".onnx", ".onnx.data")
KEPT_MEASURES = 2  # of an evaluation, query by query in the run metrics: what later evaluations are compared in


@lake_asset(
    group="evaluation",
    kinds={"duckdb", "markdown", "html"},
    needs=[
        Needs(bm25_candidates, "parts"),
        Needs(base_scores, "parts"),
        Needs(teacher_scores, "parts"),
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
    settings=["device", "seed", "cascade_depth", "timing_seconds", "relevance_levels"],
    shards="tests",
    checks=[checks.agrees_with_trec_eval],
    pool="gpu",  # the rankers run there, and are timed
    freshness=NIGHTLY,
    code_version="3",
    by_content=False,
)
def eval_report(step: Step) -> None:
    """BM25, base student, teacher, student, its control and its exports on one test split: measured per query, tested in
    pairs, timed, and compared with earlier evaluations."""
    from neuroranker_pipeline.evaluation.evaluation import evaluate
    from neuroranker_pipeline.evaluation.groups import query_groups
    from neuroranker_pipeline.evaluation.report import file_name, plot_images, render_markdown, write_report
    from neuroranker_pipeline.evaluation.trec_eval import trec_eval_means

    assert step.partition is not None
    runs, timed = _runs(step)
    asked = read_table(step.read("queries"))
    asked = asked.filter(pc.is_in(asked["split"], pa.array(reported_parts(step.partition, step.settings))))
    texts = dict(zip(asked["qid"].to_pylist(), asked["text"].to_pylist(), strict=True))
    judged = judgments_of(read_table(step.read("qrels")), texts)  # those too for which BM25 found nothing: they count 0
    level = step.settings.data.relevant_from(reported_parts(step.partition, step.settings)[0])
    result = evaluate(
        runs,
        judged,
        seed=step.settings.seed,
        relevance_level=level,
        final=SEARCH,
        groups=query_groups(texts),
        scores=_teacher_scores(step),
    )
    report = write_report(result, _context(step, result, texts, timed), step.out)
    step.record(result.queries, **result.figures())
    step.measure({**result.more_figures(), **cost_figures(report["costs"])})
    step.keep_per_query(result.values(result.measures[:KEPT_MEASURES]))
    step.show("report", render_markdown(report))
    for title, image in plot_images(report).items():
        step.show(title, image)
    files = {name: step.out / "runs" / f"{file_name(name)}.trec" for name in runs}
    step.check(checks.agrees_with_trec_eval(result.figures(), trec_eval_means(files, judged, level)))


def _teacher_scores(step: Step) -> dict[str, pa.Table]:
    """The scores that the teacher's models gave, whose runs go on below them with the base student's order."""
    table = read_table(step.read_all("teacher_scores"))
    alone = table.drop(["score"]).rename_columns({"cross_encoder": "score"})
    return {"teacher": table, "cross-encoder": alone}


def _runs(step: Step) -> tuple[dict[str, pa.Table], dict[str, Latency]]:
    """Every ranker's run over the same candidates, in the order they are shown, and how long a query takes."""
    from neuroranker_pipeline.evaluation.latency import queries_to_time
    from neuroranker_pipeline.ranking.device import pick_compute
    from neuroranker_pipeline.ranking.embeddings import (
        Encoder,
        TorchEncoder,
        cosine_scores,
        encode_texts,
        rank_by_cosine,
        read_embeddings,
    )
    from neuroranker_pipeline.ranking.interpolation import search_run
    from neuroranker_pipeline.ranking.models import BiEncoder
    from neuroranker_pipeline.ranking.scoring import cascade_run, scores_table
    from neuroranker_pipeline.serving.onnx_model import OnnxEncoder

    compute = pick_compute(step.settings.device)
    step.device = str(compute)
    candidates, base, teacher = (
        read_table(step.read_all(name)) for name in ("bm25_candidates", "base_scores", "teacher_scores")
    )
    texts, found = texts_for(step, candidates)
    student = TorchEncoder(BiEncoder.load(step.read("student_checkpoint")), compute)
    asked = encode_texts(texts, sorted(texts), student, "qid")
    stored = read_embeddings(step.read_all("passage_embeddings"), pc.unique(candidates["pid"]))
    runs = {
        FIRST_STAGE: candidates,
        BASE: base,
        "cross-encoder": cascade_run(base, scores_table(teacher, teacher["cross_encoder"].to_numpy())),
        "teacher": cascade_run(base, teacher),
        "student": cosine_scores(candidates, asked, stored),
    }
    others: dict[str, Encoder] = {
        "hard-label control": TorchEncoder(BiEncoder.load(step.read("student_control")), compute),
        "student ONNX": OnnxEncoder(step.read("student_onnx")),
        INT8: OnnxEncoder(step.read("student_onnx_int8")),
    }
    for done, (name, encoder) in enumerate(others.items()):
        step.progress("measuring rankers", done, len(others))
        runs[name] = rank_by_cosine(candidates, texts, found, encoder)
    runs[SEARCH] = search_run(candidates, texts, step.read("student_onnx_int8"), stored)
    exports = {name: encoder for name, encoder in others.items() if name in EXPORTS}
    return runs, latencies(step, queries_to_time(candidates, texts, found), student, exports)


def _context(step: Step, result: Evaluation, texts: dict[str, str], timed: Mapping[str, Latency]) -> ReportContext:
    """What the report says beside the numbers."""
    from neuroranker_pipeline.evaluation.report import ReportContext

    _, pids = result.example_ids()
    split = step.partition or "test"
    models = {
        "cross-encoder": "teacher_checkpoint",
        "teacher": "teacher_checkpoint",
        "student": "student_checkpoint",
        "hard-label control": "student_control",
        "student ONNX": "student_onnx",
        INT8: "student_onnx_int8",
    }
    trained = ("teacher", "student", "hard-label control")
    return ReportContext(
        profile=step.settings.profile,
        split=split,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset={
            "name": step.source.name,
            "passages": count_rows(step.read("passages")),
            "queries": count_rows(step.read("queries")),
            "judgments": count_rows(step.read("qrels")),
            "licence": step.source.licence,
        },
        settings=asdict(step.settings),
        versions=software.versions(),
        costs=[_cost(row.ranker, models, timed, step) for row in result.rankers if row.ranker in timed],
        histories={name: training_history(step.read(models[name])) for name in trained},
        queries=texts,
        passages=read_texts(step.read("passages"), "pid", pids),
        history=past_measures(step.metrics, split, result.primary),
        run_id=step.run_id,
        notes=_notes(step),
        leaks=json.loads((step.read("queries") / LEAKS_FILE).read_text("utf-8")),
    )


def _notes(step: Step) -> list[str]:
    from neuroranker_pipeline.ranking.members import Ensemble, read_members

    held = read_members(step.read("teacher_checkpoint"))
    teacher = "The teacher is the cross-encoder's score plus the base student's, brought to the same spread."
    if isinstance(held, Ensemble):
        teacher = f"The teacher is a weighted sum of {', '.join(held.weights)}; the cross-encoder is {held.best} alone."
    # Without a teacher there is nothing to learn from queries that nobody judged.
    judged = step.settings.unjudged.source == "none"
    lists = "on the same lists in the same steps" if judged else "with the same settings on the judged queries alone"
    return [
        f"{teacher} Both re-score "
        f"the base student's top {step.settings.cascade_depth}; the candidates below keep the base student's order.",
        f"The hard-label control is the student trained {lists}, without the teacher.",
        "Times are those of a query with its passages, measured here. The base student and the control compute what the "
        "student does, and were not timed apart. The times of the cross-encoder and the teacher are those of a cascade, the "
        "student's over all candidates included.",
        "The scores of the cross-encoder and the teacher are those of the candidates that they scored: their separation is "
        "not to be compared with that of rankers that scored all.",
        _search_note(step),
        *_split_notes(step),
    ]


def _search_note(step: Step) -> str:
    from neuroranker_pipeline.serving.interpolation import bm25_weight

    weight = bm25_weight(step.read("student_onnx_int8"))
    what = (
        "Search is what the service's /search gives, which ships and which the release gate judges: the cosine of the "
    )
    what += "int8 student's vector of the query with the stored vectors of BM25's first 100 passages"
    if not weight:
        return f"{what}."
    return (
        f"{what}, plus {weight:g} x BM25's score, each standardized over the query's candidates. The weight was chosen on "
        "the dev split."
    )


def _split_notes(step: Step) -> list[str]:
    """What must be known of the queries."""
    notes = []
    if own := int(step.manifest("qrels").figures["own_passages"]):
        notes.append(
            f"{own:,} queries are passages of the collection themselves (the same id): such a passage is no candidate of "
            "its own query, and is not learned from for it. `data.queries_are_passages` switches that off."
        )
    if step.partition == WHOLE_DEV:
        notes.append(
            "This is the development set as the field reports it, whole. Part of it chose checkpoints and weights, so its "
            "figures flatter somewhat; the test splits decided nothing."
        )
    return notes


def _cost(name: str, models: Mapping[str, str], timed: Mapping[str, Latency], step: Step) -> dict[str, Any]:
    """What a ranker costs: the size of its weights, its training and its time."""
    latency = timed[name]
    cost: dict[str, Any] = {
        "name": name,
        "device": step.device if name not in EXPORTS else "cpu",
        "milliseconds": latency.milliseconds,
        "slowest": latency.slowest,
        "passages_per_second": latency.passages_per_second,
        "bytes": _weights(name, step.manifest(models.get(name) or models[SAME_COST[name]])),
    }
    if name in models and (seconds := step.manifest(models[name]).figures.get("training_seconds")) is not None:
        cost["seconds"] = seconds
    return cost


def _weights(name: str, manifest: Manifest) -> int:
    """The bytes of a model's weights: of an ensemble's members too for the teacher, the cross-encoder being one of them."""
    files = {file: int(entry["bytes"]) for file, entry in manifest.files.items() if file.endswith(WEIGHTS)}
    return sum(size for file, size in files.items() if name == "teacher" or "/" not in file)


def cost_figures(costs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``{"student int8/ms_per_query": 210.0, ...}``: what the run metrics keep of the costs."""
    names = {"milliseconds": "ms_per_query", "passages_per_second": "passages_per_second", "bytes": "bytes"}
    return {f"{cost['name']}/{figure}": cost[key] for cost in costs for key, figure in names.items() if key in cost}
