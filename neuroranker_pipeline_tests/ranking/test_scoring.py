from __future__ import annotations

import ir_measures
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroranker_pipeline.datasets.tables import SCORES
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.ranking import scoring
from neuroranker_pipeline.ranking.models import CrossEncoder
from neuroranker_pipeline.ranking.scoring import (
    add_scores,
    cascade_run,
    mean_reciprocal_rank,
    mean_spread,
    score_candidates,
    top_by,
)
from neuroranker_pipeline_tests.ranking.conftest import FLOAT32


def scores(*rows: tuple[str, str, float]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(SCORES.names, row, strict=True)) for row in rows], SCORES)


def order(table: pa.Table, qid: str) -> list[str]:
    return [row["pid"] for row in top_by(table, 1000).to_pylist() if row["qid"] == qid]


def test_scores_keep_the_rows_order_across_chunks(tiny, collection, monkeypatch):
    model = CrossEncoder.start(tiny, 32)
    shuffled = collection.candidates.take(np.random.default_rng(0).permutation(300))
    monkeypatch.setattr(scoring, "ROWS_PER_PART", 64)
    calls = []
    table = score_candidates(
        model, shuffled, collection.queries, collection.passages, FLOAT32, lambda *call: calls.append(call[1:])
    )
    assert table.schema == SCORES
    assert table["pid"].to_pylist() == shuffled["pid"].to_pylist()
    assert calls[-1] == (300, 300)
    for row in table.slice(0, 300).to_pylist()[::50]:
        alone = model.score([collection.queries[row["qid"]]], [collection.passages[row["pid"]]], FLOAT32)
        assert row["score"] == pytest.approx(alone[0], abs=1e-5)


def test_a_candidate_without_text_is_named(tiny, collection):
    model = CrossEncoder.start(tiny, 32)
    with pytest.raises(BadInput, match="pid 'p0-1' of the candidates has no text"):
        score_candidates(model, collection.candidates, collection.queries, {}, FLOAT32)


def test_top_by_breaks_ties_by_pid():
    table = scores(("a", "x", 1.0), ("a", "z", 2.0), ("a", "y", 2.0), ("b", "q", 0.0))
    assert top_by(table, 2).to_pylist() == [
        {"qid": "a", "pid": "y", "rank": 1, "score": 2.0},
        {"qid": "a", "pid": "z", "rank": 2, "score": 2.0},
        {"qid": "b", "pid": "q", "rank": 1, "score": 0.0},
    ]


def test_a_cascade_puts_the_rescored_first_and_keeps_the_prior_order_after():
    prior = scores(("a", "1", 0.9), ("a", "2", 0.8), ("a", "3", 0.7), ("a", "4", 0.6), ("b", "1", 0.2), ("b", "2", 0.3))
    teacher = scores(("a", "1", -7.5), ("a", "2", -3.0), ("c", "9", 1.0))
    run = cascade_run(prior, teacher)
    assert len(run) == len(prior)
    assert order(run, "a") == ["2", "1", "3", "4"]
    assert order(run, "b") == ["2", "1"]
    assert {row["pid"]: row["score"] for row in run.to_pylist() if row["qid"] == "a"}["1"] == -7.5


def test_mean_spread_is_the_mean_of_the_queries_deviations():
    table = scores(("a", "x", 1.0), ("a", "y", 3.0), ("b", "x", 100.0), ("b", "y", 500.0), ("c", "x", 7.0))
    assert mean_spread(table) == pytest.approx((1.0 + 200.0 + 0.0) / 3)


def test_scores_are_added_row_by_row():
    one = scores(("b", "x", 1.0), ("a", "y", 3.0))
    two = scores(("a", "y", 10.0), ("a", "z", 99.0), ("b", "x", 20.0))
    added = add_scores(one, two, 0.5).to_pylist()
    assert added == [{"qid": "b", "pid": "x", "score": 11.0}, {"qid": "a", "pid": "y", "score": 8.0}]
    with pytest.raises(BadInput, match="every row"):
        add_scores(two, one, 1.0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(-4, 4)), min_size=1, max_size=60),
    st.integers(0, 9),
)
def test_mean_reciprocal_rank_equals_ir_measures(rows, seed):
    unique = {(f"q{q}", f"p{p:02d}"): float(s) for q, p, s in rows}
    rng = np.random.default_rng(seed)
    relevant = {f"q{q}": {f"p{p:02d}" for p in rng.choice(31, 6, replace=False)} for q in range(4)}
    table = scores(*((q, p, s) for (q, p), s in unique.items()))
    # break ties as we do, by pid ascending: ir-measures has its own rule
    ranked = sorted(unique.items(), key=lambda item: (-item[1], item[0][1]))
    run = [ir_measures.ScoredDoc(q, p, -place) for place, ((q, p), _) in enumerate(ranked)]
    # a query without candidates, and one without a relevant passage, count 0
    relevant |= {"absent": {"p00"}, "q0": set()}
    qrels = [ir_measures.Qrel(q, p, 1) for q in relevant for p in relevant[q]] + [ir_measures.Qrel("q0", "p00", 0)]
    expected = ir_measures.calc_aggregate([ir_measures.RR @ 10], qrels, run)[ir_measures.RR @ 10]
    assert mean_reciprocal_rank(table, relevant) == pytest.approx(expected)
