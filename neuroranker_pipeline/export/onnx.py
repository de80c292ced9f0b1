"""A model as one ONNX graph, pooling and head inside, and the proof that it computes the same."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.export.fusion import fuse
from neuroranker_pipeline.ranking.device import Compute
from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder
from neuroranker_pipeline.serving.cross_encoder import TYPES, OnnxCrossEncoder
from neuroranker_pipeline.serving.onnx_model import (
    BI_ENCODER,
    CROSS_ENCODER,
    MODEL_FILE,
    SETTINGS_FILE,
    TOKENIZER_FILE,
    OnnxEncoder,
    OnnxModel,
)

# The lowest opset with the layer normalization and reductions that the exporter writes; IR version 10 goes with it.
OPSET = 18
IR_VERSION = 10
PARITY_BATCH = 64
_EXACT = Compute(torch.device("cpu"), torch.float32)


class _Positional(torch.nn.Module):
    """A model that takes its inputs by position, as the exporter wants it."""

    def __init__(self, model: BiEncoder | CrossEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        types = {} if token_type_ids is None else {TYPES: token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **types)


def export_student(student_dir: str | Path, out: Path) -> None:
    """Write ``model.onnx``, ``tokenizer.json``, ``config.json`` and ``neuroranker.json`` into ``out``.

    The graph takes ``input_ids`` and ``attention_mask``, int64 (n, t) with n and t free, and gives ``embedding``,
    float32 (n, dimension) unit vectors. Raises ``BadInput`` or ``ModelNotFound`` when ``student_dir`` holds no
    bi-encoder with a fast tokenizer.
    """
    student = BiEncoder.load(student_dir)
    _export(student, OnnxEncoder.OUTPUT, out)
    write_settings(
        out,
        kind=BI_ENCODER,
        max_length=student.max_length,
        dimension=student.dimension,
        pooling=student.pooling,
        precision="float32",
        source=_digest(student),
    )


def export_cross_encoder(model_dir: str | Path, out: Path) -> None:
    """Write the same files as ``export_student``, of a cross-encoder with one label.

    The graph takes ``token_type_ids`` too where the model has them, and gives ``score``, float32 (n,) logits. Raises
    ``BadInput`` or ``ModelNotFound`` when ``model_dir`` holds no cross-encoder with a fast tokenizer.
    """
    model = CrossEncoder.load(model_dir)
    _export(model, OnnxCrossEncoder.OUTPUT, out)
    write_settings(
        out,
        kind=CROSS_ENCODER,
        max_length=model.max_length,
        precision="float32",
        source=_digest(model),
        **({} if model.head is None else {"pooling": model.pooling}),
    )


def _export(model: BiEncoder | CrossEncoder, output: str, out: Path) -> None:
    """Write the graph, whose output gets that name, the tokenizer and the configuration.

    The graph computes attention in plain matrix products: traced from fused attention (``dynamo=False`` with SDPA) it
    loses the padding mask. Afterwards ``fusion.fuse`` joins what ONNX Runtime has a kernel for.
    """
    name = model.transformer.config.name_or_path
    if not model.tokenizer.is_fast:
        raise BadInput(f"{name}: its tokenizer has no tokenizer.json; save it with a fast tokenizer")
    if model.tokenizer.truncation_side != "right":
        raise BadInput(
            f"{name}: its tokenizer cuts texts on the left, which cannot be served; set truncation_side to right"
        )
    model.transformer.set_attn_implementation("eager")
    out.mkdir(parents=True, exist_ok=True)
    _trace(model.eval().cpu(), output).save(out / MODEL_FILE, external_data=False)
    graph = onnx.load(out / MODEL_FILE)
    fuse(graph, int(model.transformer.config.num_attention_heads))
    onnx.save(graph, out / MODEL_FILE)
    tokenizer = model.tokenizer.backend_tokenizer
    tokenizer.no_padding()
    tokenizer.enable_truncation(model.max_length)
    tokenizer.save(str(out / TOKENIZER_FILE))
    model.transformer.config.save_pretrained(out)


def write_settings(folder: Path, **settings: str | int) -> None:
    """Write ``neuroranker.json``, which tells the engine how to use the model and where it comes from."""
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")


def copy_companions(source: Path, out: Path) -> None:
    """Copy the tokenizer and the configuration of an ONNX folder."""
    for name in (TOKENIZER_FILE, "config.json"):
        shutil.copyfile(source / name, out / name)


def parity(student_dir: str | Path, onnx_dir: Path, texts: Sequence[str]) -> float:
    """The largest absolute difference of any component between PyTorch's and ONNX Runtime's embeddings.

    PyTorch runs in float32 on the student's own tokens. ONNX Runtime runs the tokens of ``tokenizer.json`` in padded
    batches of ``PARITY_BATCH`` texts in the order given, so mix long and short ones: a lost padding mask shows
    nowhere else.
    """
    expected = BiEncoder.load(student_dir).encode(texts, _EXACT)
    encoder = OnnxEncoder(onnx_dir)
    return _difference(encoder, encoder.tokenize(texts), expected)


def score_parity(model_dir: str | Path, onnx_dir: Path, queries: Sequence[str], passages: Sequence[str]) -> float:
    """The largest absolute difference of the logits of ``(queries[i], passages[i])``; else as ``parity``."""
    expected = CrossEncoder.load(model_dir).score(queries, passages, _EXACT)
    encoder = OnnxCrossEncoder(onnx_dir)
    pairs = zip(queries, passages, strict=True)
    return _difference(encoder, [encoder.read(query, [text])[0].sequences[0] for query, text in pairs], expected)


def _difference(model: OnnxModel, tokens: Sequence[Sequence[int]], expected: np.ndarray) -> float:
    starts = range(0, len(tokens), PARITY_BATCH)
    actual = np.concatenate([model.run_padded(tokens[start : start + PARITY_BATCH]) for start in starts])
    return float(np.abs(actual - expected).max())


def _trace(model: BiEncoder | CrossEncoder, output: str) -> torch.onnx.ONNXProgram:
    ids = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 0, 0, 0], [1, 2, 3, 0, 0]])
    mask = (ids > 0).long()
    inputs = {"input_ids": ids, "attention_mask": mask}
    if isinstance(model, CrossEncoder) and TYPES in model.tokenizer.model_input_names:
        inputs[TYPES] = (ids > 1).long()
    longest = model.transformer.config.max_position_embeddings  # PyTorch 2.11 refuses to export without this bound
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=longest)}
    same = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with _quiet_exporter():
        program = torch.onnx.export(
            _Positional(model).eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            dynamic_shapes={**dict.fromkeys(inputs, same), "input_ids": free},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # it is None only when the exporter was given a file to write
    traced = program.model
    # The trace names the token embedding `embedding` too, and a graph's names must be unique.
    for node in traced.graph:
        for value in node.outputs:
            if value.name == output:
                value.name = f"token_{output}"
    traced.graph.outputs[0].name = output
    traced.ir_version = IR_VERSION
    # Without the exporter's notes on every node (stack traces with local paths among them).
    for item in (traced, traced.graph, *traced.graph, *traced.graph.inputs, *traced.graph.outputs):
        item.metadata_props.clear()
    return program


def _digest(model: BiEncoder | CrossEncoder) -> str:
    """sha256 of the weights: the name, shape and bytes of every parameter, in name order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what the exporter says about itself; what it says about the model still comes through."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # "torchvision is not installed": not needed for text
    try:
        with warnings.catch_warnings():
            # PyTorch deep-copies its own deprecated LeafSpec, and renames the two axes that the inputs share.
            warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)", category=FutureWarning)
            warnings.filterwarnings("ignore", message="# The axis name", category=UserWarning)
            yield
    finally:
        registration.setLevel(level)
