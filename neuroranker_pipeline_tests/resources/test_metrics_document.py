"""docs/metrics.md says what is there: every view, every column, and queries that answer."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from neuroranker_pipeline.resources.metrics import Figure, MetricsStore, RunRecord, StepOutcome, history_figures

DOCUMENT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^### (.+)\n((?:(?!^#).*\n)*)", DOCUMENT, re.MULTILINE))
QUERIES = {title: found[1] for title, body in SECTIONS.items() if (found := re.search(r"```sql\n(.*?)```", body, re.S))}
COLUMNS = {
    title: re.findall(r"^\| `(\w+)` \| ([A-Z ]+) \|", body, re.MULTILINE)
    for title, body in SECTIONS.items()
    if title not in QUERIES
}
MONDAY = datetime(2025, 1, 6, 3, tzinfo=UTC)
MRR = {"BM25": 0.37, "student": 0.52, "student int8": 0.51}
MS = {"student": 500.0, "student int8": 200.0}


def materialization(week: int, asset: str, seconds: float, **more) -> RunRecord:
    known = {
        "run_id": f"run-{week}-{asset}",
        "profile": "quickstart",
        "asset": asset,
        "started_at": MONDAY + timedelta(weeks=week),
        "wall_seconds": seconds,
        "code_version": "1",
        "data_version": f"{asset}-{week}",
        "fingerprint": f"{asset}-{week}",
        "device": "cpu",
        "checks_passed": True,
        "version": f"v{week}",
        "bytes": 1_000_000,
        "settings": {"student": {"training": {"learning_rate": 1e-4 if week < 2 else 2e-4}}},
    }
    return RunRecord(**{**known, **more})


def evaluation(week: int, gain: float) -> RunRecord:
    """MRR@10 and scores that grow by ``gain``, though one query of the int8 student's gets worse every week."""
    figures = [Figure(f"{ranker}/MRR@10", value + gain * (ranker != "BM25")) for ranker, value in MRR.items()]
    figures += [Figure(f"{ranker}/ms_per_query", ms) for ranker, ms in MS.items()]
    figures += [Figure("student/score mean", 0.3 + gain), Figure("student/score deviation", 0.1)]
    values = {"q1": 1.0 / (week + 1), "q2": 0.25, "q3": 0.1 + week / 10}
    per_query = pa.table(
        {
            "ranker": ["student int8"] * 3,
            "qid": list(values),
            "measure": ["MRR@10"] * 3,
            "value": list(values.values()),
        }
    )
    return materialization(week, "eval_report", 60.0, partition="test", figures=tuple(figures), per_query=per_query)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> MetricsStore:
    """Three weeks of a pipeline: made, then evaluated twice more, a training that was blocked, a shard that failed."""
    store = MetricsStore(str(tmp_path_factory.mktemp("metrics")))
    for partition, seconds in (("train-00", 20.0), ("train-01", 30.0), ("test", 10.0)):
        store.append(materialization(0, "teacher_scores", seconds, device="cuda", partition=partition, bytes=3_000_000))
    losses = {1: 0.9, 2: 0.7, 10: 0.4}
    history = history_figures({"step": s, "loss": loss, "examples_per_second": 20.0 + s} for s, loss in losses.items())
    trained = (Figure("examples_per_second", 27.0), *history)
    store.append(
        materialization(0, "student_checkpoint", 300.0, device="cuda", rows=2000, bytes=91_000_000, figures=trained)
    )
    store.append(materialization(1, "student_checkpoint", 300.0, device="cuda", rows=1000, checks_passed=False))
    for week, gain in enumerate((0.0, 0.01, 0.06)):
        store.append(evaluation(week, gain))
    store.note([StepOutcome("reused", "", "quickstart", "teacher_scores", "train-01", MONDAY + timedelta(weeks=1))])
    failed = MONDAY + timedelta(weeks=2)
    store.note(
        [StepOutcome("failed", "run-x", "quickstart", "teacher_scores", "test", failed, 4.0, "OutOfMemoryError: no")]
    )
    return store


