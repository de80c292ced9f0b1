"""Standardized scores, their weighted sum, and the weights chosen on dev."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroranker_pipeline.datasets.tables import SCORES
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.ranking.ensemble import choose_weights, combine, standardize
from neuroranker_pipeline.ranking.scoring import mean_reciprocal_rank


def table(rows: list[tuple[str, str, float]]) -> pa.Table:
    return pa.table(dict(zip(("qid", "pid", "score"), zip(*rows, strict=True), strict=True)), schema=SCORES)


values = st.floats(-1e4, 1e4, width=32).map(lambda value: round(value, 2))


@given(st.lists(st.lists(values, min_size=1, max_size=8), min_size=1, max_size=4), st.randoms())
def test_every_query_has_mean_0_and_deviation_1_in_the_order_of_its_rows(queries, random) -> None:
    rows = [(f"q{q}", f"p{p}", score) for q, scores in enumerate(queries) for p, score in enumerate(scores)]
    random.shuffle(rows)
    found = standardize(table(rows)).to_pylist()
    assert [(row["qid"], row["pid"]) for row in found] == [row[:2] for row in rows]
    for number, scores in enumerate(queries):
        given_scores = np.array(scores, np.float32).astype(np.float64)
        expected = given_scores - given_scores.mean()
        expected = expected / given_scores.std() if given_scores.std() > 1e-6 else expected * 0
        mine = {row["pid"]: row["score"] for row in found if row["qid"] == f"q{number}"}
        np.testing.assert_allclose([mine[f"p{p}"] for p in range(len(scores))], expected, atol=2e-3)


def test_equal_scores_become_zero_without_a_warning() -> None:
    assert standardize(table([("q", "a", 7.1), ("q", "b", 7.1), ("r", "a", 3.0)]))["score"].to_pylist() == [0, 0, 0]


def test_the_sum_does_not_depend_on_scale_offset_or_order_of_rows() -> None:
    a = table([("q", "x", 1.0), ("q", "y", 2.0), ("q", "z", 6.0)])
    b = table([("q", "z", -100.0), ("q", "x", 300.0), ("q", "y", 100.0)])
    scaled = table([("q", "y", 5.1), ("q", "z", 3.1), ("q", "x", 7.1)])
    once = combine({"a": a, "b": b}, {"a": 0.5, "b": 0.25})
    again = combine({"a": a, "b": scaled}, {"a": 0.5, "b": 0.25})
    assert once["pid"].to_pylist() == ["x", "y", "z"]
    np.testing.assert_allclose(once["score"], again["score"], atol=1e-6)
    np.testing.assert_allclose(combine({"a": a, "b": b}, {"a": 1.0})["score"], standardize(a)["score"], atol=1e-6)


def test_a_missing_row_and_an_unknown_member_are_refused() -> None:
    a, b = table([("q", "x", 1.0), ("q", "y", 2.0)]), table([("q", "x", 1.0)])
    with pytest.raises(BadInput, match="member 'b' must hold every row"):
        combine({"a": a, "b": b}, {"a": 1.0, "b": 1.0})
    with pytest.raises(BadInput, match="'c' names no member"):
        combine({"a": a}, {"c": 1.0})


def test_members_that_know_different_queries_are_both_used_and_a_useless_one_is_not() -> None:
    """Two members, each right on half of the queries and only slightly wrong on the other, and one of noise."""
    rng = np.random.default_rng(0)
    relevant = {f"q{q}": {"p0"} for q in range(60)}
    members: dict[str, list[tuple[str, str, float]]] = {"even": [], "odd": [], "noise": []}
    for q in range(60):
        for p in range(12):
            for name, knows in (("even", q % 2 == 0), ("odd", q % 2 == 1), ("noise", False)):
                score = rng.normal() + (6.0 if p == 0 and knows else 0.0)
                members[name].append((f"q{q}", f"p{p}", score))
    scores = {name: table(rows) for name, rows in members.items()}

    def measure(run: pa.Table) -> float:
        return mean_reciprocal_rank(run, relevant)

    weights = choose_weights(scores, measure)
    assert sum(weights.values()) == pytest.approx(1)
    assert weights == choose_weights(scores, measure)
    assert min(weights["even"], weights["odd"]) > weights["noise"]
    assert measure(combine(scores, weights)) > max(measure(run) for run in scores.values()) + 0.1


def test_the_best_member_alone_is_never_lost() -> None:
    right = table([("q", "a", 1.0), ("q", "b", 2.0)])
    wrong = table([("q", "a", 2.0), ("q", "b", 1.0)])
    weights = choose_weights({"wrong": wrong, "right": right}, lambda run: mean_reciprocal_rank(run, {"q": {"b"}}))
    assert weights["right"] > weights["wrong"]
    with pytest.raises(BadInput, match="no member"):
        choose_weights({}, lambda run: 0.0)
