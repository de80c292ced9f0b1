"""A student in int8 whose vectors do not depend on what else is in the batch; a cross-encoder's graph is rewritten alike.

Every product with a weight matrix runs on integers: each weight column has its own scale, fixed here, and each token's
activation vector gets its own scale as it arrives (LLM.int8's vector-wise quantization without the outlier split,
https://arxiv.org/abs/2208.07339, section 2). ONNX Runtime's own ``quantize_dynamic`` takes one scale from the whole
batch, so that a text's vector changes with its neighbours. The token embeddings are int8 with one scale a row. Only
standard operators are used; ONNX Runtime joins them into its integer kernels when it loads the model.

Measured by ``benchmarks/quantization.py`` with the ``quickstart`` student, as ratios to its float32 graph in the same run:
file size, processor time of one thread (AVX-512 VNNI) for MS MARCO passages one at a time, cosine with the float32 vectors,
the largest change of a component in batches of 32, and the loss in re-ranking BM25's top 100 of TREC DL 2019 (float32:
MRR@10 0.7829, nDCG@10 0.6460):

================================  ====  ====  ===========  =====================  =======  =======
scheme                            size  time  mean cosine  change with the batch   MRR@10  nDCG@10
================================  ====  ====  ===========  =====================  =======  =======
this one                          0.26  0.56  0.9980       7e-8                   -0.0019  -0.0009
this one, weights of 7 bits       0.26        0.9967       7e-8                   -0.0031  -0.0008
``quantize_dynamic``, by column   0.65  0.53  0.9950       3e-2                   -0.0031  -0.0051
the same, weights of 7 bits       0.65        0.9937       3e-2                   -0.0039  -0.0050
``quantize_static``, by column    0.65  0.56  0.9336       8e-8                   +0.0297  -0.0127
================================  ====  ====  ===========  =====================  =======  =======

Over 43 queries none of the losses is significant. The number of bits changes no operator, and so no time. Without VNNI
(AVX2) 8 bits do not overflow noticeably: time 0.53, cosine 0.9968, nDCG@10 -0.0018 for all-MiniLM-L6-v2 itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.export.fusion import DOMAIN
from neuroranker_pipeline.export.onnx import copy_companions, write_settings
from neuroranker_pipeline.export.settings import QuantizationSettings
from neuroranker_pipeline.serving.cross_encoder import OnnxCrossEncoder
from neuroranker_pipeline.serving.onnx_model import MODEL_FILE, SETTINGS_FILE, OnnxEncoder, read_json

# A table of fewer numbers (positions, token types) is not worth an approximation.
SMALLEST_TABLE = 1_000_000
# Of a cross-encoder's scores, in their spread: about what the default ``min_cosine`` lets vectors change.
MAX_CHANGE = 0.2


@dataclass(frozen=True)
class Agreement:
    """How close int8 is to float32: cosines between the two vectors of a text, and the ratio of file sizes."""

    texts: int
    mean_cosine: float
    min_cosine: float
    size_ratio: float

    @property
    def summary(self) -> str:
        """In words."""
        return f"mean cosine {self.mean_cosine:.4f} with the float32 vectors, {self.size_ratio:.2f} of the size"


@dataclass(frozen=True)
class ScoreAgreement:
    """How close a cross-encoder's int8 scores are to float32, over lists of texts that are ranked for one query each.

    mean_change: the mean absolute change of a score, as a share of the mean standard deviation of the scores of a
    list; what changes all scores of a list alike changes no order, and is left out. mean_spearman: the mean rank
    correlation of a list. It says the same only where the scores of a list differ: among texts that are all
    irrelevant, and scored within a hair of each other, any change turns the ranks around.
    """

    pairs: int
    mean_change: float
    mean_spearman: float
    size_ratio: float

    @property
    def summary(self) -> str:
        """In words."""
        return (
            f"scores change by {self.mean_change:.3f} of their spread, rank correlation {self.mean_spearman:.3f}, "
            f"{self.size_ratio:.2f} of the size"
        )


def quantize_student(
    onnx_dir: Path, out: Path, settings: QuantizationSettings, calibration_texts: Sequence[str]
) -> Agreement:
    """Write the int8 model of the float32 ``onnx_dir`` into ``out`` and measure it on ``calibration_texts``.

    Raises ``BadInput`` without texts, or when the mean cosine falls below ``settings.min_cosine``.
    """
    if not calibration_texts:
        raise BadInput("calibration_texts: at least one text is needed to measure the int8 model on")
    ratio = _write_int8(onnx_dir, out, settings)
    float32, int8 = (OnnxEncoder(folder).encode(calibration_texts) for folder in (onnx_dir, out))
    cosine = (float32 * int8).sum(axis=1)
    agreement = Agreement(len(cosine), float(cosine.mean()), float(cosine.min()), ratio)
    if not agreement.mean_cosine >= settings.min_cosine:  # so that NaN fails too
        raise BadInput(
            f"{onnx_dir / MODEL_FILE}: int8 vectors have a mean cosine of {agreement.mean_cosine:.4f} with the float32 "
            f"ones, below min_cosine {settings.min_cosine}; keep float32, or set products or embeddings to false"
        )
    return agreement


def quantize_cross_encoder(
    onnx_dir: Path, out: Path, settings: QuantizationSettings, lists: Mapping[str, Sequence[str]]
) -> ScoreAgreement:
    """Write the int8 model of a float32 cross-encoder into ``out`` and measure it on ``lists``: texts by query.

    Raises ``BadInput`` without a list of two texts or more, or when scores change by more than ``MAX_CHANGE`` on average.
    """
    lists = {query: texts for query, texts in lists.items() if len(texts) > 1}
    if not lists:
        raise BadInput("lists: at least one query with two texts is needed to measure the int8 model on")
    ratio = _write_int8(onnx_dir, out, settings)
    models = [OnnxCrossEncoder(folder) for folder in (onnx_dir, out)]
    scores = [tuple(model.score(*asked).astype(np.float64) for model in models) for asked in lists.items()]
    changes = [int8 - float32 - (int8 - float32).mean() for float32, int8 in scores]
    spread = np.mean([float32.std() for float32, _ in scores])
    agreement = ScoreAgreement(
        pairs=sum(map(len, changes)),
        mean_change=float(np.abs(np.concatenate(changes)).mean() / max(spread, 1e-12)),
        mean_spearman=float(np.mean([np.corrcoef(_ranks(a), _ranks(b))[0, 1] for a, b in scores])),
        size_ratio=ratio,
    )
    if not agreement.mean_change <= MAX_CHANGE:
        raise BadInput(
            f"{onnx_dir / MODEL_FILE}: int8 scores change by {agreement.mean_change:.3f} of their spread, more than "
            f"{MAX_CHANGE}; keep float32, or set products or embeddings to false"
        )
    return agreement


def batch_sensitivity(onnx_dir: Path, texts: Sequence[str], batch_size: int = 32, seed: int = 0) -> float:
    """The largest absolute change of any component of a text's vector between batches of different company.

    Compares each text alone with the text in padded batches of the given order and of a random one.
    """
    encoder = OnnxEncoder(onnx_dir)
    tokens = encoder.tokenize(texts)
    alone = np.concatenate([encoder.run_padded([ids]) for ids in tokens])
    change = 0.0
    for order in (np.arange(len(tokens)), np.random.default_rng(seed).permutation(len(tokens))):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            together = encoder.run_padded([tokens[row] for row in rows])
            change = max(change, float(np.abs(together - alone[rows]).max()))
    return change


def _write_int8(onnx_dir: Path, out: Path, settings: QuantizationSettings) -> float:
    """Write the int8 model of ``onnx_dir`` into ``out``; returns the ratio of the graphs' sizes."""
    source = onnx_dir / MODEL_FILE
    model = onnx.load(source)
    _Rewriter(model, settings).rewrite()
    onnx.checker.check_model(model)
    out.mkdir(parents=True, exist_ok=True)
    onnx.save(model, out / MODEL_FILE)
    copy_companions(onnx_dir, out)
    write_settings(out, **{**read_json(onnx_dir / SETTINGS_FILE), "precision": "int8"})
    return (out / MODEL_FILE).stat().st_size / source.stat().st_size


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values, kind="stable"), kind="stable")


