"""Train a teacher or a student from Parquet tables, on one device or with ``torchrun`` on several.

    python -m neuroranker_pipeline.ranking.train teacher --data TABLES --out MODEL
    torchrun --nproc-per-node 4 -m neuroranker_pipeline.ranking.train student --data TABLES --out MODEL

It needs PyTorch, Transformers and PyArrow alone. A run that was cut off goes on from its last checkpoint when started
again with the same arguments.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neuroranker_pipeline.datasets.joined import MAIN
from neuroranker_pipeline.datasets.relevance import levelled
from neuroranker_pipeline.datasets.tables import CANDIDATES, QRELS, QUERIES, SCORES, parquet_files, read_texts
from neuroranker_pipeline.errors import BadInput, NeuroRankerError
from neuroranker_pipeline.progress import Progress, silent
from neuroranker_pipeline.ranking.checkpoint import remove_checkpoints
from neuroranker_pipeline.ranking.distributed import World, join_world, leave_world
from neuroranker_pipeline.ranking.lists import TrainingLists, no_lists, positives, sample_lists
from neuroranker_pipeline.ranking.loop import TrainingResult
from neuroranker_pipeline.ranking.settings import StudentSettings, TeacherSettings
from neuroranker_pipeline.ranking.settings_file import read_settings
from neuroranker_pipeline.ranking.student import train_student
from neuroranker_pipeline.ranking.teacher import train_teacher

RECORD = "training.json"  # beside the weights: what the run did
SECONDS_BETWEEN_LINES = 10.0
TABLES = """
TABLES is a folder with the tables queries (qid, text, split), passages (pid, text), qrels (qid, pid, grade, split) and
bm25_candidates (qid, pid, rank, score) of the training queries and, to choose the best weights, of the dev queries;
each is a folder of Parquet files or one file NAME.parquet. Two more may be there: base_scores (qid, pid, score), the
prior ranker's scores that lists are drawn and teachers smoothed with, and teacher_scores (qid, pid, score), what a
student is distilled from.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 when the model lies in its folder, 1 after an error, which is told in one line."""
    given = _parser().parse_args(arguments)
    try:
        kind: type[TeacherSettings] | type[StudentSettings]
        kind = TeacherSettings if given.model == "teacher" else StudentSettings
        settings = read_settings(given.settings, kind)
        if given.out.exists():
            raise BadInput(f"--out {given.out}: is there already; remove it, or name another folder")
        world = join_world(given.device)
        result = _train(given, settings, world)
        leave_world()
    except NeuroRankerError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # one line a machine
            print(f"error: {error}", file=sys.stderr)
        return 1
    if world.main:
        mrr = "not measured (no dev queries)" if result.dev_mrr is None else f"{result.dev_mrr:.4f}"
        print(f"dev MRR@10 {mrr}, weights of step {result.best_step} of {result.steps}; the model is in {given.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m neuroranker_pipeline.ranking.train", description="Train a teacher or a student.", epilog=TABLES
    )
    parser.add_argument("model", choices=("teacher", "student"))
    parser.add_argument("--data", type=Path, required=True, metavar="TABLES", help="the folder of the tables")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the model, written when it is trained")
    parser.add_argument("--work", type=Path, help="the folder of the checkpoints (default: OUT.work)")
    parser.add_argument("--settings", type=Path, metavar="FILE", help="JSON or YAML, the keys of the model's settings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--relevance-level", type=int, default=1, metavar="GRADE", help="the lowest grade that is relevant (default: 1)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser


def _train(given: argparse.Namespace, settings: TeacherSettings | StudentSettings, world: World) -> TrainingResult:
    """Train from the tables of ``--data``; the first process puts the model into ``--out`` in one rename."""
    out, work = given.out, given.work or given.out.with_name(f"{given.out.name}.work")
    unfinished = out.with_name(f".{out.name}.unfinished")
    lists, dev, relevant = _examples(given.data, settings, given.seed, given.relevance_level)
    pids = {*lists.pids.ravel().tolist(), *([] if dev is None else pc.unique(dev["pid"]).to_pylist())}
    texts = _texts(given.data, "queries", "qid"), _texts(given.data, "passages", "pid", pids)
    progress: Progress = _Lines() if world.main else silent
    if world.main:
        shutil.rmtree(unfinished, ignore_errors=True)
    arguments = (lists, *texts, relevant)
    if isinstance(settings, TeacherSettings):
        result = train_teacher(
            *arguments, settings, given.seed, unfinished, work,
            dev=dev, device=given.device, progress=progress, world=world,
        )  # fmt: skip
    else:
        result = train_student(
            *arguments, settings, given.seed, unfinished, work,
            dev=dev, device=given.device, progress=progress, world=world,
        )  # fmt: skip
    if world.main:
        (unfinished / RECORD).write_text(json.dumps(asdict(result), indent=2))
        os.rename(unfinished, out)
        remove_checkpoints(work)
    world.barrier()
    return result


def _examples(
    data: Path, settings: TeacherSettings | StudentSettings, seed: int, relevance_level: int
) -> tuple[TrainingLists, pa.Table | None, dict[str, set[str]]]:
    """The training lists, the dev candidates (``None`` without any), and the dev queries' positives."""
    queries, qrels = _table(data, "queries", QUERIES), _table(data, "qrels", QRELS)
    qrels = levelled(qrels, {MAIN: dict.fromkeys(pc.unique(qrels["split"]).to_pylist(), relevance_level)})
    candidates = _table(data, "bm25_candidates", CANDIDATES)
    train, dev = (candidates.filter(_of_split(candidates, queries, split)) for split in ("train", "dev"))
    if isinstance(settings, TeacherSettings):
        scored = settings.loss == "margin_mse" or settings.lists.teacher_margin is not None
    else:
        scored = settings.objective == "distill" or _is_there(data, "teacher_scores")
    lists = sample_lists(
        train,
        qrels.filter(_of_split(qrels, queries, "train")),
        settings.lists,
        seed,
        prior=_table(data, "base_scores", SCORES) if _is_there(data, "base_scores") else None,
        teacher=_table(data, "teacher_scores", SCORES) if scored else None,
    )
    if not len(lists):
        raise no_lists(settings.lists)
    return lists, dev if len(dev) else None, positives(qrels.filter(_of_split(qrels, queries, "dev")))


