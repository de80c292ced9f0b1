"""Judgments and given runs, held against the queries and passages that there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.datasets.own import OF_ITSELF
from neuroranker_pipeline.datasets.rejects import Rejects
from neuroranker_pipeline.datasets.tables import CANDIDATES, QRELS, read_batches
from neuroranker_pipeline.datasets.trec import ranked


def existing(folder: Path, key: str, wanted: pa.ChunkedArray) -> pa.Array:
    """Those of the ``wanted`` ids that occur in column ``key`` of a Parquet folder.

    Streams the folder: memory is that of the wanted ids, not of the collection.
    """
    values = pc.unique(wanted)
    found = [column.filter(pc.is_in(column, value_set=values)) for (column,) in read_batches(folder, [key])]
    return pa.concat_arrays([pc.unique(part) for part in found]) if found else pa.array([], pa.string())


def known_judgments(
    judgments: pa.Table, qids: pa.Array, pids: pa.Array, rejects: Rejects, own: pa.Table | None = None
) -> pa.Table:
    """``JUDGMENTS`` rows as ``QRELS``: each (qid, pid) once, of known queries, and of known passages but in test splits.

    A judged passage outside the collection belongs to a test split's ideal order, and stays there. ``qids`` and
    ``pids`` are the known ones. A judgment that repeats an equal one is left out; one that contradicts it is rejected.
    ``own``: the pairs (qid, pid) of queries that are passages themselves, which are left out.
    """
    if own is not None and own.num_rows:
        about_others = judgments.join(own, ["qid", "pid"], join_type="left anti")
        rejects.leave_out(OF_ITSELF, judgments.num_rows - about_others.num_rows)
        judgments = about_others.sort_by([("file", "ascending"), ("line", "ascending")])
    kept = _without(judgments, pc.invert(pc.is_in(judgments["qid"], value_set=qids)), "unknown query", "qid", rejects)
    learned = pc.invert(pc.starts_with(kept["split"], "test"))
    unknown_pid = pc.and_(learned, pc.invert(pc.is_in(kept["pid"], value_set=pids)))
    kept = _without(kept, unknown_pid, "unknown passage", "pid", rejects)
    first = _first_of(kept)
    grades = kept["grade"].to_numpy()
    again = first != np.arange(len(first))
    contrary = again & (grades != grades[first])
    kept = kept.append_column("again", pa.array(again & ~contrary))
    kept = _without(kept, pa.array(contrary), "contradicts an earlier judgment", "pid", rejects)
    kept = kept.filter(pc.invert(kept["again"]))
    rejects.leave_out("judgments that repeat an equal one", int((again & ~contrary).sum()))
    rejects.accept(kept.num_rows)
    return kept.select(QRELS.names).cast(QRELS)


def known_candidates(given: pa.Table, queries: pa.Table, pids: pa.Array, rejects: Rejects) -> pa.Table:
    """``GIVEN`` rows as ``CANDIDATES``, ranked by score; passages that are not in the collection are rejected.

    ``queries`` (qid, split) are the known ones. Candidates of a query that is not judged, or not in the test set that the
    run is for, are left out: a run replaces retrieval for its own test set alone.
    """
    rows = pc.index_in(given["qid"], value_set=queries["qid"].combine_chunks())
    asked = pc.fill_null(pc.equal(queries["split"].take(rows), given["split"]), False)
    rejects.leave_out("candidates of a query outside the test set", given.num_rows - pc.sum(asked, min_count=0).as_py())
    kept = given.filter(asked)
    kept = _without(kept, pc.invert(pc.is_in(kept["pid"], value_set=pids)), "unknown passage", "pid", rejects)
    kept = _without(kept, pc.invert(pc.is_finite(kept["score"])), "the score is not finite", "pid", rejects)
    first = _first_of(kept)
    kept = _without(kept, pa.array(first != np.arange(len(first))), "passage given twice for a query", "pid", rejects)
    rejects.accept(kept.num_rows)
    return ranked(kept).cast(CANDIDATES)


def _first_of(rows: pa.Table) -> np.ndarray:
    """For each row, the first row with the same (qid, pid)."""
    numbered = rows.select(["qid", "pid"]).append_column("row", pa.array(np.arange(rows.num_rows)))
    firsts = numbered.group_by(["qid", "pid"]).aggregate([("row", "min")])
    joined = numbered.join(firsts, ["qid", "pid"]).sort_by("row")
    return joined["row_min"].to_numpy().astype(np.int64)


def _without(rows: pa.Table, bad: pa.Array | pa.ChunkedArray, reason: str, column: str, rejects: Rejects) -> pa.Table:
    if not pc.any(bad, min_count=0).as_py():
        return rows
    for row in rows.filter(bad).select(["file", "line", column]).to_pylist():
        rejects.add(row["file"], row["line"], reason, row[column], row[column])
    return rows.filter(pc.invert(bad))
