"""The exported graph computes what PyTorch computes, padding included, and int8 comes close."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from transformers import AutoTokenizer

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.export import quantize
from neuroranker_pipeline.export.onnx import export_cross_encoder, export_student, parity, score_parity
from neuroranker_pipeline.export.quantize import QuantizationSettings, quantize_cross_encoder
from neuroranker_pipeline.ranking.models import ModelNotFound
from neuroranker_pipeline.serving.cross_encoder import OnnxCrossEncoder
from neuroranker_pipeline.serving.onnx_model import OnnxEncoder
from neuroranker_pipeline_tests.export import cross_models
from neuroranker_pipeline_tests.export.models import QUERY, ragged_texts


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


def ragged_pairs(count: int) -> tuple[list[str], list[str]]:
    """Queries and passages of very different lengths, of which some are cut on either side."""
    queries = [text if row % 3 == 0 else " ".join(text.split()[:4]) for row, text in enumerate(ragged_texts(count, 1))]
    return queries[::-1], ragged_texts(count)


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
    rest = {"dimension": 384, "max_length": 256, "pooling": "mean", "precision": "float32"}
    assert settings == {"kind": "bi-encoder", **rest}
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


@pytest.mark.parametrize("model", [cross_models.bert, cross_models.roberta], ids=["bert", "roberta"])
def test_a_published_cross_encoder_agrees_with_pytorch(model, base: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    export_cross_encoder(model(base), tmp_path)
    pairs = ragged_pairs(40)
    assert score_parity(model(base), tmp_path, *pairs) <= 1e-4
    scores = [OnnxCrossEncoder(tmp_path).score(query, [text])[0] for query, text in zip(*pairs, strict=True)]
    assert np.std(scores) > 0.1, "the scores differ by far more than that"
    inputs = {node.name for node in onnx.load(tmp_path / "model.onnx").graph.input}
    assert ("token_type_ids" in inputs) is (model is cross_models.bert)
    assert "pooling" not in json.loads((tmp_path / "neuroranker.json").read_text())


def test_a_teacher_agrees_with_pytorch(base: Path) -> None:
    pairs = ragged_pairs(68)
    model = OnnxCrossEncoder(cross_models.float32(base))
    lengths = {len(model.read(query, [text])[0].sequences[0]) for query, text in zip(*pairs, strict=True)}
    assert min(lengths) < 10
    assert max(lengths) == cross_models.MAX_LENGTH
    assert score_parity(cross_models.teacher(base), cross_models.float32(base), *pairs) <= 1e-5


@pytest.mark.parametrize("lost", ["attention", "types"])
def test_score_parity_sees_what_is_lost(lost: str, base: Path, tmp_path: Path) -> None:
    shutil.copytree(cross_models.float32(base), tmp_path, dirs_exist_ok=True)
    model = onnx.load(tmp_path / "model.onnx")
    if lost == "attention":
        attention = next(node for node in model.graph.node if node.op_type == "MultiHeadAttention")
        attention.input[4] = ""  # the padding mask
    else:
        zero = onnx.helper.make_node("Sub", ["token_type_ids", "token_type_ids"], ["none"])
        for node in model.graph.node:
            node.input[:] = ["none" if name == "token_type_ids" else name for name in node.input]
        model.graph.node.insert(0, zero)
    onnx.save(model, tmp_path / "model.onnx")
    assert score_parity(cross_models.teacher(base), tmp_path, *ragged_pairs(12)) > 1e-3


def test_the_folder_of_a_cross_encoder_says_how_to_use_it(base: Path) -> None:
    folder = cross_models.float32(base)
    settings = json.loads((folder / "neuroranker.json").read_text())
    assert len(settings.pop("source")) == 64
    rest = {"max_length": cross_models.MAX_LENGTH, "pooling": "mean", "precision": "float32"}
    assert settings == {"kind": "cross-encoder", **rest}
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model)
    assert [node.name for node in model.graph.output] == ["score"]
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("MultiHeadAttention") == operators.count("BiasGelu") == 2


def test_int8_scores_are_close(base: Path, tmp_path: Path) -> None:
    settings, lists = QuantizationSettings(), {QUERY: ragged_texts(24), "bread": ragged_texts(24, seed=1)}
    agreement = quantize_cross_encoder(cross_models.float32(base), tmp_path, settings, lists)
    assert agreement.pairs == 48
    assert agreement.size_ratio < 0.3
    assert agreement.mean_change < 0.05
    assert agreement.mean_spearman > 0.97
    about = json.loads((tmp_path / "neuroranker.json").read_text())
    assert (about["kind"], about["precision"]) == ("cross-encoder", "int8")


def test_int8_scores_that_stray_are_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "MAX_CHANGE", 0.001)
    with pytest.raises(BadInput, match=r"int8 scores change by 0\.\d+ of their spread, more than 0\.001"):
        quantize_cross_encoder(cross_models.float32(base), tmp_path, QuantizationSettings(), cross_models.LISTS)
    for lists in ({}, {QUERY: ["one text has no order"]}):
        with pytest.raises(BadInput, match="at least one query with two texts"):
            quantize_cross_encoder(cross_models.float32(base), tmp_path, QuantizationSettings(), lists)


def test_the_kinds_are_not_mixed_up(student_dir: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no cross-encoder"):
        export_cross_encoder(student_dir, tmp_path / "out")
    with pytest.raises(BadInput, match="a bi-encoder is needed"):
        export_student(cross_models.teacher(base), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_cuts_on_the_left_is_refused(student_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(student_dir, tmp_path / "left")
    tokenizer = AutoTokenizer.from_pretrained(student_dir)
    tokenizer.truncation_side = "left"
    tokenizer.save_pretrained(tmp_path / "left")
    with pytest.raises(BadInput, match="left: its tokenizer cuts texts on the left"):
        export_student(tmp_path / "left", tmp_path / "out")
