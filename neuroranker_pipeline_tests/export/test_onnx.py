"""The exported graph computes what PyTorch computes, padding included."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.export.onnx import export_student, parity
from neuroranker_pipeline.ranking.models import ModelNotFound
from neuroranker_pipeline.serving.engine import OnnxEncoder
from neuroranker_pipeline_tests.export.models import ragged_texts


def test_a_ragged_batch_agrees_with_pytorch(student_dir: Path, onnx_dir: Path) -> None:
    texts = ragged_texts(68)
    lengths = {len(ids) for ids in OnnxEncoder(onnx_dir).tokenize(texts)}
    assert min(lengths) == 3, "one word and the two special tokens"
    assert max(lengths) == 256
    assert parity(student_dir, onnx_dir, texts) <= 1e-5


def test_parity_sees_a_lost_padding_mask(student_dir: Path, onnx_dir: Path, tmp_path: Path) -> None:
    model = onnx.load(onnx_dir / "model.onnx")
    attention = next(node for node in model.graph.node if node.op_type == "MultiHeadAttention")
    attention.input[4] = ""  # the padding mask
    for name in ("tokenizer.json", "config.json", "neuroranker.json"):
        (tmp_path / name).write_bytes((onnx_dir / name).read_bytes())
    onnx.save(model, tmp_path / "model.onnx")
    assert parity(student_dir, tmp_path, ragged_texts(8)) > 1e-3


def test_the_folder_says_how_to_use_it(onnx_dir: Path) -> None:
    settings = json.loads((onnx_dir / "neuroranker.json").read_text())
    assert settings.pop("source").isalnum()
    assert settings == {"dimension": 384, "max_length": 256, "pooling": "mean", "precision": "float32"}
    assert sorted(file.name for file in onnx_dir.iterdir()) == [
        "config.json",
        "model.onnx",
        "neuroranker.json",
        "tokenizer.json",
    ]


def test_the_graph_is_one_file_without_local_paths(onnx_dir: Path) -> None:
    model = onnx.load(onnx_dir / "model.onnx", load_external_data=False)
    onnx.checker.check_model(model)
    assert [node.name for node in model.graph.input] == ["input_ids", "attention_mask"]
    assert [node.name for node in model.graph.output] == ["embedding"]
    assert b"/site-packages/" not in (onnx_dir / "model.onnx").read_bytes()


def test_vectors_have_unit_length(onnx_dir: Path) -> None:
    vectors = OnnxEncoder(onnx_dir).encode(ragged_texts(8))
    assert vectors.dtype == np.float32
    assert vectors.shape == (8, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_what_is_no_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises((BadInput, ModelNotFound), match="nowhere"):
        export_student(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