def test_every_view_and_column_is_described_and_no_other(store: MetricsStore) -> None:
    names = [name for (name,) in store.query("SHOW TABLES")[1]]
    assert sorted(COLUMNS) == names
    columns = {name: [row[:2] for row in store.query(f"DESCRIBE {name}")[1]] for name in names}
    assert COLUMNS["latest"] == []
    assert columns["latest"] == columns["materializations"]
    for name in COLUMNS.keys() - {"latest"}:
        assert COLUMNS[name] == columns[name], name


def test_there_are_at_least_ten_queries_and_each_has_its_answer() -> None:
    assert len(QUERIES) >= 10
    assert set(QUERIES) == set(ANSWERS)


def week(number: int) -> datetime:
    return MONDAY + timedelta(weeks=number)


ANSWERS = {
    "The slowest assets": [
        ("student_checkpoint", 1, 300.0, 300.0),
        ("teacher_scores", 3, 60.0, 30.0),
        ("eval_report", 1, 60.0, 60.0),
    ],
    "Quality over time": [
        *((week(n), "test", "BM25", 0.37, change) for n, change in enumerate((None, 0.0, 0.0))),
        *((week(n), "test", "student", v, c) for n, (v, c) in enumerate([(0.52, None), (0.53, 0.01), (0.58, 0.05)])),
        *(
            (week(n), "test", "student int8", v, c)
            for n, (v, c) in enumerate([(0.51, None), (0.52, 0.01), (0.57, 0.05)])
        ),
    ],
    "Cost by device": [("cuda", 5, 0.183, 78.6), ("cpu", 3, 0.05, 21.4)],
    "Drift of score distributions": [
        (week(2), "test", "student", 0.36, 0.1, 0.5),
        (week(1), "test", "student", 0.31, 0.1, 0.1),
        (week(0), "test", "student", 0.3, 0.1, None),
    ],
    "What failed, and what a check blocked": [
        (week(2), "teacher_scores", "test", "failed", "OutOfMemoryError: no", "run-x"),
        (week(1), "student_checkpoint", None, "blocked", "a blocking check failed", "run-1-student_checkpoint"),
    ],
    "How much was spared": [
        ("teacher_scores", 5, 1, 20.0, 30.0),
        ("eval_report", 3, 0, 0.0, None),
        ("student_checkpoint", 2, 0, 0.0, None),
    ],
    "Training throughput": [(week(0), "student_checkpoint", "cuda", 2000, 27.0)],
    "Size on disk": [("teacher_scores", 3, 9.0), ("eval_report", 1, 1.0), ("student_checkpoint", 1, 1.0)],
    "Quality against cost": [("student int8", 0.57, 200.0), ("student", 0.58, 500.0)],
    "The last loss of every training": [("student_checkpoint", week(0), 10, 0.9, 0.4)],
    "The queries that the last change made worse": [("test", "q1", 0.5, 1 / 3)],
    "What a setting did": [("0.0002", 1, 0.58), ("0.0001", 2, 0.53)],
}


def same(found: object, expected: object) -> bool:
    if isinstance(expected, datetime):
        return isinstance(found, datetime) and found.astimezone(UTC) == expected
    return found == (pytest.approx(expected, abs=1e-9) if isinstance(expected, float) else expected)


@pytest.mark.parametrize("title", QUERIES)
def test_a_query_of_the_document_answers(store: MetricsStore, title: str) -> None:
    _, rows = store.query(QUERIES[title])
    expected = ANSWERS[title]
    assert len(rows) == len(expected), rows
    if title in ("The slowest assets", "Size on disk"):  # equal figures may come in any order
        rows, expected = (sorted(some, key=str) for some in (rows, expected))
    for row, wanted in zip(rows, expected, strict=True):
        assert all(same(*pair) for pair in zip(row, wanted, strict=True)), (row, wanted)
