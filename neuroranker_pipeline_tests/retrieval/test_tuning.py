from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from neuroranker_pipeline.datasets.tables import PASSAGES
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.retrieval.index import build_index
from neuroranker_pipeline.retrieval.settings import BM25Settings, TuneSettings
from neuroranker_pipeline.retrieval.tuning import tune_bm25

# A long relevant passage that says the word thrice, and a short one that says it once: b decides which is first.
TEXTS = {"long": "fox fox fox " + "filler words that go on " * 20, "short": "fox", "other": "nothing of the kind here"}
QUERIES = {f"q{n}": "fox" for n in range(4)}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuning") / "index"
    table = pa.table({"pid": list(TEXTS), "text": list(TEXTS.values())}, schema=PASSAGES)
    build_index(table.to_batches(), out, BM25Settings(heap_mb=256))
    return out


def judged(pid: str) -> pa.Table:
    grades = {"qid": list(QUERIES), "pid": [pid] * len(QUERIES), "grade": [1] * len(QUERIES)}
    return pa.table(grades, schema=pa.schema([("qid", pa.string()), ("pid", pa.string()), ("grade", pa.int32())]))


@pytest.mark.parametrize(("pid", "best_b"), [("long", 0.0), ("short", 0.9)])
def test_the_point_that_ranks_best_wins(index: Path, pid: str, best_b: float) -> None:
    settings = BM25Settings(k1=0.9, b=0.9, tune=TuneSettings(k1=(0.9,), b=(0.0,), measure="mrr"))
    tuned = tune_bm25(index, settings, QUERIES, judged(pid))
    assert (tuned.k1, tuned.b) == (0.9, best_b)
    assert [(row.k1, row.b) for row in tuned.rows] == [(0.9, 0.0), (0.9, 0.9)]
    assert {row.b: row.value for row in tuned.rows} == {best_b: 1.0, 0.9 - best_b: 0.5}


def test_ties_go_to_the_smaller_k1_then_the_smaller_b(index: Path) -> None:
    settings = BM25Settings(k1=0.9, b=0.4, tune=TuneSettings(k1=(1.2, 0.6), b=(0.8, 0.3), measure="recall"))
    seen: list[tuple[int, int]] = []
    tuned = tune_bm25(index, settings, QUERIES, judged("long"), lambda label, done, total: seen.append((done, total)))
    assert (tuned.k1, tuned.b) == (0.6, 0.3)
    assert len(tuned.rows) == 9  # the settings' own k1 and b are in the grid
    assert {row.value for row in tuned.rows} == {1.0}
    assert seen[-1] == (9, 9)


def test_a_query_does_not_find_itself_and_grades_count_from_the_level(index: Path) -> None:
    """Without the short passage the long one is first at every b, and at depth 1 it takes its place."""
    settings = BM25Settings(k1=0.9, b=0.9, depth=1, tune=TuneSettings(k1=(0.9,), b=(0.0,), measure="mrr"))
    own = pa.table({"qid": list(QUERIES), "pid": ["short"] * len(QUERIES)})
    assert {row.value for row in tune_bm25(index, settings, QUERIES, judged("long"), own=own).rows} == {1.0}
    strict = tune_bm25(index, settings, QUERIES, judged("long"), relevance_level=2, own=own)
    assert {row.value for row in strict.rows} == {0.0}


def test_recall_is_within_the_depth(index: Path) -> None:
    settings = BM25Settings(k1=0.9, b=0.9, depth=1, tune=TuneSettings(k1=(0.9,), b=(0.0,)))
    tuned = tune_bm25(index, settings, QUERIES, judged("long"))
    assert {row.b: row.value for row in tuned.rows} == {0.0: 1.0, 0.9: 0.0}


def test_the_sample_is_fixed_and_of_judged_queries(index: Path) -> None:
    settings = BM25Settings(k1=0.9, b=0.4, tune=TuneSettings(k1=(0.9,), b=(0.4,), queries=2))
    judgments = judged("other").slice(0, 3)  # q3 is not judged
    both = judgments.set_column(1, "pid", pa.array(["short", "other", "other"]))
    values = [
        tune_bm25(index, settings, dict(order), both).rows[0].value
        for order in (QUERIES.items(), reversed(QUERIES.items()))
    ]
    assert values[0] == values[1]
    assert values[0] in (0.0, 0.5)


def test_without_a_judged_query_nothing_is_tuned(index: Path) -> None:
    with pytest.raises(BadInput, match="no query has a judgment"):
        tune_bm25(index, BM25Settings(tune=TuneSettings()), {"else": "fox"}, judged("long"))
