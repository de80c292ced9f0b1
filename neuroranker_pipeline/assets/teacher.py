"""What the untouched base student knows, and the teacher trained beside it."""

from __future__ import annotations

import json

import pyarrow.compute as pc

from neuroranker_pipeline.assets.corpus import passages, qrels, queries
from neuroranker_pipeline.assets.lake_asset import Needs, lake_asset
from neuroranker_pipeline.assets.previews import bars, table_preview
from neuroranker_pipeline.assets.retrieval import bm25_candidates
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.assets.training import (
    embed_shard,
    lists_with_texts,
    pairs_to_learn_from,
    record_training,
    texts_for,
    write_card,
)
from neuroranker_pipeline.checks import ranking as checks
from neuroranker_pipeline.datasets.shards import judgments_of
from neuroranker_pipeline.datasets.tables import SCORES, TEACHER_SCORES, read_table, write_table

ENSEMBLE = "ensemble.json"  # beside the cross-encoder: how much of the base student's score the teacher adds


@lake_asset(
    group="teacher",
    kinds={"pytorch", "parquet"},
    needs=[passages],
    settings=["student.base", "student.layers", "student.max_length", "shards.passages"],
    shards="passages",
    checks=[checks.embeddings_are_unit_vectors],
    pool="gpu",
)
def base_embeddings(step: Step) -> None:
    """The passages of the shard as vectors of the untouched base student: pid, embedding."""
    from neuroranker_pipeline.ranking.models import BiEncoder

    student = step.settings.student
    embed_shard(step, BiEncoder.load(student.base, student.layers, student.max_length))


@lake_asset(
    group="teacher",
    kinds={"pytorch", "parquet"},
    needs=[Needs(base_embeddings, "all"), Needs(bm25_candidates, "own"), queries, qrels],
    settings=["student.base", "student.layers", "student.max_length"],
    shards="queries",
    checks=[checks.scores_are_sane],
    pool="gpu",
)
def base_scores(step: Step) -> None:
    """The untouched base student's cosine for every candidate, and for training positives that BM25 missed.

    It is the ranker to beat, the first stage of the teacher's cascade, and the judge of false negatives.
    """
    from neuroranker_pipeline.evaluation.measures import mean_measures
    from neuroranker_pipeline.ranking.device import pick_compute
    from neuroranker_pipeline.ranking.embeddings import TorchEncoder, cosine_scores, encode_texts, read_embeddings
    from neuroranker_pipeline.ranking.lists import with_positives
    from neuroranker_pipeline.ranking.models import BiEncoder

    assert step.partition is not None
    candidates, judged = read_table(step.read("bm25_candidates")), read_table(step.read("qrels"))
    if step.partition.startswith("train"):
        candidates = with_positives(candidates, judged)
    student, compute = step.settings.student, pick_compute(step.settings.device)
    model = BiEncoder.load(student.base, student.layers, student.max_length)
    texts, _ = texts_for(step, candidates, passages=False)
    encoded = encode_texts(texts, list(texts), TorchEncoder(model, compute, step.work), "qid")
    vectors = read_embeddings(step.read_all("base_embeddings"), pc.unique(candidates["pid"]))
    scores = cosine_scores(candidates, encoded, vectors)
    level = step.settings.data.relevance_level(step.partition)
    measures = mean_measures(scores, judgments_of(judged, texts), relevance_level=level)
    step.record(write_table(step.out, scores, SCORES), **measures)
    step.device = str(compute)
    step.show("measures", bars(measures))
    step.check(checks.scores_are_sane(scores))


