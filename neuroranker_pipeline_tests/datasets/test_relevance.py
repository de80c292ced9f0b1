from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroranker_pipeline.datasets.relevance import levelled
from neuroranker_pipeline.datasets.tables import QRELS
from neuroranker_pipeline_tests.datasets.raw import table

ROWS = [
    ("q1", "a", 1, "train"),
    ("q1", "b", 2, "train"),
    ("q2", "a", 1, "dev"),
    ("q3", "a", 3, "test-b"),
    ("nq:q1", "nq:a", 1, "train"),
]


def grades(levels: dict[str, dict[str, int]], rows: list[tuple] = ROWS) -> list[int]:
    found = levelled(table(QRELS, *rows), levels)
    assert found.schema == QRELS
    assert found.drop_columns("grade").equals(table(QRELS, *rows).drop_columns("grade"))
    return found["grade"].to_pylist()


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ({"main": {"train": 1, "dev": 1}}, [1, 2, 1, 3, 1]),
        ({"main": {"train": 2}}, [0, 2, 1, 3, 0]),
        ({"main": {"train": 2}, "nq": {"train": 1}}, [0, 2, 1, 3, 1]),
        ({"main": {"train": 1}, "nq": {"train": 2}}, [1, 2, 1, 3, 0]),
        ({"main": {"dev": 2, "test-b": 4}}, [1, 2, 0, 0, 1]),
    ],
)
def test_grades_below_the_level_of_their_collection_and_split_are_0(levels: dict, expected: list[int]) -> None:
    assert grades(levels) == expected


@given(st.lists(st.integers(-2, 4), max_size=20), st.integers(1, 4))
def test_what_is_relevant_keeps_its_grade(given_grades: list[int], level: int) -> None:
    rows = [(f"q{n}", "p", grade, "train") for n, grade in enumerate(given_grades)]
    found = grades({"main": {"train": level}}, rows)
    assert [grade for grade in found if grade > 0] == [grade for grade in given_grades if grade >= level]


def test_several_chunks_are_one_table() -> None:
    whole = pa.concat_tables([table(QRELS, *ROWS), table(QRELS, *ROWS)])
    assert levelled(whole, {"main": {"train": 2}})["grade"].to_pylist() == [0, 2, 1, 3, 0] * 2
