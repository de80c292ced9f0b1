from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroranker_pipeline.datasets.known import existing, known_candidates, known_judgments
from neuroranker_pipeline.datasets.rejects import Rejects
from neuroranker_pipeline.datasets.tables import CANDIDATES, GIVEN, JUDGMENTS, PASSAGES, QRELS, write_table
from neuroranker_pipeline_tests.datasets.raw import table, tuples

QIDS, PIDS = pa.array(["q1", "q2", "t1"]), pa.array(["p1", "p2", "p3"])
ASKED = pa.table({"qid": ["q1", "q2", "t1"], "split": ["test-a", "test-a", "train"]})


def judgments(*rows: tuple) -> pa.Table:
    return table(JUDGMENTS, *((*row, "qrels.tsv", line) for line, row in enumerate(rows, 1)))


def given_run(*rows: tuple) -> pa.Table:
    return table(GIVEN, *((*row, "test-a", "run.trec", line) for line, row in enumerate(rows, 1)))


def shown(rejects: Rejects) -> list[tuple]:
    return [(row["file"], row["line"], row["id"], row["reason"]) for row in rejects.table().to_pylist()]


def test_existing_ids_are_looked_up_in_all_files(tmp_path: Path) -> None:
    write_table(tmp_path, table(PASSAGES, ("p1", "x"), ("p2", "x")), PASSAGES)
    write_table(tmp_path / "more", table(PASSAGES, ("p3", "x"), ("p4", "x")), PASSAGES)
    (tmp_path / "more" / "part-00000.parquet").rename(tmp_path / "part-00001.parquet")
    wanted = pa.chunked_array([["p4", "gone", "p1"], ["p1", "p4"]])
    assert sorted(existing(tmp_path, "pid", wanted).to_pylist()) == ["p1", "p4"]
    assert existing(tmp_path, "pid", pa.chunked_array([], pa.string())).to_pylist() == []


def test_unknown_ids_are_rejected_but_not_a_test_sets_passages() -> None:
    rejects = Rejects()
    found = known_judgments(
        judgments(
            ("q1", "p1", 1, "train"), ("q9", "p1", 1, "train"), ("q1", "gone", 1, "train"), ("q2", "gone", 1, "dev"),
            ("t1", "gone", 3, "test-dl19"), ("t1", "p2", 0, "test-dl19"), ("t9", "p2", 0, "test"),
        ),
        QIDS, PIDS, rejects,
    )  # fmt: skip
    assert tuples(found, QRELS) == [
        ("q1", "p1", 1, "train"), ("t1", "gone", 3, "test-dl19"), ("t1", "p2", 0, "test-dl19"),
    ]  # fmt: skip
    assert shown(rejects) == [
        ("qrels.tsv", 2, "q9", "unknown query"),
        ("qrels.tsv", 3, "gone", "unknown passage"),
        ("qrels.tsv", 4, "gone", "unknown passage"),
        ("qrels.tsv", 7, "t9", "unknown query"),
    ]
    assert (rejects.accepted, rejects.count) == (3, 4)


def test_a_judgment_that_repeats_an_equal_one_is_left_out_and_a_contrary_one_rejected() -> None:
    rejects = Rejects()
    rows = [("q1", "p1", 1, "train"), ("q1", "p1", 1, "train"), ("q1", "p1", 0, "train"), ("q1", "p2", 1, "train")]
    found = known_judgments(judgments(*rows, ("q1", "p1", 1, "train")), QIDS, PIDS, rejects)
    assert tuples(found, QRELS) == [rows[0], rows[3]]
    assert shown(rejects) == [("qrels.tsv", 3, "p1", "contradicts an earlier judgment")]
    assert rejects.left_out == {"judgments that repeat an equal one": 2}


PAIRS = st.tuples(st.sampled_from(["q1", "q2"]), st.sampled_from(["p1", "p2", "p3"]), st.integers(0, 1), st.just("dev"))


@given(st.lists(PAIRS, max_size=20))
def test_the_first_judgment_of_a_pair_stays_in_its_place(rows: list[tuple]) -> None:
    first: dict[tuple, int] = {}
    for qid, pid, grade, _ in rows:
        first.setdefault((qid, pid), grade)
    rejects = Rejects()
    found = known_judgments(judgments(*rows), QIDS, PIDS, rejects)
    assert tuples(found, QRELS) == [(*pair, grade, "dev") for pair, grade in first.items()]
    assert rejects.accepted + rejects.count + rejects.left_out.total() == len(rows)


def test_nothing_to_judge() -> None:
    rejects = Rejects()
    assert known_judgments(judgments(), QIDS, PIDS, rejects).num_rows == 0
    assert known_candidates(given_run(), ASKED, PIDS, rejects).num_rows == 0
    assert rejects.total == 0


def test_candidates_are_ranked_by_score_then_pid() -> None:
    rejects = Rejects()
    rows = [
        ("q2", "p1", 1.0),
        ("q2", "p3", 2.0),
        ("q2", "p2", 2.0),
        ("unjudged", "p1", 1.0),
        ("t1", "p1", 1.0),
        ("q1", "p1", -3.0),
    ]
    found = known_candidates(given_run(*rows), ASKED, PIDS, rejects)
    assert tuples(found, CANDIDATES) == [
        ("q2", "p2", 1, 2.0),
        ("q2", "p3", 2, 2.0),
        ("q2", "p1", 3, 1.0),
        ("q1", "p1", 1, -3.0),
    ]
    assert rejects.left_out == {"candidates of a query outside the test set": 2}
    rejects.demand()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("q1", "gone", 1.0), "unknown passage"),
        (("q1", "p2", float("nan")), "the score is not finite"),
        (("q1", "p2", float("inf")), "the score is not finite"),
        (("q1", "p1", 9.0), "passage given twice for a query"),
    ],
)
def test_candidates_that_cannot_be(row: tuple, reason: str) -> None:
    rejects = Rejects()
    assert tuples(known_candidates(given_run(("q1", "p1", 1.0), row), ASKED, PIDS, rejects), CANDIDATES) == [
        ("q1", "p1", 1, 1.0)
    ]
    assert shown(rejects) == [("run.trec", 2, row[1], reason)]
