"""A teacher of several members: each trained or taken as it is, and all weighted on the dev split."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.assets.previews import bars
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.assets.training import (
    check_against_bm25,
    finished,
    lists_with_texts,
    record_training,
    texts_for,
    training_lists,
    write_card,
)
from neuroranker_pipeline.assets.unjudged import dev_positives
from neuroranker_pipeline.datasets.tables import read_table
from neuroranker_pipeline.ranking.settings import BASE_STUDENT, MemberSettings

if TYPE_CHECKING:
    from neuroranker_pipeline.ranking.loop import TrainingResult
    from neuroranker_pipeline.ranking.members import Ensemble


def train_ensemble(step: Step) -> None:
    """The body of ``teacher_checkpoint`` where the settings name members.

    Each finished member is kept in the work folder: a run that was killed goes on with the one it was at.
    """
    from neuroranker_pipeline.ranking.device import pick_compute
    from neuroranker_pipeline.ranking.members import MEMBERS, open_member, score_pairs, together
    from neuroranker_pipeline.ranking.scoring import top_by

    settings, relevant = step.settings.teacher, dev_positives(step)
    dev = top_by(read_table(step.read("base_scores", "dev")), step.settings.cascade_depth)
    texts, found = texts_for(step, dev)
    compute = pick_compute(step.settings.device)
    step.device = str(compute)
    results, scores = {}, {}
    for name, member in settings.members.items():
        folder, place = step.work / MEMBERS / name, step.work / "dev" / name
        results[name] = finished(folder, partial(_made, step, name, member, dev, relevant))
        scores[name] = score_pairs(open_member(folder), dev, texts, found, compute, step.progress, place)
    scores[BASE_STUDENT] = dev.select(["qid", "pid", "score"])
    ensemble = _weighted(step, scores, relevant)
    _put_together(step, ensemble)
    total, alone = together(ensemble, scores), scores[ensemble.best]
    bm25_run = read_table(step.read("bm25_candidates", "dev"))
    others = [result for name, result in results.items() if name != ensemble.best]
    record_training(step, results[ensemble.best], others, trained=any(m.train for m in settings.members.values()))
    step.record(**{"dev/cross-encoder/MRR@10": ensemble.members[ensemble.best].dev})
    check_against_bm25(step, total, bm25_run, relevant, step.settings.bounds.teacher_over_bm25)
    shown = {name: run for name, run in scores.items() if name not in (ensemble.best, BASE_STUDENT)}
    runs = {"this model": alone, "the ensemble": total, **shown, "base student": dev, "BM25": bm25_run}
    best = settings.members[ensemble.best]
    if best.train:  # a model taken as it is has a card of its own, which says what it is and learned from
        write_card(step, best.recipe(), results[ensemble.best], runs, weights=ensemble.weights)


def _made(
    step: Step, name: str, member: MemberSettings, dev: pa.Table, relevant: Mapping[str, set[str]], out: Path
) -> TrainingResult:
    """Train a member into the folder ``out``, or save it there as it is."""
    from neuroranker_pipeline.ranking.launch import train
    from neuroranker_pipeline.ranking.loop import TrainingResult
    from neuroranker_pipeline.ranking.members import save_ready

    if not member.train:
        save_ready(member, out)
        return TrainingResult()

    def progress(label: str, done: int, total: int) -> None:
        step.progress(f"{label} {name}", done, total)

    seed = step.settings.seed if member.seed is None else member.seed
    drawn = training_lists(step, member.lists, seed, member.collections)
    lists, texts, found = lists_with_texts(step, drawn, dev)
    return train(
        lists,
        texts,
        found,
        relevant,
        member.recipe(),
        seed,
        out,
        step.work / f"training-{name}",
        dev=dev if member.training.eval_every else None,
        device=step.settings.device,
        progress=progress,
    )


def _weighted(step: Step, scores: Mapping[str, pa.Table], relevant: Mapping[str, set[str]]) -> Ensemble:
    """The members with their weights, which the dev split alone decides, and the best of them: a cross-encoder, if any."""
    from neuroranker_pipeline.evaluation.measures import mean_measures
    from neuroranker_pipeline.ranking.ensemble import choose_weights
    from neuroranker_pipeline.ranking.members import MEMBERS, Ensemble, Member, is_cross_encoder
    from neuroranker_pipeline.ranking.scoring import mean_reciprocal_rank, mean_spread

    measure, level = step.settings.teacher.measure, step.settings.data.relevant_from("dev")
    judged = read_table(step.read("qrels"))
    judged = judged.filter(pc.equal(judged["split"], "dev"))

    def quality(run: pa.Table) -> float:
        if measure == "MRR@10" or not judged.num_rows:  # without dev queries all weights are equal
            return mean_reciprocal_rank(run, relevant)
        return mean_measures(run, judged, [measure], level)[measure]

    weights = choose_weights(scores, quality)
    alone = {name: mean_reciprocal_rank(run, relevant) for name, run in scores.items()}
    models = [name for name in scores if name != BASE_STUDENT]
    best = max([m for m in models if is_cross_encoder(step.work / MEMBERS / m)] or models, key=alone.__getitem__)
    folders = {name: f"{MEMBERS}/{name}" for name in models} | {best: "."}
    members = {
        name: Member(folders.get(name), weights[name], mean_spread(run), alone[name]) for name, run in scores.items()
    }
    step.record(**{f"weight/{name}": weight for name, weight in weights.items()})
    step.record(**{f"dev/{name}/MRR@10": value for name, value in alone.items()})
    step.show("weights", bars(weights))
    student = step.settings.student
    base = {"name": student.base, "layers": student.layers, "max_length": student.max_length}
    return Ensemble(members, best, base)


def _put_together(step: Step, ensemble: Ensemble) -> None:
    """Copy the finished members into the artifact: the best as the folder itself, the others below it."""
    from neuroranker_pipeline.ranking.members import MEMBERS

    for name, member in ensemble.members.items():
        if member.folder is not None:
            shutil.copytree(step.work / MEMBERS / name, step.out / member.folder, dirs_exist_ok=True)
    ensemble.write(step.out)
