from __future__ import annotations

import pyarrow as pa
import pytest

from neuroranker_pipeline.datasets.tables import PASSAGES, QRELS, QUERIES
from neuroranker_pipeline.datasets.validate import (
    check_passages,
    check_qrels,
    check_queries,
    check_unjudged,
    judged_outside,
    without_relevant,
)
from neuroranker_pipeline_tests.datasets import raw

GOOD_QUERIES = [("q1", "one", "train"), ("q2", "two", "dev"), ("q3", "three", "gate"), ("q4", "four", "test")]
GOOD_QRELS = [("q1", "p1", 1, "train"), ("q2", "p1", 1, "dev"), ("q3", "p2", 2, "gate"), ("q4", "gone", 3, "test")]
PIDS = pa.array(["p1", "p2"])


def table(rows: list[tuple], schema: pa.Schema) -> pa.Table:
    return raw.table(schema, *rows)


def test_good_tables_have_no_problem() -> None:
    queries = table(GOOD_QUERIES, QUERIES)
    assert check_passages(table([("p1", "text"), ("p2", "more")], PASSAGES).to_batches()) == []
    assert check_queries(queries) == []
    assert check_qrels(table(GOOD_QRELS, QRELS), queries, PIDS) == []


def test_test_judgments_outside_the_collection_are_counted_not_rejected() -> None:
    assert judged_outside(table(GOOD_QRELS, QRELS), PIDS) == {"test": 1}


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([("p1", "a"), ("p1", "b")], "passages: 1 repeated pid, such as p1"),
        ([("p1", "a"), ("p2", " \n")], "passages: 1 empty texts, such as p2"),
        ([("p1", None)], "passages: 1 null values in column text"),
        ([], "passages: no rows"),
    ],
)
def test_passages(rows: list[tuple], problem: str) -> None:
    assert check_passages(table(rows, PASSAGES).to_batches()) == [problem]


def test_passages_repeated_or_wrong_in_a_later_batch() -> None:
    batches = [table([row], PASSAGES).to_batches()[0] for row in (("p1", "a"), ("p2", "b"), ("p1", "c"))]
    assert check_passages(iter(batches)) == ["passages: 1 repeated pid, such as p1"]
    empty = table([], PASSAGES).to_batches() or [pa.RecordBatch.from_pylist([], schema=PASSAGES)]
    assert check_passages([*empty, batches[0]]) == []
    assert check_passages(empty) == ["passages: no rows"]


def test_schema() -> None:
    assert check_passages(pa.table({"pid": [1]}).to_batches()) == [
        "passages: column pid is int64, not string",
        "passages: column text is missing",
    ]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (("q1", "again", "test"), "queries: 1 repeated qid, such as q1"),
        (("q9", "", "test"), "queries: 1 empty texts, such as q9"),
        (("q9", "x", "valid"), "queries: unknown split valid; expected train, dev, gate, test or test-<name>"),
    ],
)
def test_queries(row: tuple, problem: str) -> None:
    assert check_queries(table([*GOOD_QUERIES, row], QUERIES)) == [problem]


def test_named_test_splits_are_known_and_empty_ones_are_not() -> None:
    assert check_queries(table([*GOOD_QUERIES, ("q9", "x", "test-dl19")], QUERIES)) == []
    assert check_queries(table(GOOD_QUERIES[1:], QUERIES)) == ["queries: no query in split train"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (("q1", "p1", 0, "train"), "qrels: 1 repeated qid and pid, such as q1"),
        (("qx", "p1", 1, "test"), "qrels: 1 judgments of an unknown query, such as qx"),
        (("q1", "p2", 1, "test"), "qrels: 1 judgments in another split than their query, such as q1"),
        (
            ("q1", "gone", 1, "train"),
            "qrels: 1 relevant train, dev or gate passages outside the collection, such as gone",
        ),
    ],
)
def test_qrels(row: tuple, problem: str) -> None:
    assert check_qrels(table([*GOOD_QRELS, row], QRELS), table(GOOD_QUERIES, QUERIES), PIDS) == [problem]


MORE_QUERIES = table([*GOOD_QUERIES, ("q2b", "also", "dev")], QUERIES)


def test_queries_to_learn_from_need_a_judgment_and_a_split_something_relevant() -> None:
    assert check_qrels(table(GOOD_QRELS, QRELS), MORE_QUERIES, PIDS) == [
        "qrels: 1 train, dev or gate queries without a judged passage in the collection, such as q2b"
    ]
    assert check_qrels(table(GOOD_QRELS, QRELS), MORE_QUERIES, PIDS, about_itself=pa.array(["q2b"])) == []
    irrelevant = ("q2b", "p1", 0, "dev")
    assert check_qrels(table([*GOOD_QRELS, irrelevant], QRELS), MORE_QUERIES, PIDS) == [], (
        "it is judged, and finds nothing"
    )
    only = [row for row in GOOD_QRELS if row[0] != "q2"] + [("q2", "p1", 0, "dev"), irrelevant]
    assert check_qrels(table(only, QRELS), MORE_QUERIES, PIDS) == [
        "qrels: no judgment in split dev is relevant; lower data.relevance_level, or mend the grades"
    ]
    assert without_relevant(table(only, QRELS)).to_pylist() == ["q2", "q2b"]


def test_a_share_of_bare_queries_may_be_allowed() -> None:
    assert check_qrels(table(GOOD_QRELS, QRELS), MORE_QUERIES, PIDS, bare_share=0.25) == []
    assert len(check_qrels(table(GOOD_QRELS, QRELS), MORE_QUERIES, PIDS, bare_share=0.24)) == 1


def test_splits_that_nothing_is_learned_from_may_be_empty() -> None:
    measured = table([("q2", "two", "dev"), ("q4", "four", "test")], QUERIES)
    assert check_queries(measured) == ["queries: no query in split train"]
    assert check_queries(measured, ["dev"]) == []
    nothing = table([], QUERIES)
    assert check_queries(nothing, ["dev"]) == ["queries: no rows"]
    assert check_queries(nothing, []) == []
    assert check_qrels(table([], QRELS), nothing, PIDS) == []
    assert check_qrels(table([], QRELS), measured, PIDS)[0] == "qrels: no rows"


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([], "unjudged_queries: no rows"),
        ([("1", "a", "unjudged-00"), ("1", "b", "unjudged-00")], "unjudged_queries: 1 repeated qid, such as 1"),
        ([("1", " ", "unjudged-00")], "unjudged_queries: 1 empty texts, such as 1"),
    ],
)
def test_unjudged_queries(rows: list[tuple], problem: str) -> None:
    assert check_unjudged(table(rows, QUERIES)) == [problem]