def _of_split(table: pa.Table, queries: pa.Table, split: str) -> pa.ChunkedArray:
    """Which rows of ``table`` belong to queries of ``split``."""
    qids = queries.filter(pc.equal(queries["split"], split))["qid"]
    return pc.is_in(table["qid"], value_set=qids.combine_chunks())


def _table(data: Path, name: str, schema: pa.Schema) -> pa.Table:
    """The columns of ``schema`` of one of the tables."""
    place = _place(data, name)
    try:
        parts = [pq.read_table(file, columns=schema.names) for file in parquet_files(place)]
        return pa.concat_tables(part.select(schema.names).cast(schema) for part in parts)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise _unreadable(place, schema.names, error) from None


def _texts(data: Path, name: str, key: str, wanted: set[str] | None = None) -> dict[str, str]:
    place = _place(data, name)
    try:
        return read_texts(place, key, wanted)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise _unreadable(place, [key, "text"], error) from None


def _unreadable(place: Path, columns: list[str], error: Exception) -> BadInput:
    what = (str(error) or type(error).__name__).splitlines()[0]  # Arrow adds the file's schema
    return BadInput(f"{place}: expected Parquet with the columns {', '.join(columns)}: {what}")


def _place(data: Path, name: str) -> Path:
    for place in (data / name, data / f"{name}.parquet"):
        if place.exists():
            return place
    raise BadInput(f"--data {data}: no table {name}; expected a folder {name} of Parquet files, or {name}.parquet")


def _is_there(data: Path, name: str) -> bool:
    return (data / name).exists() or (data / f"{name}.parquet").exists()


class _Lines:
    """Progress as a line on stderr now and then, and at the end."""

    def __init__(self) -> None:
        self.last = 0.0

    def __call__(self, label: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - self.last >= SECONDS_BETWEEN_LINES:
            self.last = now
            print(f"{label}: step {done:,} of {total:,}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
