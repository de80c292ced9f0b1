from __future__ import annotations

import pyarrow as pa
import pytest

from neuroranker_pipeline.datasets.own import OWN_PASSAGES, own_passages, without_own
from neuroranker_pipeline.datasets.tables import CANDIDATES, PASSAGES, QUERIES
from neuroranker_pipeline_tests.datasets.raw import table

ASKED = table(
    QUERIES,
    ("1", "Smoking is bad", "test"),
    ("2", "another text", "test"),
    ("3", "no such passage", "train"),
    ("nq:1", "joined", "train"),
)
PASSAGES_THERE = [
    ("1", "On smoking. Smoking is  bad!"),
    ("2", "the passage of that id"),
    ("4", "another text"),
    ("nq:1", "Joined"),
]


@pytest.mark.parametrize(
    ("main", "joined", "found"),
    [
        ("auto", "auto", ["1", "nq:1"]),
        (True, False, ["1", "2"]),
        (False, "auto", ["nq:1"]),
        (False, False, []),
    ],
)
def test_a_query_is_the_passage_of_its_id_and_where_in_doubt_of_its_text(main, joined, found: list[str]) -> None:
    batches = [table(PASSAGES, row).to_batches()[0] for row in PASSAGES_THERE]
    own = own_passages(ASKED, batches, {"main": main, "nq": joined})
    assert own.schema == OWN_PASSAGES
    assert own["qid"].to_pylist() == own["pid"].to_pylist() == found


@pytest.mark.parametrize(
    ("passage", "query", "same"),
    [
        ("Smoking is bad!", "smoking  is bad", True),
        ("Why not. Smoking is bad", "Smoking is bad", True),
        ("All kinds of lists in Python", "thon", False),
        ("All kinds of lists in Python", "Python", False),
        ("Python lists", "Python", False),
        ("", "Python", False),
    ],
)
def test_a_text_that_only_ends_alike_is_another(passage: str, query: str, same: bool) -> None:
    asked, batch = table(QUERIES, ("1", query, "test")), table(PASSAGES, ("1", passage)).to_batches()
    assert own_passages(asked, batch, {"main": "auto"}).num_rows == same


def test_no_passage_is_read_where_no_query_can_be_one() -> None:
    def unread():
        pytest.fail("read")
        yield pa.record_batch([[], []], schema=PASSAGES)

    assert own_passages(ASKED, unread(), {"main": False, "nq": False}).num_rows == 0


def test_candidates_close_ranks_and_keep_to_the_depth() -> None:
    rows = [("1", "9", 1, 3.0), ("1", "1", 2, 2.0), ("1", "8", 3, 1.0), ("1", "7", 4, 0.5), ("2", "1", 1, 1.0)]
    own = table(OWN_PASSAGES, ("1", "1"), ("2", "2"))
    expected = [("1", "9", 1, 3.0), ("1", "8", 2, 1.0), ("1", "7", 3, 0.5), ("2", "1", 1, 1.0)]
    assert without_own(table(CANDIDATES, *rows), own).equals(table(CANDIDATES, *expected))
    assert without_own(table(CANDIDATES, *rows), own, 2).equals(table(CANDIDATES, *expected[:2], expected[3]))