@lake_asset(
    group="teacher",
    kinds={"pytorch"},
    needs=[Needs(bm25_candidates, "train+dev"), Needs(base_scores, "train+dev"), passages, queries, qrels],
    settings=["teacher", "cascade_depth", "seed", "bounds.teacher_over_bm25"],
    checks=[checks.loss_is_finite, checks.beats_bm25],
    pool="gpu",
)
def teacher_checkpoint(step: Step) -> None:
    """A cross-encoder trained on judged candidates; opens with sentence-transformers' ``CrossEncoder``.

    The teacher is its sum with the base student's score, brought to the same spread on the dev split: trained on few
    queries, each of the two knows what the other does not.
    """
    from neuroranker_pipeline.ranking.device import pick_compute
    from neuroranker_pipeline.ranking.launch import train
    from neuroranker_pipeline.ranking.lists import positives
    from neuroranker_pipeline.ranking.models import CrossEncoder
    from neuroranker_pipeline.ranking.scoring import (
        add_scores,
        mean_reciprocal_rank,
        mean_spread,
        score_candidates,
        top_by,
    )

    settings, relevant = step.settings.teacher, positives(read_table(step.read("qrels")))
    dev = top_by(read_table(step.read("base_scores", "dev")), step.settings.cascade_depth)
    lists, texts, found = lists_with_texts(step, settings.lists, dev, teacher=False)
    result = train(
        lists,
        texts,
        found,
        relevant,
        settings,
        step.settings.seed,
        step.out,
        step.work,
        dev=dev if settings.training.eval_every else None,
        device=step.settings.device,
        progress=step.progress,
    )
    compute = pick_compute(step.settings.device)
    alone = score_candidates(CrossEncoder.load(step.out), dev, texts, found, compute, step.progress)
    factor = settings.base_weight * mean_spread(alone) / mean_spread(dev)
    (step.out / ENSEMBLE).write_text(json.dumps({"base_factor": factor}))
    bm25_run, total = read_table(step.read("bm25_candidates", "dev")), add_scores(alone, dev, factor)
    mrr, bm25 = mean_reciprocal_rank(total, relevant), mean_reciprocal_rank(bm25_run, relevant)
    record_training(step, result)
    figures = {"dev/MRR@10": mrr, "dev/cross-encoder/MRR@10": mean_reciprocal_rank(alone, relevant)}
    step.record(**figures, **{"dev/BM25/MRR@10": bm25, "base_factor": factor})
    step.check(checks.beats_bm25(mrr, bm25, step.settings.bounds.teacher_over_bm25))
    ensemble = {"with the base student's score": total} if factor else {}
    runs = {"this model": alone, **ensemble, "base student": dev, "BM25": bm25_run}
    write_card(step, settings, result, runs, factor)


@lake_asset(
    group="teacher",
    kinds={"pytorch", "parquet"},
    needs=[
        teacher_checkpoint,
        Needs(bm25_candidates, "own"),
        Needs(base_scores, "own"),
        passages,
        queries,
        qrels,
    ],
    settings=["cascade_depth", "student.lists", "seed"],
    shards="queries",
    checks=[checks.scores_are_complete, checks.scores_are_sane],
    pool="gpu",
)
def teacher_scores(step: Step) -> None:
    """The teacher's score of the pairs that matter, and the cross-encoder's share: qid, pid, score, cross_encoder.

    In a training shard, the passages of the student's training lists; in an evaluation split, the candidates that the
    base student ranks highest (a cascade), the others keeping its order.
    """
    from neuroranker_pipeline.ranking.device import pick_compute
    from neuroranker_pipeline.ranking.models import CrossEncoder
    from neuroranker_pipeline.ranking.scoring import add_scores, score_candidates, top_by

    assert step.partition is not None
    prior = read_table(step.read("base_scores"))
    if step.partition.startswith("train"):
        pairs = pairs_to_learn_from(step, prior)
    else:
        pairs = top_by(prior, step.settings.cascade_depth)
    texts, found = texts_for(step, pairs)
    compute = pick_compute(step.settings.device)
    model = CrossEncoder.load(step.read("teacher_checkpoint"))
    alone = score_candidates(model, pairs, texts, found, compute, step.progress, step.work)
    factor = json.loads((step.read("teacher_checkpoint") / ENSEMBLE).read_text())["base_factor"]
    scores = add_scores(alone, prior, factor).append_column("cross_encoder", alone["score"])
    step.record(write_table(step.out, scores, TEACHER_SCORES))
    step.device = str(compute)
    step.show("preview", table_preview(scores))
    step.check(checks.scores_are_complete(scores, pairs))
    step.check(checks.scores_are_sane(scores))