class _Rewriter:
    """Rewrites one model in place: weight matrices and the token embedding table become int8."""

    def __init__(self, model: onnx.ModelProto, settings: QuantizationSettings) -> None:
        self.model, self.graph = model, model.graph
        self.settings = settings
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.quantized: dict[str, tuple[str, str, str]] = {}  # an input shared by products is quantized once

    def rewrite(self) -> None:
        self._constant("int8/axis", np.array([-1], np.int64))
        self._constant("int8/range", np.array(127, np.float32))
        self._constant("int8/tiny", np.array(1e-12, np.float32))  # keeps the scale of an all-zero row above zero
        self._constant("int8/zero", np.array(128, np.uint8))
        self._constant("int8/one", np.array(1, np.float32))  # the product scales the columns, and we the rows after it
        for node in self.graph.node:
            if self.settings.products and node.op_type == "MatMul" and node.input[1] in self.weights:
                self._product(node)
            elif self.settings.embeddings and node.op_type == "Gather" and self._is_table(node.input[0]):
                self._table(node)
            else:
                self.nodes.append(node)
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        for field, values in ((self.graph.node, self.nodes), (self.graph.initializer, kept)):
            del field[:]
            field.extend(values)
        if DOMAIN not in {opset.domain for opset in self.model.opset_import}:
            self.model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        del self.graph.value_info[:]  # ONNX Runtime infers the shapes anew

    def _product(self, node: onnx.NodeProto) -> None:
        """y = (quantized x) (quantized W), times the scale of each row of x and of each column of W."""
        weight = numpy_helper.to_array(self.weights[node.input[1]])
        values, scale = _to_int8(weight, axis=0, bits=self.settings.weight_bits)
        rows, row_scale, shape = self._rows(node.input[0], weight.shape[0])
        name = node.output[0]
        self._constant(f"{name}/weight", values)
        self._constant(f"{name}/weight_scale", scale[0])
        self._constant(f"{name}/width", np.array([weight.shape[1]], np.int64))
        inputs = [rows, f"{name}/weight", "int8/one", f"{name}/weight_scale", "int8/zero"]
        columns = self._add("MatMulIntegerToFloat", inputs, f"{name}/columns", domain=DOMAIN)
        scaled = self._add("Mul", [columns, row_scale], f"{name}/scaled")
        full_shape = self._add("Concat", [shape, f"{name}/width"], f"{name}/shape", axis=0)
        self._add("Reshape", [scaled, full_shape], name)

    def _rows(self, name: str, width: int) -> tuple[str, str, str]:
        """Quantize an activation row by row: its uint8 (rows, width), scales (rows, 1) and leading dimensions."""
        if name not in self.quantized:
            self._constant(f"{name}/flat", np.array([-1, width], np.int64))
            shape = self._add("Shape", [name], f"{name}/leading", start=0, end=-1)
            flat = self._add("Reshape", [name, f"{name}/flat"], f"{name}/rows")
            size = self._add("Abs", [flat], f"{name}/size")
            largest = self._add("ReduceMax", [size, "int8/axis"], f"{name}/largest", keepdims=0)
            positive = self._add("Max", [largest, "int8/tiny"], f"{name}/positive")
            scale = self._add("Div", [positive, "int8/range"], f"{name}/scale")
            count = self._add("Shape", [scale], f"{name}/count")
            zeros = self._add("Expand", ["int8/zero", count], f"{name}/zeros")
            rows = self._add("QuantizeLinear", [flat, scale, zeros], f"{name}/uint8", axis=0)
            column = self._add("Unsqueeze", [scale, "int8/axis"], f"{name}/row_scale")
            self.quantized[name] = rows, column, shape
        return self.quantized[name]

    def _is_table(self, name: str) -> bool:
        return name in self.weights and int(np.prod(self.weights[name].dims)) >= SMALLEST_TABLE

    def _table(self, node: onnx.NodeProto) -> None:
        table, indices = node.input
        name = node.output[0]
        values, scale = _to_int8(numpy_helper.to_array(self.weights[table]), axis=1)
        self._constant(f"{name}/table", values)
        self._constant(f"{name}/table_scale", scale)
        integers = self._add("Gather", [f"{name}/table", indices], f"{name}/integers")
        floats = self._add("Cast", [integers], f"{name}/floats", to=TensorProto.FLOAT)
        scales = self._add("Gather", [f"{name}/table_scale", indices], f"{name}/scales")
        self._add("Mul", [floats, scales], name)

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"{output}/{operator}", **attributes))
        return output

    def _constant(self, name: str, value: np.ndarray) -> None:
        self.graph.initializer.append(numpy_helper.from_array(value, name))


def _to_int8(weight: np.ndarray, axis: int, bits: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 values, and the float32 scale of each slice along the other axis (kept as a dimension)."""
    scale = np.maximum(np.abs(weight).max(axis=axis, keepdims=True), 1e-12) / (2 ** (bits - 1) - 1)
    return np.round(weight / scale).astype(np.int8), scale.astype(np.float32)
