"""What the assets that train, score and embed have in common."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.assets.previews import curve
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.checks import ranking as checks
from neuroranker_pipeline.datasets.shards import rows_of_shard
from neuroranker_pipeline.datasets.tables import count_rows, read_rows, read_texts, rechunked

if TYPE_CHECKING:
    from neuroranker_pipeline.ranking.lists import TrainingLists
    from neuroranker_pipeline.ranking.loop import TrainingResult
    from neuroranker_pipeline.ranking.models import BiEncoder

TRAINING_RECORD = "training.json"
ROWS_AT_A_TIME = 50_000  # passages encoded together: enough to find neighbours of the same length


def texts_for(step: Step, pairs: pa.Table, passages: bool = True) -> tuple[dict[str, str], dict[str, str]]:
    """The texts of the queries and (unless told not to) of the passages that ``pairs`` (qid, pid) names."""
    queries = read_texts(step.read("queries"), "qid", pc.unique(pairs["qid"]).to_pylist())
    found = read_texts(step.read("passages"), "pid", pc.unique(pairs["pid"]).to_pylist()) if passages else {}
    return queries, found


def list_pairs(lists: TrainingLists) -> pa.Table:
    """The distinct (qid, pid) pairs of training lists."""
    qids = np.repeat(np.asarray(lists.qids, dtype=object), lists.pids.shape[1])
    table = pa.table({"qid": pa.array(qids, pa.string()), "pid": pa.array(lists.pids.ravel(), pa.string())})
    return table.group_by(["qid", "pid"], use_threads=False).aggregate([])


def embed_shard(step: Step, model: BiEncoder) -> None:
    """Embed the passages of the step's shard."""
    from neuroranker_pipeline.ranking.device import pick_compute
    from neuroranker_pipeline.ranking.embeddings import embed_passages, read_embeddings

    assert step.partition is not None
    compute = pick_compute(step.settings.device)
    folder = step.read("passages")
    rows = rows_of_shard(count_rows(folder), step.partition, step.settings.shards.passages)
    batches = rechunked(read_rows(folder, rows), ROWS_AT_A_TIME)
    step.record(embed_passages(batches, rows.stop - rows.start, step.out, model, compute, step.progress))
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


def training_history(folder: Path) -> list[dict[str, Any]]:
    """The loss curve and evaluations of a trained model's folder."""
    return json.loads((folder / TRAINING_RECORD).read_text())["history"]
