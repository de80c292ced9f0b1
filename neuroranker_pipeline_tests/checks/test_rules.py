"""Every blocking check, on a case that passes and on cases that must not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from neuroranker_pipeline.checks import corpus, evaluation, export, ranking, retrieval, serving
from neuroranker_pipeline.datasets.leaks import Leak, Leaks, SplitLeaks
from neuroranker_pipeline.datasets.tables import CANDIDATES, SCORES
from neuroranker_pipeline.datasets.tables import QUERIES as QUERY_TABLE
from neuroranker_pipeline.ranking.dev import DevTest


def candidates(*rows: tuple[str, str, int, float]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(CANDIDATES.names, row, strict=True)) for row in rows], schema=CANDIDATES)


GOOD = (("q1", "a", 1, 3.0), ("q1", "b", 2, 2.0), ("q2", "c", 1, 1.0))
QUERIES = {"q1": "one", "q2": "two"}


def test_complete_candidates_pass() -> None:
    check = retrieval.candidates_are_complete(candidates(*GOOD), QUERIES, depth=2)
    assert check.passed
    assert check.name == "candidates_are_complete"
    assert check.description.startswith("Every query's candidates")


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([("q1", "a", 1, 3.0), ("q1", "b", 3, 2.0), ("q2", "c", 1, 1.0)], id="a gap in the ranks"),
        pytest.param([("q1", "a", 1, 1.0), ("q1", "b", 2, 2.0), ("q2", "c", 1, 1.0)], id="scores not sorted"),
        pytest.param([], id="no query with candidates"),
        pytest.param([*GOOD, ("q3", "d", 1, 1.0)], id="a query of another shard"),
        pytest.param([*GOOD, ("q1", "d", 1, 1.0)], id="a query twice"),
        pytest.param([*GOOD, ("q2", "d", 2, 0.5), ("q2", "e", 3, 0.4)], id="deeper than the depth"),
        pytest.param([("q1", "a", 2, 3.0), ("q2", "c", 1, 1.0)], id="the first rank missing"),
    ],
)
def test_broken_candidates_fail(rows: list[tuple[str, str, int, float]]) -> None:
    assert not retrieval.candidates_are_complete(candidates(*rows), QUERIES, depth=2).passed


@pytest.mark.parametrize(
    ("asked", "answered", "unanswered", "passed"),
    [
        (9, 8, 0.1, True),
        (9, 7, 0.1, False),
        (9, 8, 0.0, False),
        (2, 0, 1.0, False),
        (1, 0, 0.1, False),
        (2, 1, 0.1, True),
        (100, 92, 0.07, False),
    ],
)
def test_few_queries_may_find_nothing(asked: int, answered: int, unanswered: float, passed: bool) -> None:
    queries = {f"q{n}": "text" for n in range(asked)}
    found = candidates(*((f"q{n}", "a", 1, 1.0) for n in range(answered)))
    check = retrieval.candidates_are_complete(found, queries, 2, unanswered)
    assert check.passed == passed
    assert check.metadata["queries_without_candidates"] == asked - answered
    assert check.metadata["first_without_candidates"] == f"q{answered}", "the first is named"
    given = corpus.given_candidates_are_usable(
        found, pa.table({"qid": list(queries), "split": ["test"] * asked}), ["test"], unanswered
    )
    assert given.passed == passed
    assert given.metadata["test: first_without_candidates"] == f"q{answered}"


def scores(values: list[float], pids: str = "abc") -> pa.Table:
    return pa.table({"qid": ["q"] * len(values), "pid": list(pids)[: len(values)], "score": values}, schema=SCORES)


def test_scores_must_answer_every_pair_in_order() -> None:
    assert ranking.scores_are_complete(scores([1, 2, 3]), scores([0, 0, 0])).passed
    assert not ranking.scores_are_complete(scores([1, 2]), scores([0, 0, 0])).passed
    assert not ranking.scores_are_complete(scores([1, 2, 3], "acb"), scores([0, 0, 0])).passed


def test_an_empty_shard_has_nothing_to_be_wrong() -> None:
    assert ranking.scores_are_sane(scores([])).passed
    assert retrieval.candidates_are_complete(candidates(), {}, depth=2).passed


@pytest.mark.parametrize(("values", "passed"), [([1, 2, 3], True), ([1, 1, 1], False), ([1, float("nan"), 2], False)])
def test_scores_must_be_finite_and_differ(values: list[float], passed: bool) -> None:
    assert ranking.scores_are_sane(scores(values)).passed == passed


@pytest.mark.parametrize(("losses", "passed"), [([0.5, 0.4], True), ([], False), ([0.5, float("inf")], False)])
def test_losses_must_be_finite(losses: list[float], passed: bool) -> None:
    assert ranking.loss_is_finite(losses).passed == passed
    assert ranking.loss_is_finite(losses, trained=False).passed == (not losses)


@pytest.mark.parametrize("check", [ranking.not_worse_than_bm25, ranking.not_worse_than_base])
def test_a_model_is_stopped_by_evidence_alone(check) -> None:
    assert check(DevTest(0.3, 0.4, 0.0, p=0.2, queries=9), 0.05).passed, "below, but it may be chance"
    assert not check(DevTest(0.3, 0.4, 0.0, p=0.01, queries=9), 0.05).passed
    assert check(DevTest(0.3, 0.4, 0.0, p=0.01, queries=9), 0.001).passed
    assert check(DevTest(0.4, 0.3, 0.0, p=0.01, queries=9), 0.05).passed
    assert not check(DevTest(0.4, 0.3, 0.2, p=0.01, queries=9), 0.05).passed, "the gain asked for"
    assert check(DevTest(0.0, 0.0, 0.1, p=1.0, queries=0), 0.05).passed, "nothing was measured"


def leaks(same: int = 0, near: int = 0) -> Leaks:
    found = [Leak("dev", "d", "a text", "t", "A text!", 1.0, True)] * min(1, same + near)
    return Leaks(0.7, (SplitLeaks("dev", 10, same, near, same + near), SplitLeaks("test", 10, 0, 0, 0)), tuple(found))


def test_a_leak_stops_carved_splits_and_a_near_one_in_given_splits_is_a_warning() -> None:
    check = corpus.splits_do_not_leak
    assert check(leaks(), {"dev"}).passed
    for carved, same, near, blocking in (({"dev"}, 0, 1, True), (set(), 0, 1, False), (set(), 1, 0, True)):
        found = check(leaks(same, near), carved)
        assert (found.passed, found.blocking) == (False, blocking)
        assert found.metadata["dev"] == f"{same} same and {near} near of 10"
        assert "A text!" in found.metadata["first"]
    assert not check(leaks(near=1), {"test"}).blocking, "dev came with the data"


def test_embeddings_must_be_unit_vectors_of_every_passage() -> None:
    unit = np.eye(3, dtype=np.float32)
    assert ranking.embeddings_are_unit_vectors(["a", "b", "c"], ["a", "b", "c"], unit).passed
    assert not ranking.embeddings_are_unit_vectors(["a", "b"], ["a", "b", "c"], unit[:2]).passed
    assert not ranking.embeddings_are_unit_vectors(["a", "b", "c"], ["a", "b", "c"], unit * 0.9).passed
    assert not ranking.embeddings_are_unit_vectors(["a", "b", "c"], ["a", "b", "c"], unit * np.nan).passed


def test_exports_must_stay_within_their_bounds() -> None:
    assert export.onnx_agrees_with_pytorch(1e-5, 64).passed
    assert not export.onnx_agrees_with_pytorch(2e-4, 64).passed
    assert export.int8_loses_little(DevTest(0.50, 0.52, -0.01, p=0.3, queries=9), 0.05).passed
    assert not export.int8_loses_little(DevTest(0.50, 0.52, -0.01, p=0.01, queries=9), 0.05).passed
    assert export.int8_loses_little(DevTest(0.515, 0.52, -0.01, p=0.01, queries=9), 0.05).passed
    assert export.ranking_is_stable(1e-6, 1e-3).passed
    assert not export.ranking_is_stable(float("nan"), 1e-3).passed


def test_counts_measures_and_answers_must_be_equal() -> None:
    assert retrieval.index_holds_every_passage(5, 5).passed
    assert not retrieval.index_holds_every_passage(4, 5).passed
    assert evaluation.agrees_with_trec_eval({"MRR@10": 0.5}, {"MRR@10": 0.5}).passed
    assert not evaluation.agrees_with_trec_eval({"MRR@10": 0.5}, {"MRR@10": 0.50001}).passed
    assert not evaluation.agrees_with_trec_eval({"MRR@10": 0.5}, {}).passed
    assert serving.bento_answers_correctly([1, 0], [1, 0]).passed
    assert not serving.bento_answers_correctly([0, 1], [1, 0]).passed


def test_every_given_run_must_answer_its_own_test_set() -> None:
    asked = pa.table({"qid": ["a1", "a2", "b1"], "split": ["test-a", "test-a", "test-b"]})
    check = corpus.given_candidates_are_usable
    given = candidates(("a1", "p", 1, 1.0), ("a2", "p", 1, 1.0))
    assert check(given, asked, ()).passed
    assert check(given, asked, ("test-a",)).passed
    assert not check(given, asked, ("test-a", "test-b")).passed
    assert not check(given.slice(0, 1), asked, ("test-a",), 0.0).passed


def test_unjudged_queries_are_checked_where_there_should_be_some() -> None:
    nothing = QUERY_TABLE.empty_table()
    assert corpus.unjudged_queries_are_valid(nothing, False).passed
    assert not corpus.unjudged_queries_are_valid(nothing, True).passed
    assert corpus.unjudged_queries_are_valid(pa.table([["1"], ["a"], ["unjudged-00"]], schema=QUERY_TABLE), True).passed
