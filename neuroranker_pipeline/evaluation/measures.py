"""Effectiveness measures per query, computed by ir-measures (trec_eval and the MS MARCO script behind it).

A measure is named as tables in the field print it: ``MRR@10`` (trec_eval's reciprocal rank cut at 10),
``nDCG@10`` (linear gain and log2 discount, as trec_eval and TREC DL compute it; Järvelin and Kekäläinen
2002), ``R@100``, ``MAP``, or anything else that https://ir-measur.es names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import ir_measures
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.datasets import trec
from neuroranker_pipeline.errors import BadInput

DEFAULT_MEASURES = ("MRR@10", "nDCG@10", "R@10", "R@50", "R@100", "MAP")
Ties = Literal["pid", "trec_eval"]  # ascending pids, or trec_eval's own order: descending ones
PER_QUERY = pa.schema([("qid", pa.string()), ("measure", pa.string()), ("value", pa.float64())])


def per_query(
    run: pa.Table,
    qrels: pa.Table,
    measures: Sequence[str] = DEFAULT_MEASURES,
    relevance_level: int = 1,
    ties: Ties = "pid",
) -> pa.Table:
    """The value of each measure for each judged query: a ``PER_QUERY`` table by measure (as given), then
    qid.

    ``run`` has columns qid, pid, score (more are ignored); ``qrels`` has qid, pid, grade. A judged query
    without results, or without a relevant passage, counts 0; a query without judgments does not count; an
    unjudged passage is not relevant. ``relevance_level`` is the lowest grade that counts as relevant for
    the binary measures (TREC DL: 2). ``ties`` as in ``ranked``. Raises ``BadInput`` for an unknown measure, a
    passage ranked or judged twice for a query, or a score that is no number.
    """
    qids, values = measure_vectors(ranked(run, ties), qrels, measures, relevance_level)
    columns = [
        pa.array(qids * len(measures), pa.string()),
        pa.array([measure for measure in measures for _ in qids], pa.string()),
        pa.array(np.concatenate([values[measure] for measure in measures]) if measures else [], pa.float64()),
    ]
    return pa.table(columns, schema=PER_QUERY)


def measure_vectors(
    ranked_run: pa.Table, qrels: pa.Table, measures: Sequence[str], relevance_level: int = 1
) -> tuple[list[str], dict[str, np.ndarray]]:
    """As ``per_query``, from a run that ``ranked`` made: the judged qids sorted, and float64 values in
    their order.
    """
    parsed = {parse_measure(name, relevance_level): name for name in measures}
    judged = judgments(qrels)
    qids = sorted(judged)
    position = {qid: i for i, qid in enumerate(qids)}
    run = ranked_run.filter(pc.is_in(ranked_run["qid"], pa.array(qids, pa.string())))
    # trec_eval breaks ties by descending pid and holds scores as float32: negated ranks leave it nothing to
    # decide.
    scores = pc.negate(run["rank"].cast(pa.float64()))
    nested = _nested(run["qid"], run["pid"], scores)
    values = {name: np.zeros(len(qids)) for name in measures}
    for metric in ir_measures.iter_calc(list(parsed), judged, nested):
        values[parsed[metric.measure]][position[metric.query_id]] = metric.value
    return qids, values


def long_table(qids: list[str], vectors: Mapping[str, Mapping[str, np.ndarray]]) -> pa.Table:
    """Values of ``measure_vectors`` by ranker, one row each: ranker, qid, measure, value."""
    blocks = [(ranker, m, values) for ranker, by_measure in vectors.items() for m, values in by_measure.items()]
    return pa.table(
        {
            "ranker": pa.array([ranker for ranker, _, _ in blocks for _ in qids], pa.string()),
            "qid": pa.array(qids * len(blocks), pa.string()),
            "measure": pa.array([measure for _, measure, _ in blocks for _ in qids], pa.string()),
            "value": pa.array(np.concatenate([values for _, _, values in blocks]), pa.float64()),
        }
    )


def mean_measures(
    run: pa.Table,
    qrels: pa.Table,
    measures: Sequence[str] = DEFAULT_MEASURES,
    relevance_level: int = 1,
    ties: Ties = "pid",
) -> dict[str, float]:
    """Means over the judged queries, as ``per_query`` gives them one by one."""
    _, values = measure_vectors(ranked(run, ties), qrels, measures, relevance_level)
    return {name: float(vector.mean()) for name, vector in values.items()}


def parse_measure(name: str, relevance_level: int = 1) -> ir_measures.Measure:
    """The ir-measures object of a measure's name; raises ``BadInput`` for a name that it does not know."""
    try:
        measure = ir_measures.parse_measure(name)
    except (NameError, SyntaxError, ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"measure {name!r} is unknown; use a name such as {', '.join(DEFAULT_MEASURES)}") from error
    return measure(rel=relevance_level) if "rel" in measure.SUPPORTED_PARAMS else measure


