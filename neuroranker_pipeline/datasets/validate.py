"""Whether passages, queries and judgments fit together. Each check returns its problems; none means fine."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.datasets.seen import SeenIds
from neuroranker_pipeline.datasets.tables import PASSAGES, QRELS, QUERIES, SPLITS, is_split

LEARNED_FROM = ("train", "dev", "gate")
"""Splits whose queries need a relevant passage in the collection; test splits only report."""

EXAMPLES = 3


def check_passages(passages: Iterable[pa.RecordBatch]) -> list[str]:
    """Schema, unique pids, no empty text. Streams: memory is bounded by one batch and some bytes a pid."""
    seen, rows = SeenIds(), 0
    for batch in passages:
        rows += batch.num_rows
        table = pa.Table.from_batches([batch])
        problems = _schema_problems("passages", table, PASSAGES, empty=True)
        if not problems:
            repeated = pa.array(~seen.first_time(batch["pid"]))
            problems = _listed("passages", "repeated pid", table["pid"].filter(repeated))
            problems += _blank("passages", table, "pid")
        if problems:
            return problems
    return [] if rows else ["passages: no rows"]


def check_queries(queries: pa.Table, needed: Iterable[str] = ("train", "dev")) -> list[str]:
    """Schema, unique qids (so that the splits are disjoint), no empty text, known splits, none of the ``needed`` empty.

    Where none is needed there may be no query at all.
    """
    needed = list(needed)
    problems = _schema_problems("queries", queries, QUERIES, empty=not needed)
    if problems:
        return problems
    splits = queries.column("split")
    present = set(pc.unique(splits).to_pylist())
    problems = [*_repeated("queries", queries, ["qid"]), *_blank("queries", queries, "qid")]
    if unknown := sorted(s for s in present if not is_split(s)):
        problems.append(f"queries: unknown split {', '.join(unknown)}; expected {', '.join(SPLITS)} or test-<name>")
    problems += [f"queries: no query in split {split}" for split in needed if split not in present]
    return problems


def check_unjudged(queries: pa.Table) -> list[str]:
    """Schema, some queries, unique qids, no empty text."""
    problems = _schema_problems("unjudged_queries", queries, QUERIES)
    if problems:
        return problems
    return [*_repeated("unjudged_queries", queries, ["qid"]), *_blank("unjudged_queries", queries, "qid")]


def check_qrels(
    qrels: pa.Table, queries: pa.Table, pids: pa.Array, bare_share: float = 0.0, about_itself: pa.Array | None = None
) -> list[str]:
    """Schema, one judgment a (qid, pid), known queries, equal splits, a judgment for each query learned from, and
    something relevant in each of their splits.

    ``qrels`` as ``levelled`` gives them. ``pids`` are the judged passages that are in the collection. Test judgments of
    others are right to be there (leaving them out would change the ideal DCG); ``judged_outside`` counts them.
    ``bare_share`` of the queries learned from may lack a judgment: those whose judgments had to be rejected. A query that
    is judged, and finds nothing relevant, is sound: it is not learned from, and counts 0 in the means; nor need those
    have a judgment that are passages themselves (``about_itself``, qids), whose only one may have been left out.
    """
    nothing = queries.num_rows == 0  # which is for check_queries to judge
    problems = _schema_problems("qrels", qrels, QRELS, empty=nothing)
    problems += _schema_problems("queries", queries, QUERIES, empty=True)
    if problems:
        return problems
    problems = _repeated("qrels", qrels, ["qid", "pid"])
    unknown = qrels.filter(pc.invert(pc.is_in(qrels.column("qid"), value_set=_values(queries.column("qid")))))
    problems += _listed("qrels", "judgments of an unknown query", unknown.column("qid"))
    joined = qrels.join(queries.select(["qid", "split"]), "qid", join_type="inner", right_suffix="_of_query")
    moved = joined.filter(pc.not_equal(joined.column("split"), joined.column("split_of_query")))
    problems += _listed("qrels", "judgments in another split than their query", moved.column("qid"))

    relevant = qrels.filter(pc.and_(pc.greater(qrels.column("grade"), 0), _learned_from(qrels)))
    inside = pc.is_in(relevant.column("pid"), value_set=pids)
    missing = relevant.filter(pc.invert(inside))
    problems += _listed("qrels", "relevant train, dev or gate passages outside the collection", missing.column("pid"))
    learned = queries.filter(_learned_from(queries)).column("qid")
    bare = learned.filter(pc.invert(pc.is_in(learned, value_set=_values(qrels.column("qid")))))
    if about_itself is not None:
        bare = bare.filter(pc.invert(pc.is_in(bare, value_set=about_itself)))
    if len(bare) > bare_share * len(learned):
        problems += _listed("qrels", "train, dev or gate queries without a judged passage in the collection", bare)
    empty = set(pc.unique(_learned_splits(queries)).to_pylist()) - set(pc.unique(relevant["split"]).to_pylist())
    problems += [
        f"qrels: no judgment in split {split} is relevant; lower data.relevance_level, or mend the grades"
        for split in sorted(empty)
    ]
    return problems


def without_relevant(qrels: pa.Table) -> pa.Array:
    """The judged qids without a relevant passage; ``qrels`` as ``levelled`` gives them."""
    best = qrels.group_by("qid").aggregate([("grade", "max")])
    return best.filter(pc.less(best["grade_max"], 1))["qid"].combine_chunks()


def judged_outside(qrels: pa.Table, pids: pa.Array) -> dict[str, int]:
    """Judgments of passages that are not in the collection (``pids`` are those that are), counted by split (splits
    without any left out)."""
    outside = qrels.filter(pc.invert(pc.is_in(qrels.column("pid"), value_set=pids)))
    counts = pc.value_counts(outside.column("split").combine_chunks())
    return {entry["values"]: entry["counts"] for entry in counts.to_pylist()}


def _learned_splits(queries: pa.Table) -> pa.ChunkedArray:
    return queries.filter(_learned_from(queries)).column("split")


def _learned_from(table: pa.Table) -> pa.ChunkedArray:
    return pc.is_in(table.column("split"), value_set=pa.array(LEARNED_FROM))


def _schema_problems(name: str, table: pa.Table, schema: pa.Schema, empty: bool = False) -> list[str]:
    problems = []
    for field in schema:
        if field.name not in table.column_names:
            problems.append(f"{name}: column {field.name} is missing")
        elif table.schema.field(field.name).type != field.type:
            problems.append(f"{name}: column {field.name} is {table.schema.field(field.name).type}, not {field.type}")
        elif nulls := table.column(field.name).null_count:
            problems.append(f"{name}: {nulls} null values in column {field.name}")
    if not problems and table.num_rows == 0 and not empty:
        problems.append(f"{name}: no rows")
    return problems


def _repeated(name: str, table: pa.Table, key: list[str]) -> list[str]:
    counts = table.select(key).group_by(key).aggregate([([], "count_all")])
    repeated = counts.filter(pc.greater(counts.column("count_all"), 1))
    return _listed(name, f"repeated {' and '.join(key)}", repeated.column(key[0]))


def _blank(name: str, table: pa.Table, key: str) -> list[str]:
    blank = table.filter(pc.equal(pc.utf8_trim_whitespace(table.column("text")), ""))
    return _listed(name, "empty texts", blank.column(key))


def _listed(name: str, what: str, ids: pa.ChunkedArray) -> list[str]:
    if not len(ids):
        return []
    examples = ", ".join(sorted(pc.unique(ids).slice(0, EXAMPLES).to_pylist()))
    return [f"{name}: {len(ids)} {what}, such as {examples}"]


def _values(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks()
