"""The student distilled from the teacher, its control, and the passages as the student sees them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pyarrow as pa

from neuroranker_pipeline.assets.corpus import passages, qrels, queries
from neuroranker_pipeline.assets.lake_asset import Needs, lake_asset
from neuroranker_pipeline.assets.retrieval import bm25_candidates
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.assets.teacher import base_scores, teacher_scores
from neuroranker_pipeline.assets.training import embed_shard, record_training, texts_for
from neuroranker_pipeline.checks import ranking as checks
from neuroranker_pipeline.datasets.tables import read_table


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
    from neuroranker_pipeline.ranking.lists import positives
    from neuroranker_pipeline.ranking.scoring import mean_reciprocal_rank

    _train(step, "distill")
    relevant = positives(read_table(step.read("qrels")))
    bm25 = mean_reciprocal_rank(read_table(step.read("bm25_candidates", "dev")), relevant)
    base = mean_reciprocal_rank(read_table(step.read("base_scores", "dev")), relevant)
    step.record(**{"dev/BM25/MRR@10": bm25, "dev/base student/MRR@10": base})
    mrr = step.figures["dev/MRR@10"]
    step.check(checks.beats_bm25(mrr, bm25, step.settings.bounds.student_over_bm25))
    step.check(checks.not_worse_than_base(mrr, base, step.settings.bounds.student_over_base))


@lake_asset(
    group="student",
    kinds={"pytorch"},
    needs=[
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


def _train(step: Step, objective: Literal["distill", "hard_labels"]) -> None:
    """Train with one objective; everything else is the same, so that the difference is the teacher's."""
    from neuroranker_pipeline.ranking.lists import with_positives
    from neuroranker_pipeline.ranking.scoring import top_by
    from neuroranker_pipeline.ranking.student import train_student

    judged = read_table(step.read("qrels"))
    candidates = with_positives(read_table(step.read_all("bm25_candidates", "train")), judged)
    # Within the cascade the base student's MRR@10 is what it is without one, so the two may be compared.
    dev = top_by(read_table(step.read("base_scores", "dev")), step.settings.cascade_depth)
    texts, found = texts_for(step, pa.concat_tables([candidates.select(["qid", "pid"]), dev.select(["qid", "pid"])]))
    result = train_student(
        candidates,
        judged,
        texts,
        found,
        replace(step.settings.student, objective=objective),
        step.settings.seed,
        step.out,
        step.work,
        teacher=read_table(step.read_all("teacher_scores")) if objective == "distill" else None,
        dev=dev if objective == "distill" or step.settings.student.training.eval_every else None,
        prior=read_table(step.read_all("base_scores")),
        device=step.settings.device,
        progress=step.progress,
    )
    record_training(step, result)
