"""The student distilled from the teacher, its control, and the passages as the student sees them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from neuroranker_pipeline.assets.columns import EMBEDDINGS, Columns
from neuroranker_pipeline.assets.corpus import passages, qrels, queries
from neuroranker_pipeline.assets.lake_asset import Needs, lake_asset
from neuroranker_pipeline.assets.mining import train_in_rounds
from neuroranker_pipeline.assets.retrieval import bm25_candidates
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.assets.teacher import base_scores, teacher_checkpoint, teacher_scores
from neuroranker_pipeline.assets.training import (
    check_against_bm25,
    draw_lists,
    embed_shard,
    lists_with_texts,
    record_training,
    write_card,
)
from neuroranker_pipeline.assets.unjudged import dev_positives, unjudged_queries, wanted
from neuroranker_pipeline.checks import ranking as checks
from neuroranker_pipeline.config.settings import Settings
from neuroranker_pipeline.datasets.tables import count_rows, read_table
from neuroranker_pipeline.orchestration.partitions import learned_shards, train_shards

if TYPE_CHECKING:
    from neuroranker_pipeline.ranking.loop import TrainingResult


def _mines(settings: Settings) -> bool:
    return settings.mining.rounds > 0


@lake_asset(
    group="student",
    kinds={"pytorch"},
    needs=[
        Needs(teacher_scores, "learned"),
        Needs(teacher_checkpoint, when=_mines),
        Needs(bm25_candidates, "learned+dev"),
        Needs(base_scores, "learned+dev"),
        passages,
        queries,
        Needs(unjudged_queries, when=wanted),
        qrels,
    ],
    settings=[
        "student",
        "mining",
        "learned_levels",
        "collection_weights",
        "seed",
        "bounds.student_over_bm25",
        "bounds.student_over_base",
        "bounds.alpha",
    ],
    checks=[checks.loss_is_finite, checks.not_worse_than_bm25, checks.not_worse_than_base],
    pool="gpu",
)
def student_checkpoint(step: Step) -> None:
    """A bi-encoder distilled from the teacher's scores; opens with sentence-transformers' ``SentenceTransformer``.

    It learns from the training queries, and from those without judgments where the settings ask for them.
    """
    from neuroranker_pipeline.ranking.dev import compare_on_dev
    from neuroranker_pipeline.ranking.device import pick_compute
    from neuroranker_pipeline.ranking.embeddings import TorchEncoder, rank_by_cosine
    from neuroranker_pipeline.ranking.models import BiEncoder

    result, dev, texts, found = _train(step, "distill")
    encoder = TorchEncoder(BiEncoder.load(step.out), pick_compute(step.settings.device))
    run, relevant, bounds = rank_by_cosine(dev, texts, found, encoder), dev_positives(step), step.settings.bounds
    bm25_run = read_table(step.read("bm25_candidates", "dev"))
    check_against_bm25(step, run, bm25_run, relevant, bounds.student_over_bm25)
    against_base = compare_on_dev(run, dev, relevant, bounds.student_over_base, step.settings.seed)
    step.record(**{"dev/base student/MRR@10": against_base.other})
    step.check(checks.not_worse_than_base(against_base, bounds.alpha))
    write_card(step, step.settings.student, result, {"this model": run, "base student": dev, "BM25": bm25_run})


def _lists_need_teacher(settings: Settings) -> bool:
    return settings.student.lists.teacher_margin is not None


@lake_asset(
    group="student",
    kinds={"pytorch"},
    needs=[
        Needs(teacher_scores, "train", when=_lists_need_teacher),
        Needs(bm25_candidates, "train+dev"),
        Needs(base_scores, "train+dev"),
        passages,
        queries,
        qrels,
    ],
    settings=["student", "mining", "learned_levels", "collection_weights", "seed"],
    checks=[checks.loss_is_finite],
    pool="gpu",
)
def student_control(step: Step) -> None:
    """The control of distillation: the same student, lists, steps and in-batch contrast, on hard labels alone.

    It learns from the judged queries only; where there is none, it stays the untouched base student.
    """
    from neuroranker_pipeline.ranking.loop import TrainingResult
    from neuroranker_pipeline.ranking.models import BiEncoder

    if any(count_rows(step.read("bm25_candidates", shard)) for shard in train_shards(step.settings)):
        _train(step, "hard_labels")
    else:
        student = step.settings.student
        BiEncoder.load(student.base, student.layers, student.max_length).save(step.out)
        record_training(step, TrainingResult(), trained=False)


@lake_asset(
    group="student",
    kinds={"pytorch", "parquet"},
    needs=[student_checkpoint, passages],
    settings=["shards.passages"],
    shards="passages",
    checks=[checks.embeddings_are_unit_vectors],
    pool="gpu",
    columns=Columns(EMBEDDINGS, {"pid": "passages.pid", "embedding": "passages.text"}),
)
def passage_embeddings(step: Step) -> None:
    """The passages of the shard as the student's vectors: pid, embedding."""
    from neuroranker_pipeline.ranking.models import BiEncoder

    embed_shard(step, BiEncoder.load(step.read("student_checkpoint")))


def _train(
    step: Step, objective: Literal["distill", "hard_labels"]
) -> tuple[TrainingResult, pa.Table, dict[str, str], dict[str, str]]:
    """Train with one objective; everything else is the same, so that the difference is the teacher's.

    Returns what the run did, and the base student's run over all dev candidates with the texts of queries and passages.
    """
    settings = replace(step.settings.student, objective=objective)
    dev = read_table(step.read("base_scores", "dev"))
    teacher = objective == "distill" or _lists_need_teacher(step.settings)
    shards = learned_shards(step.settings) if objective == "distill" else train_shards(step.settings)
    lists, texts, found = lists_with_texts(step, draw_lists(step, settings.lists, shards, teacher), dev)
    results = train_in_rounds(step, settings, lists, (texts, found), shards, dev)
    record_training(step, results[-1], results[:-1])
    return results[-1], dev, texts, found
