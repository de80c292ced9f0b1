"""The int8 model stays close to float32, and a text's vector does not depend on its batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from onnxruntime.quantization import QuantType, quantize_dynamic

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.export.onnx import copy_companions
from neuroranker_pipeline.export.quantize import (
    QuantizationSettings,
    _to_int8,
    batch_sensitivity,
    quantize_student,
)
from neuroranker_pipeline.serving.onnx_model import OnnxEncoder
from neuroranker_pipeline_tests.export.models import ragged_texts


def test_int8_is_small_and_close(onnx_dir: Path, tmp_path: Path) -> None:
    agreement = quantize_student(onnx_dir, tmp_path, QuantizationSettings(), ragged_texts(24))
    assert agreement.texts == 24
    assert agreement.size_ratio < 0.3
    assert agreement.mean_cosine > 0.998
    assert agreement.min_cosine > 0.995


def test_scores_keep_their_order(onnx_dir: Path, int8_dir: Path) -> None:
    texts = ragged_texts(40, seed=1)
    float32, int8 = (OnnxEncoder(folder).encode(texts) for folder in (onnx_dir, int8_dir))
    ranks = [np.argsort(np.argsort(-(v[1:] @ v[0]))) for v in (float32, int8)]
    assert np.corrcoef(ranks[0], ranks[1])[0, 1] > 0.98


def test_the_batch_does_not_change_a_vector(onnx_dir: Path, int8_dir: Path, tmp_path: Path) -> None:
    texts = ragged_texts(24)
    assert batch_sensitivity(int8_dir, texts, batch_size=8) < 1e-5
    # The same measure on one scale a batch, which is why it is not what we do.
    quantize_dynamic(
        onnx_dir / "model.onnx",
        tmp_path / "model.onnx",
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul"],
        extra_options={"DefaultTensorType": TensorProto.FLOAT},  # it knows no type beyond a fused operator
    )
    copy_companions(onnx_dir, tmp_path)
    assert batch_sensitivity(tmp_path, texts, batch_size=8) > 1e-3


def test_the_parts_can_be_chosen(onnx_dir: Path, tmp_path: Path) -> None:
    texts = ragged_texts(8)
    tables = quantize_student(onnx_dir, tmp_path / "tables", QuantizationSettings(products=False), texts)
    products = quantize_student(onnx_dir, tmp_path / "products", QuantizationSettings(embeddings=False), texts)
    narrow = quantize_student(onnx_dir, tmp_path / "narrow", QuantizationSettings(weight_bits=7), texts)
    assert tables.mean_cosine > products.mean_cosine > narrow.mean_cosine - 1e-4
    assert tables.size_ratio < products.size_ratio < 1


def test_int8_that_strays_is_refused(onnx_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="min_cosine 1"):
        quantize_student(onnx_dir, tmp_path, QuantizationSettings(min_cosine=1), ragged_texts(8))
    with pytest.raises(BadInput, match="at least one text"):
        quantize_student(onnx_dir, tmp_path, QuantizationSettings(), [])


@pytest.mark.parametrize("wrong", [{"min_cosine": 0.0}, {"min_cosine": 1.5}, {"weight_bits": 4}])
def test_bad_settings_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        QuantizationSettings(**wrong)  # type: ignore[arg-type]


def test_rounding_errs_by_half_a_step_at_most() -> None:
    weight = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    weight[:, 3] = 0
    values, scale = _to_int8(weight, axis=0)
    assert values.dtype == np.int8
    assert np.all(np.abs(values * scale - weight) <= scale / 2 * 1.001)
