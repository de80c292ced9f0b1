"""Queries that are passages of the collection themselves, as in ArguAna and Quora: none may find itself.

The benchmarks leave such a passage out of the query's results (BEIR's ``ignore_identical_ids``); the files do not say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.datasets.joined import collection_name
from neuroranker_pipeline.datasets.near import same_text
from neuroranker_pipeline.datasets.trec import ranked

OWN_PASSAGES = pa.schema([("qid", pa.string()), ("pid", pa.string())])
OWN_PASSAGES_FOLDER = "own_passages"  # below the judgments
OF_ITSELF = "judgments of a query about itself"

Mode = Literal["auto"] | bool


def own_passages(queries: pa.Table, passages: Iterable[pa.RecordBatch], modes: Mapping[str, Mode]) -> pa.Table:
    """The queries that are a passage, an ``OWN_PASSAGES`` table: those whose id a passage has, and, where the mode of their
    collection is ``auto``, whose text it has too, without a title or after one that is no longer than the text.

    ``modes``: by collection, the main one's under ``main``. Streams the passages.
    """
    texts = dict(zip(queries["qid"].to_pylist(), queries["text"].to_pylist(), strict=True))
    wanted = pa.array([qid for qid in texts if modes[collection_name(qid, modes)] is not False], pa.string())
    found: list[str] = []
    for batch in passages if len(wanted) else ():
        same = batch.filter(pc.is_in(batch["pid"], value_set=wanted))
        for pid, text in zip(same["pid"].to_pylist(), same["text"].to_pylist(), strict=True):
            if modes[collection_name(pid, modes)] is True or _is_text_of(text, texts[pid]):
                found.append(pid)
    return pa.table([found, found], schema=OWN_PASSAGES)


def _is_text_of(passage: str, query: str) -> bool:
    whole, asked = same_text(passage), same_text(query)
    return whole == asked or (whole.endswith(f" {asked}") and 2 * len(asked) >= len(whole))


def without_own(candidates: pa.Table, own: pa.Table, depth: int | None = None) -> pa.Table:
    """``CANDIDATES`` without the pairs of ``own`` (qid, pid), ranked anew and at most ``depth`` of a query."""
    kept = ranked(candidates.join(own.select(["qid", "pid"]), ["qid", "pid"], join_type="left anti").sort_by("qid"))
    return kept if depth is None else kept.filter(pc.less_equal(kept["rank"], depth))
