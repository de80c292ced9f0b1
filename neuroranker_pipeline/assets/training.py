"""What the assets that train, score and embed have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.assets.previews import curve
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.checks import ranking as checks
from neuroranker_pipeline.datasets.licences import terms_of
from neuroranker_pipeline.datasets.shards import judgments_of, rows_of_shard
from neuroranker_pipeline.datasets.tables import count_rows, read_rows, read_table, read_texts
from neuroranker_pipeline.orchestration.partitions import train_shards

if TYPE_CHECKING:
    from neuroranker_pipeline.ranking.lists import TrainingLists
    from neuroranker_pipeline.ranking.loop import TrainingResult
    from neuroranker_pipeline.ranking.models import BiEncoder
    from neuroranker_pipeline.ranking.settings import ListSettings, StudentSettings, TeacherSettings

TRAINING_RECORD = "training.json"
CARD_MEASURES = ("MRR@10", "nDCG@10")


def texts_for(step: Step, pairs: pa.Table, passages: bool = True) -> tuple[dict[str, str], dict[str, str]]:
    """The texts of the queries and (unless told not to) of the passages that ``pairs`` (qid, pid) names."""
    queries = read_texts(step.read("queries"), "qid", pc.unique(pairs["qid"]).to_pylist())
    found = read_texts(step.read("passages"), "pid", pc.unique(pairs["pid"]).to_pylist()) if passages else {}
    return queries, found


def draw_lists(step: Step, settings: ListSettings, teacher: bool) -> TrainingLists:
    """The training lists of all training queries, drawn a shard at a time; with the teacher's scores if told to.

    Equal to those drawn from everything at once, in the memory of one shard's candidates.
    """
    from neuroranker_pipeline.ranking.lists import join_lists, sample_lists

    judged, parts = read_table(step.read("qrels")), []
    for shard in train_shards(step.settings):
        candidates, prior = (read_table(step.read(name, shard)) for name in ("bm25_candidates", "base_scores"))
        scores = read_table(step.read("teacher_scores", shard)) if teacher else None
        parts.append(sample_lists(candidates, judged, settings, step.settings.seed, prior=prior, teacher=scores))
    return join_lists(parts, settings, step.settings.seed)


def lists_with_texts(
    step: Step, settings: ListSettings, dev: pa.Table, teacher: bool
) -> tuple[TrainingLists, dict[str, str], dict[str, str]]:
    """``draw_lists``, and the texts of the drawn and of the dev queries and passages alone."""
    lists = draw_lists(step, settings, teacher)
    return lists, *texts_for(step, pa.concat_tables([list_pairs(lists), dev.select(["qid", "pid"])]))


def list_pairs(lists: TrainingLists) -> pa.Table:
    """The distinct (qid, pid) pairs of training lists."""
    qids = np.repeat(np.asarray(lists.qids, dtype=object), lists.pids.shape[1])
    table = pa.table({"qid": pa.array(qids, pa.string()), "pid": pa.array(lists.pids.ravel(), pa.string())})
    return table.group_by(["qid", "pid"], use_threads=False).aggregate([])


def pairs_to_learn_from(step: Step, prior: pa.Table) -> pa.Table:
    """The pairs (qid, pid) of a training shard that the teacher is to score: those of the student's training lists.

    Lists that the teacher's own scores decide on (``teacher_margin``) need its scores of all that they may draw.
    """
    from neuroranker_pipeline.ranking.lists import sample_lists, with_positives

    settings = step.settings.student.lists
    candidates, judged = read_table(step.read("bm25_candidates")), read_table(step.read("qrels"))
    if settings.teacher_margin is not None:
        return with_positives(candidates, judged).select(["qid", "pid"])
    return list_pairs(sample_lists(candidates, judged, settings, step.settings.seed, prior=prior))


def embed_shard(step: Step, model: BiEncoder) -> None:
    """Embed the passages of the step's shard."""
    from neuroranker_pipeline.ranking.device import pick_compute
    from neuroranker_pipeline.ranking.embeddings import embed_passages, read_embeddings

    assert step.partition is not None
    compute = pick_compute(step.settings.device)
    folder = step.read("passages")
    rows = rows_of_shard(count_rows(folder), step.partition, step.settings.shards.passages)
    total = rows.stop - rows.start
    batches = read_rows(folder, rows)
    step.record(embed_passages(batches, total, step.out, model, compute, step.progress, step.work))
    step.device = str(compute)
    embedded = read_embeddings(step.out)
    expected = [pid for batch in read_rows(folder, rows, ["pid"]) for pid in batch["pid"].to_pylist()]
    step.check(checks.embeddings_are_unit_vectors(embedded.ids.to_pylist(), expected, embedded.vectors))


def record_training(step: Step, result: TrainingResult) -> None:
    """Keep what a training run did: beside the weights, in the manifest, the metrics and the UI."""
    (step.out / TRAINING_RECORD).write_text(json.dumps(asdict(result), indent=2))
    losses = [(int(row["step"]), row["loss"]) for row in result.history if "loss" in row]
    step.show("loss", curve(losses, "loss"))
    step.check(checks.loss_is_finite([loss for _, loss in losses]))
    step.device = result.device
    step.curve(result.history)
    step.record(
        result.examples,
        steps=result.steps,
        training_seconds=result.seconds,
        examples_per_second=result.examples / max(result.seconds, 1e-9),
        **({"dev/MRR@10": result.dev_mrr} if result.dev_mrr is not None else {}),
    )


def write_card(
    step: Step,
    settings: TeacherSettings | StudentSettings,
    result: TrainingResult,
    runs: Mapping[str, pa.Table],
    base_factor: float = 0.0,
) -> None:
    """Put a model card beside the weights, with the measures of some rankers' runs over the dev queries."""
    from neuroranker_pipeline.evaluation.measures import measure_vectors, ranked
    from neuroranker_pipeline.evaluation.significance import bootstrap_interval
    from neuroranker_pipeline.ranking.card import CARD, Estimate, model_card
    from neuroranker_pipeline.ranking.lists import positives

    judged = judgments_of(read_table(step.read("qrels")), pc.unique(runs["BM25"]["qid"]).to_pylist())
    judged = judgments_of(judged, positives(judged))
    estimates: dict[str, dict[str, Estimate]] = {}
    for name, run in runs.items():
        _, found = measure_vectors(ranked(run.select(["qid", "pid", "score"])), judged, CARD_MEASURES)
        estimates[name] = {m: Estimate(float(v.mean()), *bootstrap_interval(v)) for m, v in found.items()}
    data = terms_of(step.source, step.settings.data, step.settings.training_collections)
    queries = pc.count_distinct(judged["qid"]).as_py()
    card = model_card(settings, step.settings.seed, result, data, estimates, queries, base_factor)
    (step.out / CARD).write_text(card, encoding="utf-8")


def training_history(folder: Path) -> list[dict[str, Any]]:
    """The loss curve and evaluations of a trained model's folder."""
    return json.loads((folder / TRAINING_RECORD).read_text())["history"]
