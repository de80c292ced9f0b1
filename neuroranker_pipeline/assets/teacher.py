"""What the untouched base student knows, and the teacher trained beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.assets.columns import EMBEDDINGS, Columns
from neuroranker_pipeline.assets.corpus import passages, qrels, queries
from neuroranker_pipeline.assets.ensemble import train_ensemble
from neuroranker_pipeline.assets.lake_asset import Needs, lake_asset
from neuroranker_pipeline.assets.previews import bars, table_preview
from neuroranker_pipeline.assets.retrieval import bm25_candidates
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.assets.training import (
    check_against_bm25,
    embed_shard,
    lists_with_texts,
    pairs_to_learn_from,
    record_training,
    texts_for,
    training_lists,
    write_card,
)
from neuroranker_pipeline.assets.unjudged import IN_OWN_SHARDS, dev_positives, judgments_for, rests
from neuroranker_pipeline.checks import ranking as checks
from neuroranker_pipeline.datasets.shards import judgments_of
from neuroranker_pipeline.datasets.tables import SCORES, TEACHER_SCORES, read_table, write_table
from neuroranker_pipeline.orchestration.partitions import is_learned, is_unjudged

if TYPE_CHECKING:
    from neuroranker_pipeline.ranking.embeddings import Embeddings, Encoder


@lake_asset(
    group="teacher",
    kinds={"pytorch", "parquet"},
    needs=[passages],
    settings=["student.base", "student.layers", "student.max_length", "shards.passages"],
    shards="passages",
    checks=[checks.embeddings_are_unit_vectors],
    pool="gpu",
    columns=Columns(EMBEDDINGS, {"pid": "passages.pid", "embedding": "passages.text"}),
)
def base_embeddings(step: Step) -> None:
    """The passages of the shard as vectors of the untouched base student: pid, embedding."""
    from neuroranker_pipeline.ranking.models import BiEncoder

    student = step.settings.student
    embed_shard(step, BiEncoder.load(student.base, student.layers, student.max_length))


@lake_asset(
    group="teacher",
    kinds={"pytorch", "parquet"},
    needs=[Needs(base_embeddings, "all"), Needs(bm25_candidates, "own"), queries, IN_OWN_SHARDS, qrels],
    settings=["student.base", "student.layers", "student.max_length", "relevance_levels", "judged_negatives"],
    shards="queries",
    checks=[checks.scores_are_sane],
    pool="gpu",
    columns=Columns(
        SCORES,
        {
            "qid": "bm25_candidates.qid",
            "pid": "bm25_candidates.pid qrels.pid",
            "score": "queries.text base_embeddings.embedding",
        },
    ),
)
def base_scores(step: Step) -> None:
    """The untouched base student's cosine for every candidate, and for positives to learn from that BM25 missed.

    It is the ranker to beat, the first stage of the teacher's cascade, and the judge of false negatives.
    """
    from neuroranker_pipeline.evaluation.measures import mean_measures
    from neuroranker_pipeline.ranking.device import pick_compute
    from neuroranker_pipeline.ranking.embeddings import TorchEncoder, cosine_scores, encode_texts
    from neuroranker_pipeline.ranking.lists import with_judged
    from neuroranker_pipeline.ranking.models import BiEncoder

    assert step.partition is not None
    candidates, judged = read_table(step.read("bm25_candidates")), judgments_for(step, step.partition)
    if is_learned(step.partition):
        candidates = with_judged(candidates, judged, step.settings.judged_negatives)
    student, compute = step.settings.student, pick_compute(step.settings.device)
    model = BiEncoder.load(student.base, student.layers, student.max_length)
    encoder = TorchEncoder(model, compute, step.work)
    texts, _ = texts_for(step, candidates, passages=False)
    encoded = encode_texts(texts, list(texts), encoder, "qid")
    scores = cosine_scores(candidates, encoded, _base_vectors(step, pc.unique(candidates["pid"]), encoder))
    level, mine = step.settings.data.relevant_from(step.partition), judgments_of(read_table(step.read("qrels")), texts)
    measured = mine.num_rows and not is_unjudged(step.partition)
    measures = mean_measures(scores, mine, relevance_level=level) if measured else {}
    step.record(write_table(step.out, scores, SCORES), **measures)
    step.device = str(compute)
    step.show("measures", bars(measures))
    step.check(checks.scores_are_sane(scores))


def _base_vectors(step: Step, pids: pa.Array, encoder: Encoder) -> Embeddings:
    """The base student's vectors of passages, stored ones, and new ones of what is left of unjudged queries' passages."""
    from neuroranker_pipeline.ranking.embeddings import Embeddings, encode_texts, read_embeddings

    stored, own = read_embeddings(step.read_all("base_embeddings"), pids), rests(step)
    own = own.filter(pc.is_in(own["pid"], pids))
    if not own.num_rows:
        return stored
    texts = dict(zip(own["pid"].to_pylist(), own["text"].to_pylist(), strict=True))
    new = encode_texts(texts, list(texts), encoder, "pid")
    return Embeddings(pa.concat_arrays([stored.ids, new.ids]), np.concatenate([stored.vectors, new.vectors]))


@lake_asset(
    group="teacher",
    kinds={"pytorch"},
    needs=[Needs(bm25_candidates, "train+dev"), Needs(base_scores, "train+dev"), passages, queries, qrels],
    settings=[
        "teacher",
        "learned_levels",
        "collection_weights",
        "cascade_depth",
        "seed",
        "bounds.teacher_over_bm25",
        "bounds.alpha",
    ],
    checks=[checks.loss_is_finite, checks.not_worse_than_bm25],
    pool="gpu",
)
def teacher_checkpoint(step: Step) -> None:
    """A cross-encoder trained on judged candidates; opens with sentence-transformers' ``CrossEncoder``.

    The teacher is its sum with the base student's score, brought to the same spread on the dev split: trained on few
    queries, each of the two knows what the other does not. Where the settings name members, it is an ensemble of them all.
    """
    from neuroranker_pipeline.ranking.device import pick_compute
    from neuroranker_pipeline.ranking.launch import train
    from neuroranker_pipeline.ranking.members import Single
    from neuroranker_pipeline.ranking.models import CrossEncoder
    from neuroranker_pipeline.ranking.scoring import (
        add_scores,
        mean_reciprocal_rank,
        mean_spread,
        score_candidates,
        top_by,
    )

    if step.settings.teacher.members:
        return train_ensemble(step)
    settings, relevant = step.settings.teacher.recipe(), dev_positives(step)
    dev = top_by(read_table(step.read("base_scores", "dev")), step.settings.cascade_depth)
    lists, texts, found = lists_with_texts(step, training_lists(step, settings.lists), dev)
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
    spread = mean_spread(dev)
    # Without dev queries nothing says what the two scores' spreads are.
    factor = settings.base_weight * mean_spread(alone) / spread if spread else 0.0
    Single(factor).write(step.out)
    bm25_run, total = read_table(step.read("bm25_candidates", "dev")), add_scores(alone, dev, factor)
    record_training(step, result)
    step.record(**{"dev/cross-encoder/MRR@10": mean_reciprocal_rank(alone, relevant), "base_factor": factor})
    check_against_bm25(step, total, bm25_run, relevant, step.settings.bounds.teacher_over_bm25)
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
        IN_OWN_SHARDS,
        qrels,
    ],
    settings=["cascade_depth", "student.lists", "learned_levels", "collection_weights", "seed"],
    shards="queries",
    checks=[checks.scores_are_complete, checks.scores_are_sane],
    pool="gpu",
    columns=Columns(
        TEACHER_SCORES,
        {
            "qid": "base_scores.qid",
            "pid": "base_scores.pid",
            "score": "queries.text passages.text base_scores.score",
            "cross_encoder": "queries.text passages.text",
        },
    ),
)
def teacher_scores(step: Step) -> None:
    """The teacher's score of the pairs that matter, and the cross-encoder's share: qid, pid, score, cross_encoder.

    In a shard that the student learns from, the passages of its training lists; in an evaluation split, the candidates that
    the base student ranks highest (a cascade), the others keeping its order. The cross-encoder is an ensemble's best member.
    """
    from neuroranker_pipeline.ranking.device import pick_compute
    from neuroranker_pipeline.ranking.members import score_teacher
    from neuroranker_pipeline.ranking.scoring import top_by

    assert step.partition is not None
    prior, learned = read_table(step.read("base_scores")), is_learned(step.partition)
    pairs = pairs_to_learn_from(step, prior) if learned else top_by(prior, step.settings.cascade_depth)
    texts, found = texts_for(step, pairs)
    compute = pick_compute(step.settings.device)
    teacher, progress = step.read("teacher_checkpoint"), step.progress
    total, best = score_teacher(teacher, pairs, prior, texts, found, compute, progress, step.work, lists=learned)
    scores = total.append_column("cross_encoder", best["score"])
    step.record(write_table(step.out, scores, TEACHER_SCORES))
    step.device = str(compute)
    step.show("preview", table_preview(scores))
    step.check(checks.scores_are_complete(scores, pairs))
    step.check(checks.scores_are_sane(scores))
