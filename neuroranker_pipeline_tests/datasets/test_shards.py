from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from neuroranker_pipeline.datasets.shards import judgments_of, queries_of_shard, rows_of_shard, stable_shard
from neuroranker_pipeline.datasets.tables import QRELS, QUERIES
from neuroranker_pipeline_tests.datasets.raw import table, tuples

ASKED = [(f"q{n}", "text", "train" if n % 3 else ("dev", "test", "test-dl19")[n % 9 // 3]) for n in range(90)]


@given(st.integers(1, 7))
def test_every_query_is_in_one_shard_of_its_own_split(shards: int) -> None:
    queries = table(QUERIES, *ASKED)
    keys = [*(f"train-{n:02d}" for n in range(shards)), "dev", "test", "test-dl19"]
    parts = [tuples(queries_of_shard(queries, key, shards), QUERIES) for key in keys]
    assert sorted(row for part in parts for row in part) == sorted(ASKED)
    for key, part in zip(keys, parts, strict=True):
        assert {split for _, _, split in part} <= {"train" if key.startswith("train-") else key}


def test_a_shard_is_the_same_everywhere() -> None:
    assert [stable_shard(qid, 5) for qid in ("1", "q2", "é")] == [0, 4, 3]


@given(st.integers(0, 200), st.integers(1, 12))
def test_rows_are_split_evenly_and_without_a_gap(rows: int, shards: int) -> None:
    parts = [rows_of_shard(rows, f"shard-{n:02d}", shards) for n in range(shards)]
    assert [n for part in parts for n in range(part.start, part.stop)] == list(range(rows))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_judgments_of_some_queries() -> None:
    qrels = table(QRELS, ("q1", "p1", 1, "dev"), ("q2", "p1", 0, "dev"), ("q1", "p2", 2, "dev"))
    assert tuples(judgments_of(qrels, ["q1", "q9"]), QRELS) == [("q1", "p1", 1, "dev"), ("q1", "p2", 2, "dev")]
    assert judgments_of(qrels, []).num_rows == 0