def ranked(run: pa.Table, ties: Ties = "pid") -> pa.Table:
    """``run`` (qid, pid, score) as a CANDIDATES table: by score (float32) descending, then pid ascending, ranks from 1.

    Ties are decided here alone, so that every measure and every written run sees one order. ``ties="trec_eval"`` is for a
    run from elsewhere, to measure it as trec_eval does. Raises ``BadInput`` for a missing column, a score that is not
    finite, or a passage ranked twice for a query.
    """
    missing = {"qid", "pid", "score"} - set(run.column_names)
    if missing:
        raise BadInput(f"run: no column {', '.join(sorted(missing))}; a run has qid, pid and score")
    if not pc.all(pc.fill_null(pc.is_finite(run["score"]), False), min_count=0).as_py():
        raise BadInput("run: a score is missing or not a finite number")
    _refuse_duplicates(run, "run: ranks")
    ordered = trec.ranked(run)
    return ordered if ties == "pid" else _by_descending_pid(ordered)


def judgments(qrels: pa.Table) -> dict[str, dict[str, int]]:
    """qid -> pid -> grade. A negative grade (TREC's mark for spam) is judged and not relevant: 0.

    Raises ``BadInput`` when a passage is judged twice for a query or there is no judgment at all.
    """
    if qrels.num_rows == 0:
        raise BadInput("qrels: no judgment; nothing can be measured")
    _refuse_duplicates(qrels, "qrels: judges")
    return _nested(qrels["qid"], qrels["pid"], pc.max_element_wise(qrels["grade"], 0))


def oracle(candidates: pa.Table, qrels: pa.Table) -> pa.Table:
    """The best order that any re-ranker can give these candidates: by grade, as a run. Its measures are
    their ceiling.
    """
    grades = qrels.select(["qid", "pid", "grade"])
    joined = candidates.select(["qid", "pid"]).join(grades, keys=["qid", "pid"], join_type="left outer")
    score = pc.fill_null(joined["grade"], 0).cast(pa.float32())
    return joined.select(["qid", "pid"]).append_column("score", score)


def _by_descending_pid(ordered: pa.Table) -> pa.Table:
    """A ranked run with the tied rows of each query turned round."""
    queries = ordered["qid"].combine_chunks().dictionary_encode().indices
    keys = pa.table({"query": queries, "pid": ordered["pid"], "score": ordered["score"]})
    order = pc.sort_indices(keys, [("query", "ascending"), ("score", "descending"), ("pid", "descending")])
    turned = ordered.take(order)
    return turned.set_column(turned.schema.get_field_index("rank"), ordered.schema.field("rank"), ordered["rank"])


def _refuse_duplicates(table: pa.Table, verb: str) -> None:
    counts = table.group_by(["qid", "pid"]).aggregate([([], "count_all")])
    twice = counts.filter(pc.greater(counts["count_all"], 1)).slice(0, 1).to_pylist()
    if twice:
        raise BadInput(f"{verb} passage {twice[0]['pid']} more than once for query {twice[0]['qid']}")


def _nested(qids: pa.ChunkedArray, pids: pa.ChunkedArray, values: pa.ChunkedArray) -> dict[str, dict]:
    nested: dict[str, dict] = {}
    for qid, pid, value in zip(qids.to_pylist(), pids.to_pylist(), values.to_pylist(), strict=True):
        nested.setdefault(qid, {})[pid] = value
    return nested
