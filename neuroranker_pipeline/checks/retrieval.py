"""Checks on the index and on BM25's candidates."""

from __future__ import annotations

from collections.abc import Mapping

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
def candidates_are_complete(candidates: pa.Table, queries: Mapping[str, str], depth: int) -> Verdict:
    """Every query's candidates are its own, ranked 1 to n without a gap, at most the depth, best score first, and no
    more than one query in ten found nothing."""
    qids = candidates["qid"].to_numpy(zero_copy_only=False)
    ranks = candidates["rank"].to_numpy()
    scores = candidates["score"].to_numpy()
    starts = np.flatnonzero(ranks == 1)
    same = qids[1:] == qids[:-1]
    in_order = bool(np.all(np.where(same, np.diff(ranks) == 1, ranks[1:] == 1)))
    sorted_scores = bool(np.all(scores[1:][same] <= scores[:-1][same]))
    answered = set(qids[starts])
    evidence = {
        "queries": len(queries),
        "queries_without_candidates": len(queries) - len(answered),
        "deepest_rank": int(ranks.max(initial=0)),
    }
    complete = (
        in_order
        and sorted_scores
        and len(answered) == len(starts)
        and answered <= queries.keys()
        and int(ranks.max(initial=0)) <= depth
        and len(answered) >= 0.9 * len(queries)
    )
    return Verdict(complete, evidence)
