"""Checks on the collection."""

from __future__ import annotations

import pyarrow as pa

from neuroranker_pipeline.checks.rule import Verdict, rule
from neuroranker_pipeline.datasets import validate


@rule
def passages_are_valid(passages: pa.Table) -> Verdict:
    """Every passage has an id of its own and a text."""
    return _verdict(validate.check_passages(passages))


@rule
def queries_are_valid(queries: pa.Table) -> Verdict:
    """Every query has an id of its own, a text, and one known split; train and dev are not empty."""
    return _verdict(validate.check_queries(queries))


@rule
def qrels_are_valid(qrels: pa.Table, queries: pa.Table, passages: pa.Table) -> Verdict:
    """Judgments name known queries, once a passage, and every train, dev and gate query has a relevant passage."""
    return _verdict(validate.check_qrels(qrels, queries, passages["pid"]))


def _verdict(problems: list[str]) -> Verdict:
    return Verdict(not problems, {"problems": "; ".join(problems) or "none"})
