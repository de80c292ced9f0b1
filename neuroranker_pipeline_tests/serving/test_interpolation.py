"""The final score of two stages: a formula, for any finite scores; and what the service does with a first stage's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.serving.engine import Reranker
from neuroranker_pipeline.serving.interpolation import bm25_weight, interpolated, standardized
from neuroranker_pipeline.serving.onnx_model import OnnxEncoder
from neuroranker_pipeline_tests.export.models import QUERY, ragged_texts
from neuroranker_pipeline_tests.serving.client import post
from neuroranker_pipeline_tests.serving.conftest import BM25_WEIGHT

FINITE = st.floats(allow_nan=False, allow_infinity=False)
COSINES = st.floats(-1, 1, width=32)
TEXTS = ragged_texts(9)
BM25 = [12.5, 3.25, 0, 30, 8.5, 8.5, 1, 20, 4]


@pytest.fixture(scope="module")
def reranker(weighted_dir: Path) -> Iterator[Reranker]:
    made = Reranker(OnnxEncoder(weighted_dir))
    yield made
    made.close()


def by_hand(cosines: np.ndarray, bm25: list[float], weight: float) -> np.ndarray:
    first = np.array(bm25)
    return (cosines - cosines.mean()) / cosines.std() + weight * (first - first.mean()) / first.std()


@given(st.lists(st.tuples(COSINES, st.floats(0, 100, width=32)), min_size=2, max_size=20), st.floats(0.01, 10))
def test_the_score_is_the_formula(pairs: list[tuple[float, float]], weight: float) -> None:
    cosines, bm25 = np.array([c for c, _ in pairs]), [b for _, b in pairs]
    found = interpolated(cosines, bm25, weight)
    if np.ptp(cosines) > 1e-6 and np.ptp(bm25) > 1e-6:
        np.testing.assert_allclose(found, by_hand(cosines, bm25, weight), rtol=1e-6, atol=1e-6)
    if not np.ptp(bm25):
        np.testing.assert_array_equal(found, standardized(cosines))
    if not np.ptp(cosines):
        np.testing.assert_array_equal(found, weight * standardized(bm25))


@given(st.lists(st.tuples(COSINES, FINITE), max_size=20))
def test_a_weight_of_0_leaves_the_cosines(pairs: list[tuple[float, float]]) -> None:
    cosines = np.array([cosine for cosine, _ in pairs])
    np.testing.assert_array_equal(interpolated(cosines, [score for _, score in pairs], 0), cosines)


@given(st.lists(FINITE, max_size=20))
def test_any_finite_scores_are_standardized(scores: list[float]) -> None:
    found = standardized(scores)
    assert np.isfinite(found).all()
    assert (np.diff(found[np.argsort(scores, kind="stable")]) >= 0).all(), "the order stays"
    if len(set(scores)) < 2:
        assert not found.any()
    elif np.ptp(np.array(scores) / max(1, np.abs(scores).max())) > 1e-6:  # closer ones may count as equal
        np.testing.assert_allclose([found.mean(), found.std()], [0, 1], atol=1e-6)


def test_the_weight_is_read_from_beside_the_model(int8_dir: Path, weighted_dir: Path) -> None:
    assert bm25_weight(int8_dir) is None
    assert bm25_weight(weighted_dir) == BM25_WEIGHT


@pytest.mark.parametrize("content", ["{}", '{"bm25_weight": "0.1"}', '{"bm25_weight": NaN}', '{"bm25_weight": true}'])
def test_a_file_without_a_weight_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "interpolation.json").write_text(content)
    with pytest.raises(BadInput, match=r"interpolation\.json: bm25_weight must be a number from 0 to 10, got"):
        bm25_weight(tmp_path)


def test_a_ranking_adds_the_first_stages_scores(reranker: Reranker) -> None:
    alone = {item.index: item.score for item in reranker.rerank(QUERY, TEXTS).results}
    expected = by_hand(np.array([alone[i] for i in range(len(TEXTS))]), BM25, BM25_WEIGHT)
    results = reranker.rerank(QUERY, TEXTS, first_stage=BM25).results
    assert [item.index for item in results] == np.argsort(-expected, kind="stable").tolist()
    np.testing.assert_allclose([item.score for item in results], np.sort(expected)[::-1], atol=1e-9)
    assert [item.index for item in results] != list(alone), "or this would show nothing"


def test_a_model_without_a_weight_refuses_a_first_stage(int8_dir: Path) -> None:
    reranker = Reranker(OnnxEncoder(int8_dir, threads=1))
    with pytest.raises(BadInput, match="first_stage_scores: no weight of BM25's score was chosen for this model"):
        reranker.rerank(QUERY, ["a"], first_stage=[1.0])
    reranker.close()


def test_the_service_adds_the_first_stages_scores(url: str, reranker: Reranker) -> None:
    expected = [(item.index, item.score) for item in reranker.rerank(QUERY, TEXTS, first_stage=BM25).results]
    body = {"query": QUERY, "texts": TEXTS, "first_stage_scores": BM25}
    _, raw = post(f"{url}/rerank", {**body, "raw_scores": True})
    assert [(item["index"], item["score"]) for item in raw] == expected
    logistic = [1 / (1 + np.exp(-score)) for _, score in expected]
    _, mapped = post(f"{url}/rerank", body)
    assert [item["score"] for item in mapped] == pytest.approx(logistic)
    for path in ("/v1/rerank", "/v2/rerank"):
        _, answer = post(url + path, {"query": QUERY, "documents": TEXTS, "first_stage_scores": BM25})
        assert [item["index"] for item in answer["results"]] == [index for index, _ in expected]
        assert [item["relevance_score"] for item in answer["results"]] == pytest.approx(logistic)


def test_scores_of_a_first_stage_that_say_nothing_leave_the_order(url: str) -> None:
    body = {"query": QUERY, "texts": TEXTS}
    _, alone = post(f"{url}/rerank", body)
    _, same = post(f"{url}/rerank", {**body, "first_stage_scores": [7] * len(TEXTS)})
    assert [item["index"] for item in same] == [item["index"] for item in alone]
    status, (one,) = post(f"{url}/rerank", {"query": QUERY, "texts": TEXTS[:1], "first_stage_scores": [1e308]})
    assert (status, one["score"]) == (200, 0.5), "a single candidate is at the mean of both"


@pytest.mark.parametrize("scores", ["[1]", "[1, NaN]", "[1, 1e999]", '["1", "2"]'])
def test_wrong_scores_of_a_first_stage_are_named(url: str, scores: str) -> None:
    body = f'{{"query": {json.dumps(QUERY)}, "texts": ["a", "b"], "first_stage_scores": {scores}}}'
    status, answer = post(f"{url}/rerank", body.encode())
    assert status == 400
    assert answer["error"].startswith("first_stage_scores")
