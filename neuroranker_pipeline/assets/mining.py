"""The student's training in rounds: after each but the last, it chooses by its own scores what it is trained on next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.assets.training import finished, list_pairs, lists_with_texts, sampling_weight, texts_for
from neuroranker_pipeline.assets.unjudged import dev_positives, judgments_for, own_pairs
from neuroranker_pipeline.datasets.tables import read_table

if TYPE_CHECKING:
    from neuroranker_pipeline.ranking.lists import TrainingLists
    from neuroranker_pipeline.ranking.loop import TrainingResult
    from neuroranker_pipeline.ranking.settings import StudentSettings

Texts = tuple[dict[str, str], dict[str, str]]
"""Of queries by qid, and of passages by pid."""


def train_in_rounds(
    step: Step, settings: StudentSettings, lists: TrainingLists, texts: Texts, shards: Sequence[str], dev: pa.Table
) -> list[TrainingResult]:
    """Train the student on ``lists``, and then as often as ``mining.rounds`` says on lists that it chooses itself.

    The last round's model lies in the artifact's folder; those before are kept in the work folder, so that a run that was
    killed does not train them again.
    """
    rounds = step.settings.mining.rounds
    results: list[TrainingResult] = []
    work = step.work / "training-0" if rounds else step.work
    for number in range(rounds):
        model = step.work / f"round-{number}"
        results.append(finished(model, partial(_fit, step, settings, lists, texts, dev, work)))
        lists, queries, passages = lists_with_texts(step, _mined(step, settings, model, shards), dev)
        texts, work = (queries, passages), step.work / f"training-{number + 1}"
        settings = replace(settings, base=str(model), layers=None)
    return [*results, _fit(step, settings, lists, texts, dev, work, step.out)]


def _fit(
    step: Step, settings: StudentSettings, lists: TrainingLists, texts: Texts, dev: pa.Table, work: Path, out: Path
) -> TrainingResult:
    from neuroranker_pipeline.ranking.launch import train

    return train(
        lists,
        *texts,
        dev_positives(step),
        settings,
        step.settings.seed,
        out,
        work,
        dev=dev if settings.training.eval_every else None,
        device=step.settings.device,
        progress=step.progress,
    )


def _mined(step: Step, settings: StudentSettings, model: Path, shards: Sequence[str]) -> TrainingLists:
    """Lists of each shard's queries, their negatives among the passages that the student itself ranks highest.

    What the teacher has not scored yet it scores now. A query without judgments keeps to what it has scored.
    """
    from neuroranker_pipeline.ranking.device import pick_compute
    from neuroranker_pipeline.ranking.embeddings import TorchEncoder, rank_by_cosine
    from neuroranker_pipeline.ranking.lists import join_lists, sample_lists, with_judged
    from neuroranker_pipeline.ranking.members import score_teacher
    from neuroranker_pipeline.ranking.models import BiEncoder
    from neuroranker_pipeline.ranking.unjudged import best_as_positive

    compute, seed, parts = pick_compute(step.settings.device), step.settings.seed, []
    drawing = replace(settings.lists, order="prior", depth=step.settings.mining.depth)
    distilled = settings.objective == "distill"
    for shard in shards:
        scores = (
            read_table(step.read("teacher_scores", shard)) if distilled or drawing.teacher_margin is not None else None
        )
        judged, scored = judgments_for(step, shard), drawing.teacher_margin is not None
        if scores is not None and not judged.num_rows:
            judged, scored = best_as_positive(scores), True
        candidates = read_table(step.read("bm25_candidates", shard))
        candidates = with_judged(candidates, judged, drawing.judged_negatives > 0)
        queries, passages = texts_for(step, candidates)
        encoder = TorchEncoder(BiEncoder.load(model), compute, step.work / f"mining-{model.name}-{shard}")
        own, weight = rank_by_cosine(candidates, queries, passages, encoder), sampling_weight(step, shard)
        teacher = scores if scored else None
        lists = sample_lists(candidates, judged, drawing, seed + 1, prior=own, teacher=teacher, weight=weight)
        if distilled and not scored:
            prior, pairs = read_table(step.read("base_scores", shard)), list_pairs(lists)
            place = step.work / f"scoring-{model.name}-{shard}"
            found = score_teacher(
                step.read("teacher_checkpoint"),
                pairs,
                prior,
                queries,
                passages,
                compute,
                step.progress,
                place,
                lists=True,
            )
            lists = lists.with_teacher(found[0])
        parts.append(lists)
    return join_lists(parts, drawing, seed).sparing(own_pairs(step))
