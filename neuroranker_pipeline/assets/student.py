"""The student distilled from the teacher, its control, and the passages as the student sees them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from neuroranker_pipeline.assets.corpus import passages, qrels, queries
from neuroranker_pipeline.assets.lake_asset import Needs, lake_asset
from neuroranker_pipeline.assets.retrieval import bm25_candidates
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.assets.teacher import base_scores, teacher_scores
from neuroranker_pipeline.assets.training import embed_shard, lists_with_texts, record_training, write_card
from neuroranker_pipeline.checks import ranking as checks
from neuroranker_pipeline.config.settings import Settings
from neuroranker_pipeline.datasets.tables import read_table

if TYPE_CHECKING:
    from neuroranker_pipeline.ranking.loop import TrainingResult


@lake_asset(
    group="student",
    kinds={"pytorch"},
    needs=[
        Needs(teacher_scores, "train"),
        Needs(bm25_candidates, "train+dev"),
        Needs(base_scores, "train+dev"),
        passages,
        queries,
        qrels,
    ],
    settings=["student", "cascade_depth", "seed", "bounds.student_over_bm25", "bounds.student_over_base"],
    checks=[checks.loss_is_finite, checks.beats_bm25, checks.not_worse_than_base],
    pool="gpu",
)
def student_checkpoint(step: Step) -> None:
    """A bi-encoder distilled from the teacher's scores; opens with sentence-transformers' ``SentenceTransformer``."""
    from neuroranker_pipeline.ranking.device import pick_compute
    from neuroranker_pipeline.ranking.embeddings import TorchEncoder, rank_by_cosine
    from neuroranker_pipeline.ranking.lists import positives
    from neuroranker_pipeline.ranking.models import BiEncoder
    from neuroranker_pipeline.ranking.scoring import mean_reciprocal_rank

    result, dev, texts, found = _train(step, "distill")
    relevant = positives(read_table(step.read("qrels")))
    bm25_run, base_run = (read_table(step.read(name, "dev")) for name in ("bm25_candidates", "base_scores"))
    bm25, base = mean_reciprocal_rank(bm25_run, relevant), mean_reciprocal_rank(base_run, relevant)
    step.record(**{"dev/BM25/MRR@10": bm25, "dev/base student/MRR@10": base})
    mrr = step.figures["dev/MRR@10"]
    step.check(checks.beats_bm25(mrr, bm25, step.settings.bounds.student_over_bm25))
    step.check(checks.not_worse_than_base(mrr, base, step.settings.bounds.student_over_base))
    encoder = TorchEncoder(BiEncoder.load(step.out), pick_compute(step.settings.device))
    run = rank_by_cosine(dev, texts, found, encoder)
    runs = {"this model": run, "base student": base_run, "BM25": bm25_run}
    write_card(step, step.settings.student, result, runs)


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
    settings=["student", "cascade_depth", "seed"],
    checks=[checks.loss_is_finite],
    pool="gpu",
)
def student_control(step: Step) -> None:
    """The control of distillation: the same student, lists, steps and in-batch contrast, on hard labels alone."""
    _train(step, "hard_labels")


@lake_asset(
    group="student",
    kinds={"pytorch", "parquet"},
    needs=[student_checkpoint, passages],
    settings=["shards.passages"],
    shards="passages",
    checks=[checks.embeddings_are_unit_vectors],
    pool="gpu",
)
def passage_embeddings(step: Step) -> None:
    """The passages of the shard as the student's vectors: pid, embedding."""
    from neuroranker_pipeline.ranking.models import BiEncoder

    embed_shard(step, BiEncoder.load(step.read("student_checkpoint")))


def _train(
    step: Step, objective: Literal["distill", "hard_labels"]
) -> tuple[TrainingResult, pa.Table, dict[str, str], dict[str, str]]:
    """Train with one objective; everything else is the same, so that the difference is the teacher's.

    Returns what the run did, and the dev candidates with the texts of queries and passages.
    """
    from neuroranker_pipeline.ranking.launch import train
    from neuroranker_pipeline.ranking.lists import positives
    from neuroranker_pipeline.ranking.scoring import top_by

    settings = replace(step.settings.student, objective=objective)
    # Within the cascade the base student's MRR@10 is what it is without one, so the two may be compared.
    dev = top_by(read_table(step.read("base_scores", "dev")), step.settings.cascade_depth)
    teacher = objective == "distill" or _lists_need_teacher(step.settings)
    lists, texts, found = lists_with_texts(step, settings.lists, dev, teacher)
    result = train(
        lists,
        texts,
        found,
        positives(read_table(step.read("qrels"))),
        settings,
        step.settings.seed,
        step.out,
        step.work,
        dev=dev if objective == "distill" or settings.training.eval_every else None,
        device=step.settings.device,
        progress=step.progress,
    )
    record_training(step, result)
    return result, dev, texts, found
