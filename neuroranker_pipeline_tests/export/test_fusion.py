"""Fused graphs compute what the plain ones do, and attention that a fused kernel cannot do stays as it is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from neuroranker_pipeline.export import onnx as exporting
from neuroranker_pipeline.export.fusion import fuse, masks_padding
from neuroranker_pipeline.serving.onnx_model import OnnxEncoder
from neuroranker_pipeline_tests.export.models import ragged_texts

LAYERS, HEADS = 2, 12
GRAPH = """
<ir_version: 10, opset_import: ["" : 18]>
masking (int64[n, t] input_ids, int64[n, t] attention_mask) => (float[n, 1, t, t] added) {{
  axes = Constant <value_ints = [1, 2]> ()
  one = Constant <value_float = 1.0> ()
  far = Constant <value_float = -1000000.0> ()
  seen = Cast <to = 1> (attention_mask)
  padding = Sub (one, seen)
  keys = Unsqueeze (padding, axes)
  hidden = Mul (keys, far)
  shape = Shape (attention_mask)
  two = Constant <value_ints = [1]> ()
  length = Gather (shape, two)
  zero = Constant <value_int = 0> ()
  step = Constant <value_int = 1> ()
  t = Squeeze (length)
  positions = Range (zero, t, step)
  last = Constant <value_ints = [1]> ()
  rows = Unsqueeze (positions, last)
  distances = Sub (rows, positions)
  floats = Cast <to = 1> (distances)
  {line}
}}
"""
EXTRA = {
    "padding": (True, "added = Identity (hidden)"),
    "nothing": (False, "none = Sub (hidden, hidden) added = Identity (none)"),
    "distances": (False, "added = Add (hidden, floats)"),
    "causal": (
        False,
        "nought = Constant <value_float = 0.0> () later = Less (floats, nought) cut = Where (later, far, nought) "
        "added = Add (hidden, cut)",
    ),
    "window": (
        False,
        "wide = Constant <value_float = 128.0> () nought = Constant <value_float = 0.0> () size = Abs (floats) "
        "outside = Greater (size, wide) cut = Where (outside, far, nought) added = Add (hidden, cut)",
    ),
    "queries": (False, "turned = Transpose <perm = [0, 1, 3, 2]> (hidden) added = Add (hidden, turned)"),
}


@pytest.fixture
def plain(student_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The student as PyTorch's exporter writes it."""
    monkeypatch.setattr(exporting, "fuse", lambda *_: {})
    exporting.export_student(student_dir, tmp_path / "plain")
    return tmp_path / "plain"


def test_fused_graphs_compute_the_same(plain: Path, onnx_dir: Path) -> None:
    model = onnx.load(plain / "model.onnx")
    assert fuse(model, HEADS) == {"attention": LAYERS, "gelu": LAYERS}
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["MultiHeadAttention"] == operators["BiasGelu"] == LAYERS
    assert not operators["Softmax"]
    assert not operators["Erf"]
    before, after = OnnxEncoder(plain), OnnxEncoder(onnx_dir)
    tokens = before.tokenize(ragged_texts(12))
    np.testing.assert_allclose(after.run_padded(tokens), before.run_padded(tokens), atol=1e-6)


def test_a_second_time_changes_nothing(onnx_dir: Path) -> None:
    model = onnx.load(onnx_dir / "model.onnx")
    before = model.SerializeToString(deterministic=True)
    assert fuse(model, HEADS) == {"attention": 0, "gelu": 0}
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("masking", EXTRA)
def test_a_padding_mask_is_told_from_others(masking: str) -> None:
    padding_alone, line = EXTRA[masking]
    assert masks_padding(onnx.parser.parse_model(GRAPH.format(line=line)), "added") is padding_alone


def test_attention_that_sees_more_than_padding_is_left_alone(plain: Path) -> None:
    model = onnx.load(plain / "model.onnx")
    makers = {output: node for node in model.graph.node for output in node.output}
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    scores = makers[softmax.input[0]]
    farther = onnx.helper.make_node("Add", [scores.input[1], "half"], ["elsewhere"])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.5), "half"))
    model.graph.node.insert(list(model.graph.node).index(scores), farther)
    scores.input[1] = "elsewhere"
    assert fuse(model, HEADS) == {"attention": LAYERS - 1, "gelu": LAYERS}
    onnx.checker.check_model(model)
