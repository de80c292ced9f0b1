"""How long a ranker takes to re-rank one query's candidates, timed in place."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

CANDIDATES = 100  # of a query, as timed
QUERIES = (3, 10)  # timed at least and at most
SECONDS = 2.0  # after which no further query is begun

Rerank = Callable[[str, list[str]], object]


@dataclass(frozen=True)
class Latency:
    """``milliseconds``: the median over ``queries`` queries of ``candidates`` passages (a mean) each, one query at a time;
    ``slowest``: of those queries. ``passages_per_second``: passages over time, of all of them.
    """

    queries: int
    candidates: float
    milliseconds: float
    slowest: float
    passages_per_second: float


def time_rerank(rerank: Rerank, asked: Sequence[tuple[str, list[str]]], seconds: float = SECONDS) -> Latency:
    """Time ``rerank(query, passages)``, which must return when its scores are there, on some queries with their passages.

    The first query is asked once more beforehand, unmeasured: what is compiled or allocated once is no latency. Three to
    ten queries are timed, for about ``seconds``. A figure of this machine, while nothing else runs on it.
    """
    rerank(*asked[0])
    taken: list[float] = []
    passages = 0
    for query, texts in asked[: QUERIES[1]]:
        started = time.perf_counter()
        rerank(query, texts)
        taken.append(time.perf_counter() - started)
        passages += len(texts)
        if len(taken) >= QUERIES[0] and sum(taken) >= seconds:
            break
    milliseconds = 1000 * np.array(taken)
    return Latency(
        queries=len(taken),
        candidates=passages / len(taken),
        milliseconds=float(np.median(milliseconds)),
        slowest=float(milliseconds.max()),
        passages_per_second=passages / max(sum(taken), 1e-9),
    )


def queries_to_time(
    candidates: pa.Table, queries: Mapping[str, str], passages: Mapping[str, str]
) -> list[tuple[str, list[str]]]:
    """The queries with the most candidates, up to ten, with up to 100 of their passages each, in the rows' order."""
    counts = candidates.group_by("qid").aggregate([([], "count_all")])
    largest = counts.sort_by([("count_all", "descending"), ("qid", "ascending")])["qid"][: QUERIES[1]]
    texts: dict[str, list[str]] = {qid: [] for qid in largest.to_pylist()}
    for row in (
        candidates.select(["qid", "pid"]).filter(pc.is_in(candidates["qid"], largest.combine_chunks())).to_pylist()
    ):
        if len(texts[row["qid"]]) < CANDIDATES:
            texts[row["qid"]].append(passages[row["pid"]])
    return [(queries[qid], found) for qid, found in texts.items()]
