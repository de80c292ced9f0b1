"""Every blocking check, on a case that passes and on cases that must not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from neuroranker_pipeline.checks import corpus, evaluation, export, ranking, retrieval, serving
from neuroranker_pipeline.datasets.tables import CANDIDATES, SCORES
from neuroranker_pipeline.datasets.tables import QUERIES as QUERY_TABLE


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
        pytest.param([("q1", "a", 1, 3.0)], id="half of the queries without candidates"),
        pytest.param([*GOOD, ("q3", "d", 1, 1.0)], id="a query of another shard"),
        pytest.param([*GOOD, ("q1", "d", 1, 1.0)], id="a query twice"),
        pytest.param([*GOOD, ("q2", "d", 2, 0.5), ("q2", "e", 3, 0.4)], id="deeper than the depth"),
        pytest.param([("q1", "a", 2, 3.0), ("q2", "c", 1, 1.0)], id="the first rank missing"),
    ],
)
def test_broken_candidates_fail(rows: list[tuple[str, str, int, float]]) -> None:
    assert not retrieval.candidates_are_complete(candidates(*rows), QUERIES, depth=2).passed


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


def test_a_model_must_beat_what_it_is_measured_against() -> None:
    assert ranking.beats_bm25(0.4, 0.3).passed
    assert not ranking.beats_bm25(0.3, 0.3).passed
    assert ranking.beats_bm25(0.0, 0.0, queries=0).passed  # nothing was measured
    assert ranking.not_worse_than_base(0.3, 0.3).passed
    assert not ranking.not_worse_than_base(0.29, 0.3).passed
    assert ranking.not_worse_than_base(0.0, 0.0, 0.01, queries=0).passed
    assert not ranking.not_worse_than_base(0.0, 0.0, 0.01, queries=1).passed


def test_embeddings_must_be_unit_vectors_of_every_passage() -> None:
    unit = np.eye(3, dtype=np.float32)
    assert ranking.embeddings_are_unit_vectors(["a", "b", "c"], ["a", "b", "c"], unit).passed
    assert not ranking.embeddings_are_unit_vectors(["a", "b"], ["a", "b", "c"], unit[:2]).passed
    assert not ranking.embeddings_are_unit_vectors(["a", "b", "c"], ["a", "b", "c"], unit * 0.9).passed
    assert not ranking.embeddings_are_unit_vectors(["a", "b", "c"], ["a", "b", "c"], unit * np.nan).passed


def test_exports_must_stay_within_their_bounds() -> None:
    assert export.onnx_agrees_with_pytorch(1e-5, 64).passed
    assert not export.onnx_agrees_with_pytorch(2e-4, 64).passed
    assert export.int8_loses_little(0.515, 0.52, 0.01).passed
    assert not export.int8_loses_little(0.50, 0.52, 0.01).passed
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
    assert not check(given.slice(0, 1), asked, ("test-a",)).passed


def test_unjudged_queries_are_checked_where_there_should_be_some() -> None:
    nothing = QUERY_TABLE.empty_table()
    assert corpus.unjudged_queries_are_valid(nothing, False).passed
    assert not corpus.unjudged_queries_are_valid(nothing, True).passed
    assert corpus.unjudged_queries_are_valid(pa.table([["1"], ["a"], ["unjudged-00"]], schema=QUERY_TABLE), True).passed
