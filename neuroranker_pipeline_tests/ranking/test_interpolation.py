"""The weight of BM25's score: the formula over tables, and the choice on judged queries."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroranker_pipeline.ranking.interpolation import Choice, card_section, choose_weight, interpolate
from neuroranker_pipeline.ranking.scoring import mean_reciprocal_rank, top_by
from neuroranker_pipeline.serving.interpolation import bm25_weight, interpolated

GRID = (0.0, 0.1, 0.5, 1.0)


def table(scores: dict[str, list[float]]) -> pa.Table:
    rows = [(qid, f"p{i}", score) for qid, found in scores.items() for i, score in enumerate(found)]
    qids, pids, values = zip(*rows, strict=True)
    return pa.table({"qid": qids, "pid": pids, "score": pa.array(values, pa.float32())})


PAIRS = st.lists(st.tuples(st.floats(-1, 1, width=32), st.floats(0, 99, width=32)), min_size=1, max_size=9)


@given(st.lists(PAIRS, min_size=1, max_size=4), st.sampled_from(GRID))
def test_a_table_gets_what_the_service_computes(queries: list[list[tuple[float, float]]], weight: float) -> None:
    cosines = {f"q{i}": [cosine for cosine, _ in pairs] for i, pairs in enumerate(queries)}
    bm25 = {f"q{i}": [score for _, score in pairs] for i, pairs in enumerate(queries)}
    model, first = table(cosines), table(bm25)
    found = interpolate(model, first.take(list(range(len(first)))[::-1]), weight)
    assert found.select(["qid", "pid"]).equals(model.select(["qid", "pid"]))
    expected = [interpolated(np.float32(cosines[qid]), np.float32(bm25[qid]), weight) for qid in cosines]
    np.testing.assert_allclose(found["score"].to_numpy(), np.concatenate(expected), rtol=1e-5, atol=1e-5)


def test_a_weight_of_0_leaves_the_table() -> None:
    model = table({"q": [0.3, 0.2]})
    assert interpolate(model, table({"q": [1, 2]}), 0.0) is model


def test_the_best_weight_is_chosen() -> None:
    """p2 is relevant, and second by either score; only together it comes first."""
    model, bm25 = table({"q": [0.9, 0.0, 0.8]}), table({"q": [0.0, 9.0, 8.0]})
    choice = choose_weight(model, bm25, {"q": {"p2"}}, GRID)
    assert choice == Choice(0.5, {0.0: 0.5, 0.1: 0.5, 0.5: 1.0, 1.0: 1.0}, 1)
    best = top_by(interpolate(model, bm25, choice.weight), 1)
    assert best["pid"].to_pylist() == ["p2"]
    assert mean_reciprocal_rank(interpolate(model, bm25, 0.1), {"q": {"p2"}}) == 0.5


@pytest.mark.parametrize("relevant", [{}, {"q": set()}, {"q": {"p0"}}, {"q": {"absent"}}])
def test_of_equal_weights_the_smallest_is_taken(relevant: dict[str, set[str]]) -> None:
    choice = choose_weight(table({"q": [0.9, 0.1]}), table({"q": [2.0, 1.0]}), relevant, GRID[::-1])
    assert choice.weight == 0
    assert choice.queries == len(relevant)


def test_the_choice_is_kept_and_told(tmp_path: Path) -> None:
    Choice(0.5, {0.0: 0.25, 0.5: 0.375}, 1200).write(tmp_path)
    assert bm25_weight(tmp_path) == 0.5
    about = json.loads((tmp_path / "interpolation.json").read_text())
    assert about["grid"] == [{"weight": 0.0, "value": 0.25}, {"weight": 0.5, "value": 0.375}]
    section = card_section(tmp_path)
    assert "plus 0.5 x BM25's score" in section
    assert "1,200 queries of the dev split" in section
    assert section.endswith("| weight | MRR@10 |\n| --- | --- |\n| 0 | 0.2500 |\n| 0.5 | 0.3750 |\n")


def test_a_model_without_a_weight_has_no_section(tmp_path: Path) -> None:
    assert card_section(tmp_path) == ""
