"""The inference engine: vectors that depend on their text alone, an order that is a function of the input."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.serving.engine import OnnxEncoder, Reranker, _equal_lengths
from neuroranker_pipeline_tests.export.models import QUERY, TEXTS, WORDS, ragged_texts


@pytest.fixture(scope="module")
def encoder(int8_dir: Path) -> OnnxEncoder:
    return OnnxEncoder(int8_dir, threads=2)


@pytest.fixture
def copied(int8_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(int8_dir, tmp_path / "model")


def test_a_vector_depends_on_its_text_alone(encoder: OnnxEncoder) -> None:
    texts = ragged_texts(40)
    together = encoder.encode(texts)
    order = random.Random(0).sample(range(len(texts)), len(texts))
    np.testing.assert_array_equal(encoder.encode([texts[i] for i in order]), together[order])
    np.testing.assert_allclose(np.concatenate([encoder.encode([text]) for text in texts]), together, atol=1e-6)


def test_threads_do_not_change_vectors(int8_dir: Path, encoder: OnnxEncoder) -> None:
    texts = ragged_texts(12)
    np.testing.assert_array_equal(OnnxEncoder(int8_dir, threads=1).encode(texts), encoder.encode(texts))


def test_no_texts_give_no_vectors(encoder: OnnxEncoder) -> None:
    assert encoder.encode([]).shape == (0, 384)


def test_long_texts_are_cut_and_named(encoder: OnnxEncoder) -> None:
    texts = ["short", "word " * 254, "word " * 255]
    assert [len(ids) for ids in encoder.tokenize(texts)] == [3, 256, 256]
    assert encoder.too_long(texts) == [2]


@given(st.lists(st.integers(1, 300), max_size=60))
def test_batches_hold_each_row_once_at_one_length(lengths: list[int]) -> None:
    batches = list(_equal_lengths([[0] * length for length in lengths]))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len({lengths[row] for row in batch}) == 1 for batch in batches)
    assert all(len(batch) * lengths[batch[0]] <= 1024 for batch in batches)


def test_the_relevant_text_comes_first(encoder: OnnxEncoder) -> None:
    assert [index for index, _ in Reranker(encoder).rerank(QUERY, TEXTS)] == [0, 1]
    assert [index for index, _ in Reranker(encoder).rerank(QUERY, TEXTS[::-1])] == [1, 0]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
def test_the_ranking_is_complete_sorted_and_stable(encoder: OnnxEncoder, texts: list[str], seed: int) -> None:
    ranking = Reranker(encoder).rerank(QUERY, texts)
    assert sorted(index for index, _ in ranking) == list(range(len(texts)))
    assert ranking == sorted(ranking, key=lambda item: (-item[1], item[0])), "ties keep the order of the texts"
    order = random.Random(seed).sample(range(len(texts)), len(texts))
    shuffled = Reranker(encoder).rerank(QUERY, [texts[i] for i in order])
    scores = {texts[index]: score for index, score in ranking}
    assert all(abs(scores[texts[order[index]]] - score) < 1e-6 for index, score in shuffled)


def test_equal_texts_tie_exactly(encoder: OnnxEncoder) -> None:
    ranking = Reranker(encoder).rerank("bread", [*ragged_texts(10), "copper", *ragged_texts(10, 1), "copper"])
    (first, a), (second, b) = [item for item in ranking if item[0] in (10, 21)]
    assert (first, second) == (10, 21)
    assert a == b


def test_a_file_opens_as_its_folder_does(int8_dir: Path, encoder: OnnxEncoder) -> None:
    texts = ["a file", "a folder"]
    np.testing.assert_array_equal(OnnxEncoder(int8_dir / "model.onnx").encode(texts), encoder.encode(texts))


def test_a_model_without_settings_still_opens(copied: Path) -> None:
    (copied / "neuroranker.json").unlink()
    (copied / "config.json").unlink()
    assert OnnxEncoder(copied).max_length == 256, "from the truncation in tokenizer.json"


def test_missing_files_are_named(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="absent: no such file"):
        OnnxEncoder(tmp_path / "absent")
    (copied / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match=r"tokenizer\.json: missing"):
        OnnxEncoder(copied / "model.onnx")
    (copied / "model.onnx").unlink()
    with pytest.raises(BadInput, match=r"model\.onnx: no such file"):
        OnnxEncoder(copied)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.onnx", b"no protobuf", "not a model that ONNX Runtime can load"),
        ("model.onnx", b"", "not a model that ONNX Runtime can load"),
        ("tokenizer.json", b"{", "not a tokenizer"),
        ("config.json", b"{", "not JSON"),
        ("config.json", b"[]", "expected a JSON object"),
        ("config.json", json.dumps({"vocab_size": 7}).encode(), "another model's tokenizer"),
    ],
)
def test_broken_files_are_named(copied: Path, name: str, content: bytes, message: str) -> None:
    (copied / name).write_bytes(content)
    with pytest.raises(BadInput, match=message) as error:
        OnnxEncoder(copied)
    assert str(copied) in str(error.value)
    assert "\n" not in str(error.value)


def test_another_kind_of_graph_is_refused(copied: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", [value], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, copied / "model.onnx")
    with pytest.raises(BadInput, match=r"expected inputs input_ids.*found inputs \['x'\]"):
        OnnxEncoder(copied)
