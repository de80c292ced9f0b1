"""What the assets that train, score and embed have in common."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.assets.previews import curve
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.assets.unjudged import judgments_for, own_pairs, rests
from neuroranker_pipeline.checks import ranking as checks
from neuroranker_pipeline.datasets.joined import collection_name
from neuroranker_pipeline.datasets.licences import terms_of
from neuroranker_pipeline.datasets.shards import rows_of_shard
from neuroranker_pipeline.datasets.tables import count_rows, read_rows, read_table, read_texts
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.orchestration.partitions import is_unjudged, train_shards

if TYPE_CHECKING:
    from neuroranker_pipeline.ranking.lists import TrainingLists
    from neuroranker_pipeline.ranking.loop import TrainingResult
    from neuroranker_pipeline.ranking.models import BiEncoder
    from neuroranker_pipeline.ranking.settings import ListSettings, StudentSettings, TeacherSettings

TRAINING_RECORD = "training.json"
CARD_MEASURES = ("MRR@10", "nDCG@10")


def texts_for(step: Step, pairs: pa.Table, passages: bool = True) -> tuple[dict[str, str], dict[str, str]]:
    """The texts of the queries and (unless told not to) of the passages that ``pairs`` (qid, pid) names."""
    qids, pids = (pc.unique(pairs[name]) for name in ("qid", "pid"))
    queries: dict[str, str] = {}
    for folder in (step.read("queries"), *step.read_all("unjudged_queries")):
        queries |= read_texts(folder, "qid", qids.to_pylist())
    return queries, passage_texts(step, pids.to_pylist()) if passages else {}


def passage_texts(step: Step, pids: Sequence[str]) -> dict[str, str]:
    """The texts of passages, and of what is left of those that unjudged queries were taken from."""
    own, wanted = rests(step), set(pids)
    rest = {
        pid: text for pid, text in zip(own["pid"].to_pylist(), own["text"].to_pylist(), strict=True) if pid in wanted
    }
    return read_texts(step.read("passages"), "pid", wanted - rest.keys()) | rest


def draw_lists(
    step: Step,
    settings: ListSettings,
    shards: Sequence[str],
    teacher: bool,
    seed: int | None = None,
    collections: Sequence[str] | None = None,
) -> TrainingLists:
    """The training lists of the queries of some shards, drawn a shard at a time; with the teacher's scores if told to.

    Equal to those drawn from everything at once, in the memory of one shard's candidates. ``seed`` is the profile's where
    none is given; ``collections`` are those whose queries are drawn from, all by default.
    """
    from neuroranker_pipeline.ranking.lists import join_lists, sample_lists
    from neuroranker_pipeline.ranking.unjudged import best_as_positive

    seed, parts = step.settings.seed if seed is None else seed, []
    for shard in shards:
        candidates, prior = (read_table(step.read(name, shard)) for name in ("bm25_candidates", "base_scores"))
        judged, scores = judgments_for(step, shard), read_table(step.read("teacher_scores", shard)) if teacher else None
        decided_by_teacher = settings.teacher_margin is not None
        if scores is not None and is_unjudged(shard) and not judged.num_rows:
            judged, decided_by_teacher = best_as_positive(scores), True
        drawn_by, weight = scores if decided_by_teacher else None, sampling_weight(step, shard, collections)
        lists = sample_lists(candidates, judged, settings, seed, prior=prior, teacher=drawn_by, weight=weight)
        parts.append(lists if scores is None or decided_by_teacher else lists.with_teacher(scores))
    return join_lists(parts, settings, seed).sparing(own_pairs(step))


def training_lists(
    step: Step, settings: ListSettings, seed: int | None = None, collections: Sequence[str] | None = None
) -> TrainingLists:
    """``draw_lists`` for a teacher: of the judged training queries. Raises ``BadInput`` when there is none."""
    shards = train_shards(step.settings)
    if not any(count_rows(step.read("bm25_candidates", shard)) for shard in shards):
        raise BadInput(
            "no training query is judged, so no teacher can be trained: name one that is ready in the settings, such as "
            "teacher.members.ready={train: false, base: FOLDER_OR_NAME}"
        )
    return draw_lists(step, settings, shards, False, seed, collections)


def sampling_weight(step: Step, shard: str, collections: Sequence[str] | None = None) -> Callable[[str], float]:
    """How often a query of a shard is learned from, by its collection; 0 outside ``collections``, where some are given.

    Those without judgments are all learned from: their settings say how many there are.
    """
    if is_unjudged(shard):
        return lambda _: 1.0
    others, weights = step.settings.training_collections, step.settings.collection_weights
    if collections is not None:
        weights = {name: weight for name, weight in weights.items() if name in collections}
    return lambda qid: weights.get(collection_name(qid, others), 0.0)


def lists_with_texts(
    step: Step, lists: TrainingLists, dev: pa.Table
) -> tuple[TrainingLists, dict[str, str], dict[str, str]]:
    """Training lists, and the texts of their and of the dev queries and passages alone."""
    return lists, *texts_for(step, pa.concat_tables([list_pairs(lists), dev.select(["qid", "pid"])]))


def list_pairs(lists: TrainingLists) -> pa.Table:
    """The distinct (qid, pid) pairs of training lists."""
    qids = np.repeat(np.asarray(lists.qids, dtype=object), lists.pids.shape[1])
    table = pa.table({"qid": pa.array(qids, pa.string()), "pid": pa.array(lists.pids.ravel(), pa.string())})
    return table.group_by(["qid", "pid"], use_threads=False).aggregate([])


def pairs_to_learn_from(step: Step, prior: pa.Table) -> pa.Table:
    """The pairs (qid, pid) of a training shard that the teacher is to score: those of the student's training lists.

    Lists that the teacher's own scores decide on (``teacher_margin``) need its scores of all that they may draw. So do those
    of queries without any judgment, whose positive it chooses: there, of the base student's best.
    """
    from neuroranker_pipeline.ranking.lists import sample_lists, with_judged
    from neuroranker_pipeline.ranking.scoring import top_by

    assert step.partition is not None
    settings, seed = step.settings.student.lists, step.settings.seed
    weight = sampling_weight(step, step.partition)
    candidates, judged = read_table(step.read("bm25_candidates")), judgments_for(step, step.partition)
    if is_unjudged(step.partition) and not judged.num_rows:
        return top_by(prior, min(step.settings.cascade_depth, settings.depth)).select(["qid", "pid"])
    if settings.teacher_margin is not None:
        return with_judged(candidates, judged, settings.judged_negatives > 0).select(["qid", "pid"])
    return list_pairs(sample_lists(candidates, judged, settings, seed, prior=prior, weight=weight))


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


def finished(folder: Path, make: Callable[[Path], TrainingResult]) -> TrainingResult:
    """Have ``make`` put a model into ``folder``, unless a whole one is there already; what its training did."""
    from neuroranker_pipeline.ranking.loop import TrainingResult

    if not folder.is_dir():
        unfinished = folder.with_name(f".{folder.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        (unfinished / TRAINING_RECORD).write_text(json.dumps(asdict(make(unfinished)), indent=2))
        os.rename(unfinished, folder)
    return TrainingResult(**json.loads((folder / TRAINING_RECORD).read_text()))


def record_training(
    step: Step, result: TrainingResult, others: Sequence[TrainingResult] = (), trained: bool = True
) -> None:
    """Keep what a training run did: beside the weights, in the manifest, the metrics and the UI.

    ``others`` are the runs of the members of an ensemble beside the one in the artifact's folder. ``trained``: whether there
    was anything to train.
    """
    (step.out / TRAINING_RECORD).write_text(json.dumps(asdict(result), indent=2))
    losses = [(int(row["step"]), row["loss"]) for row in result.history if "loss" in row]
    all_losses = [row["loss"] for run in (result, *others) for row in run.history if "loss" in row]
    step.show("loss", curve(losses, "loss"))
    step.check(checks.loss_is_finite(all_losses, trained))
    step.device = result.device or step.device
    step.curve(result.history)
    examples, seconds = (sum(getattr(run, name) for run in (result, *others)) for name in ("examples", "seconds"))
    step.record(
        examples,
        steps=sum(run.steps for run in (result, *others)),
        training_seconds=seconds,
        examples_per_second=examples / max(seconds, 1e-9),
        **({"dev/MRR@10": result.dev_mrr} if result.dev_mrr is not None else {}),
    )


def check_against_bm25(
    step: Step, model: pa.Table, bm25: pa.Table, relevant: Mapping[str, set[str]], bound: float
) -> None:
    """Record MRR@10 of two runs over the dev queries, and check that the model's is not shown to be below BM25's."""
    from neuroranker_pipeline.ranking.dev import compare_on_dev

    test = compare_on_dev(model, bm25, relevant, bound, step.settings.seed)
    step.record(**{"dev/MRR@10": test.model, "dev/BM25/MRR@10": test.other})
    step.check(checks.not_worse_than_bm25(test, step.settings.bounds.alpha))


def write_card(
    step: Step,
    settings: TeacherSettings | StudentSettings,
    result: TrainingResult,
    runs: Mapping[str, pa.Table],
    base_factor: float = 0.0,
    weights: Mapping[str, float] | None = None,
) -> None:
    """Put a model card beside the weights, with the measures of some rankers' runs over the dev queries.

    ``base_factor`` and ``weights`` as in ``model_card``.
    """
    from neuroranker_pipeline.evaluation.measures import measure_vectors, ranked
    from neuroranker_pipeline.evaluation.significance import bootstrap_interval
    from neuroranker_pipeline.ranking.card import CARD, Estimate, model_card

    judged = read_table(step.read("qrels"))
    judged = judged.filter(pc.equal(judged["split"], "dev"))
    level = step.settings.data.relevant_from("dev")
    estimates: dict[str, dict[str, Estimate]] = {}
    for name, run in runs.items() if judged.num_rows else ():
        _, found = measure_vectors(ranked(run.select(["qid", "pid", "score"])), judged, CARD_MEASURES, level)
        estimates[name] = {m: Estimate(float(v.mean()), *bootstrap_interval(v)) for m, v in found.items()}
    data = terms_of(step.source, step.settings.data, step.settings.training_collections)
    queries = pc.count_distinct(judged["qid"]).as_py()
    card = model_card(settings, step.settings.seed, result, data, estimates, queries, base_factor, weights)
    (step.out / CARD).write_text(card, encoding="utf-8")


def training_history(folder: Path) -> list[dict[str, Any]]:
    """The loss curve and evaluations of a trained model's folder."""
    return json.loads((folder / TRAINING_RECORD).read_text())["history"]
