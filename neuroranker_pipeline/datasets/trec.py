"""TREC run and qrels files (https://trec.nist.gov): ``qid Q0 pid rank score tag`` and ``qid 0 pid grade``."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.datasets.tables import CANDIDATES, QRELS
from neuroranker_pipeline.datasets.tsv import read_lines
from neuroranker_pipeline.errors import BadInput


def ranked(scores: pa.Table) -> pa.Table:
    """Order (qid, pid, score) rows within each query by score descending, then pid ascending, and rank them
    from 1.

    Queries keep the order in which they first occur; the result has the schema ``CANDIDATES``.
    """
    qids = scores.column("qid").combine_chunks().dictionary_encode()
    keys = pa.table(
        {
            "query": qids.indices,
            "pid": scores.column("pid"),
            "score": scores.column("score").cast(pa.float32()),
        }
    )
    order = pc.sort_indices(keys, [("query", "ascending"), ("score", "descending"), ("pid", "ascending")])
    keys = keys.take(order)
    query = keys.column("query").to_numpy()
    starts = np.flatnonzero(np.r_[True, query[1:] != query[:-1]]) if len(query) else np.empty(0, np.int64)
    rank = np.arange(len(query)) - np.repeat(starts, np.diff(np.r_[starts, len(query)])) + 1
    columns = [qids.dictionary.take(keys.column("query")), keys.column("pid"), rank, keys.column("score")]
    return pa.table(dict(zip(CANDIDATES.names, columns, strict=True))).cast(CANDIDATES)


def read_run(path: Path) -> pa.Table:
    """Read a run as ``CANDIDATES``, ranked anew by score (the file's ranks are ignored, as trec_eval does).

    Raises ``BadInput`` naming file and line for a bad line, a score that is not finite, or a repeated (qid,
    pid).
    """
    qids: list[str] = []
    pids: list[str] = []
    scores: list[float] = []
    seen: set[tuple[str, str]] = set()
    for where, fields in _fields(path, "qid Q0 pid rank score tag", 6):
        qid, _, pid, _, score, _ = fields
        if (qid, pid) in seen:
            raise BadInput(f"{where}: passage {pid} occurs twice for query {qid}")
        seen.add((qid, pid))
        qids.append(qid)
        pids.append(pid)
        scores.append(_finite(score, where))
    return ranked(pa.table({"qid": pa.array(qids, pa.string()), "pid": pa.array(pids, pa.string()),
                            "score": pa.array(scores, pa.float32())}))  # fmt: skip


def write_run(table: pa.Table, path: Path, tag: str = "neuroranker") -> int:
    """Write (qid, pid, score) rows as a run, ranked by ``ranked``; returns the number of lines.

    Scores are the shortest decimals that read back as the same float32, ties moved apart by ``untied``. The file appears
    whole or not at all.
    Raises ``BadInput`` for a score that is not finite, and for an id or tag that the format cannot hold.
    """
    run = ranked(table)
    _check_writable(run, tag)
    run = untied(run)
    unfinished = path.with_name(f".{path.name}.tmp")
    with unfinished.open("w", encoding="utf-8") as stream:
        for batch in run.to_batches(max_chunksize=65_536):
            qids, pids, ranks = (batch.column(name).to_pylist() for name in ("qid", "pid", "rank"))
            scores = batch.column("score").to_numpy()
            for qid, pid, rank, score in zip(qids, pids, ranks, scores, strict=True):
                stream.write(f"{qid} Q0 {pid} {rank} {score!s} {tag}\n")
    os.replace(unfinished, path)
    return int(run.num_rows)


def untied(run: pa.Table) -> pa.Table:
    """A run that ``ranked`` made, its scores strictly decreasing within each query: a tied score becomes the next float32
    below the one before it.

    trec_eval ignores the ranks in a file and breaks ties by descending pid; of an untied run it sees the order that is
    meant (as with Anserini's ScoreTiesAdjuster). Only the lowest float32 of all cannot be lowered.
    """
    scores = run.column("score").to_numpy()
    bits = scores.view(np.int32).astype(np.int64)
    order = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)  # neighbouring floats are neighbouring whole numbers
    rank = run.column("rank").to_numpy().astype(np.int64)
    follows = rank[1:] > 1
    if not np.any(follows & (order[1:] == order[:-1])):
        return run
    starts = np.flatnonzero(np.r_[True, ~follows])
    for start, end in zip(starts, np.r_[starts[1:], len(order)], strict=True):
        part = order[start:end]
        part[:] = np.minimum.accumulate(part + rank[start:end]) - rank[start:end]
    order = np.maximum(order, -int(np.float32(np.finfo(np.float32).max).view(np.int32)))
    bits = np.where(order < 0, -order | 0x80000000, order).astype(np.uint32)
    return run.set_column(run.schema.get_field_index("score"), "score", pa.array(bits.view(np.float32)))


def read_qrels(path: Path, split: str = "test") -> pa.Table:
    """Read judgments as ``QRELS``, all of one ``split``. A line that repeats an equal judgment is dropped.

    Raises ``BadInput`` naming file and line for a bad line, or one that contradicts an earlier one.
    """
    grades: dict[tuple[str, str], int] = {}
    for where, fields in _fields(path, "qid 0 pid grade", 4):
        qid, _, pid, grade = fields
        if not grade.removeprefix("-").isdecimal() or abs(int(grade)) >= 2**31:
            raise BadInput(f"{where}: the grade must be a whole number, got {grade!r}")
        if grades.setdefault((qid, pid), int(grade)) != int(grade):
            raise BadInput(f"{where}: passage {pid} of query {qid} was graded {grades[qid, pid]} before")
    columns = {
        "qid": [qid for qid, _ in grades],
        "pid": [pid for _, pid in grades],
        "grade": list(grades.values()),
        "split": [split] * len(grades),
    }
    return pa.table(columns, schema=QRELS)


def _fields(path: Path, layout: str, count: int) -> Iterator[tuple[str, list[str]]]:
    for where, line in read_lines(path):
        fields = [field for field in line.replace("\t", " ").split(" ") if field]
        if len(fields) != count:
            raise BadInput(f"{where}: expected `{layout}`, got {line[:80]!r}")
        yield where, fields


def _finite(score: str, where: str) -> float:
    try:
        with np.errstate(over="ignore"):
            value = float(np.float32(float(score)))  # rounded first: the largest float32 is written a little larger
    except ValueError:
        value = float("nan")
    if not math.isfinite(value):
        raise BadInput(f"{where}: the score must be a finite number, got {score!r}")
    return value


def _check_writable(run: pa.Table, tag: str) -> None:
    if not pc.all(pc.is_finite(run.column("score")), min_count=0).as_py():
        raise BadInput("run: a score is not finite")
    for name, values in (("qid", run.column("qid")), ("pid", run.column("pid")), ("tag", pa.array([tag]))):
        bad = values.filter(pc.match_substring_regex(pc.fill_null(values, ""), r"^$|\s"))
        if len(bad):
            raise BadInput(f"run: {name} {bad[0].as_py()!r} is empty or holds white space, which a TREC file cannot")
