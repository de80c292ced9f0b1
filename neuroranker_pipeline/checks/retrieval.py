"""Checks on the index and on BM25's candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from neuroranker_pipeline.checks.rule import Verdict, rule


@rule
def index_holds_every_passage(documents: int, passages: int) -> Verdict:
    """The index has as many documents as the collection has passages."""
    return Verdict(documents == passages, {"documents": documents, "passages": passages})


@rule
def parameters_are_in_range(k1: float, b: float) -> Verdict:
    """k1 is not negative, and b from 0 to 1."""
    return Verdict(k1 >= 0 and 0 <= b <= 1, {"k1": k1, "b": b})


@rule
def candidates_are_complete(
    candidates: pa.Table, queries: Mapping[str, str], depth: int, unanswered: float = 0.1
) -> Verdict:
    """Every query's candidates are its own, ranked 1 to n without a gap, at most the depth, best score first, and no
    more queries found nothing than `bounds.unanswered` allows, rounded up to whole ones."""
    qids = candidates["qid"].to_numpy(zero_copy_only=False)
    ranks = candidates["rank"].to_numpy()
    scores = candidates["score"].to_numpy()
    starts = np.flatnonzero(ranks == 1)
    same = qids[1:] == qids[:-1]
    in_order = bool(np.all(ranks[:1] == 1) and np.all(np.where(same, np.diff(ranks) == 1, ranks[1:] == 1)))
    sorted_scores = bool(np.all(scores[1:][same] <= scores[:-1][same]))
    answered = set(qids[starts])
    silent = [qid for qid in queries if qid not in answered]
    evidence = {
        "queries": len(queries),
        **nothing_found(silent, len(queries), unanswered),
        "deepest_rank": int(ranks.max(initial=0)),
    }
    complete = (
        in_order
        and sorted_scores
        and len(answered) == len(starts)
        and answered <= queries.keys()
        and int(ranks.max(initial=0)) <= depth
        and enough_found(len(silent), len(queries), unanswered)
    )
    return Verdict(complete, evidence)


def enough_found(silent: int, queries: int, unanswered: float) -> bool:
    """Whether few enough of the queries found nothing. A share of a small split is a whole query at least; where none
    found anything, something is wrong however few they are."""
    return not queries or silent <= min(queries - 1, _allowed(queries, unanswered))


def nothing_found(silent: Sequence[str], queries: int, unanswered: float) -> dict[str, Any]:
    """The evidence on queries that found nothing: how many, how many may, and the first of them."""
    most = _allowed(queries, unanswered)
    counts = {"queries_without_candidates": len(silent), "allowed_by_bounds.unanswered": most}
    return {**counts, "first_without_candidates": silent[0]} if silent else counts


def _allowed(queries: int, unanswered: float) -> int:
    return math.ceil(round(unanswered * queries, 9))  # 0.07 x 100 is a little more than 7
