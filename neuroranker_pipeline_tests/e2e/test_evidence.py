"""What the finished graph leaves to look at: figures that answer, and a report that can be compared."""

from __future__ import annotations

import json

import pytest

from neuroranker_pipeline.resources.evaluations import find_evaluation
from neuroranker_pipeline.resources.metrics import MetricsStore
from neuroranker_pipeline_tests.e2e.conftest import Graph
from neuroranker_pipeline_tests.resources.test_metrics_document import QUERIES

pytestmark = pytest.mark.e2e

SILENT = {  # of one evaluation, in which nothing failed
    "What failed, and what a check blocked",
    "The queries that the last change made worse",
}


@pytest.fixture
def store(graph: Graph) -> MetricsStore:
    return MetricsStore(f"{graph.lake.base}/metrics")


@pytest.mark.parametrize("title", QUERIES)
def test_the_queries_of_the_document_answer(store: MetricsStore, title: str) -> None:
    _, rows = store.query(QUERIES[title])
    assert rows or title in SILENT


def test_costs_scores_and_groups_are_recorded_for_every_ranker(graph: Graph, store: MetricsStore) -> None:
    report = json.loads((graph.lake.read("eval_report", "test") / "report.json").read_text())
    rankers = {row["ranker"] for row in report["rankers"]}
    assert {row["ranker"] for row in report["distributions"]} == rankers
    timed = {row["name"] for row in report["costs"]}
    assert timed == rankers - {"BM25", "search"}
    assert all(row["milliseconds"] > 0 and row["bytes"] > 1e5 for row in report["costs"])
    assert {ranker for (ranker,) in store.query("SELECT DISTINCT ranker FROM scores")[1]} == rankers
    assert {ranker for (ranker,) in store.query("SELECT DISTINCT ranker FROM breakdowns")[1]} == rankers
    for by in ("type", "length"):
        assert sum(row["queries"] for row in report["breakdowns"] if row["by"] == by) == report["queries"]


def test_a_report_in_the_lake_is_the_evaluation_in_the_run_metrics(graph: Graph, store: MetricsStore) -> None:
    version = graph.lake.usable("eval_report", "test").version
    kept = find_evaluation(store, version)
    folder = find_evaluation(store, str(graph.lake.read("eval_report", "test")))
    assert (kept.split, kept.rankers()) == (folder.split, folder.rankers())
    for ranker in kept.rankers():
        assert kept.by_query(ranker, "MRR@10") == folder.by_query(ranker, "MRR@10")
    done = graph.command("report", "--compare", version, str(graph.lake.read("eval_report", "test")))
    assert done.returncode == 0, done.stderr
    assert "Settings: the same." in done.stdout
    assert "Versions: the same." in done.stdout
    assert done.stdout.count("+0.000 to +0.000") == len(kept.rankers())
