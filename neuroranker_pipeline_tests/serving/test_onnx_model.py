"""An exported model: vectors that depend on their text alone, and files that are not what they should be."""

from __future__ import annotations

import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.serving.onnx_model import MAX_WINDOWS, OnnxEncoder, _equal_lengths
from neuroranker_pipeline_tests.export.models import WORDS, ragged_texts


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
    np.testing.assert_array_equal(np.concatenate([encoder.encode([text]) for text in texts]), together)


@pytest.mark.parametrize("model", ["onnx_dir", "int8_dir"])
@pytest.mark.parametrize("length", [2, 3, 7, 16, 31, 32, 255, 256])
def test_company_of_one_length_changes_no_bit(request: pytest.FixtureRequest, model: str, length: int) -> None:
    tokens = np.random.default_rng(length).integers(1000, 20_000, (40, length)).tolist()
    encoder = OnnxEncoder(request.getfixturevalue(model), threads=1)
    together = encoder.run_all(tokens)
    for size in (1, 2, 3, 5, 39):
        np.testing.assert_array_equal(encoder.run_all(tokens[-size:]), together[-size:])


def test_threads_do_not_change_vectors(int8_dir: Path, encoder: OnnxEncoder) -> None:
    texts = ragged_texts(12)
    np.testing.assert_array_equal(OnnxEncoder(int8_dir, threads=1).encode(texts), encoder.encode(texts))


def test_no_texts_give_no_vectors(encoder: OnnxEncoder) -> None:
    assert encoder.encode([]).shape == (0, 384)


def test_long_texts_are_cut_and_named(encoder: OnnxEncoder) -> None:
    texts = ["short", "word " * 254, "word " * 255]
    assert [len(ids) for ids in encoder.tokenize(texts)] == [3, 256, 256]
    assert encoder.too_long(texts) == [2]


def test_windows_cover_a_long_text_once_over(encoder: OnnxEncoder) -> None:
    words = [WORDS[i % len(WORDS)] for i in range(700)]
    whole = OnnxEncoder(encoder.model_file)
    whole.tokenizer.no_truncation()
    tokens = whole.tokenize([" ".join(words)])[0][1:-1]
    (reading,) = encoder.read([" ".join(words)], "windows")
    contents = [ids[1:-1] for ids in reading.sequences]
    assert {ids[0] for ids in reading.sequences} == {101}
    assert {ids[-1] for ids in reading.sequences} == {102}
    assert contents == [tokens[start : start + 254] for start in range(0, 127 * len(contents), 127)]
    assert contents[-1][-1] == tokens[-1]
    assert len(contents[-1]) > 127, "a last window that only repeats the one before is no use"
    assert not reading.truncated


@pytest.mark.parametrize(("extra", "truncated"), [(0, False), (1, True)])
def test_windows_are_bounded(encoder: OnnxEncoder, extra: int, truncated: bool) -> None:
    reach = 254 + 127 * (MAX_WINDOWS - 1)
    (reading,) = encoder.read(["word " * (reach + extra)], "windows")
    assert (len(reading.sequences), reading.truncated) == (MAX_WINDOWS, truncated)


def test_a_short_text_reads_the_same_in_windows(encoder: OnnxEncoder) -> None:
    texts = ["short", "word " * 254]
    assert encoder.read(texts, "windows") == encoder.read(texts)


def test_windows_leave_truncation_as_it_was(encoder: OnnxEncoder) -> None:
    texts = ragged_texts(20)
    before = encoder.tokenize(texts)
    with ThreadPoolExecutor(4) as pool:
        windows = [pool.submit(encoder.read, texts, "windows") for _ in range(20)]
        cut = [pool.submit(encoder.tokenize, texts) for _ in range(20)]
    assert all(future.result() == before for future in cut)
    assert all(future.result() == windows[0].result() for future in windows)


@given(st.lists(st.integers(1, 300), max_size=60))
def test_batches_hold_each_row_once_at_one_length(lengths: list[int]) -> None:
    batches = list(_equal_lengths([[0] * length for length in lengths]))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len({lengths[row] for row in batch}) == 1 for batch in batches)
    assert all(len(batch) * lengths[batch[0]] <= 1024 for batch in batches)


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
