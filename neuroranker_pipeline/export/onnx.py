"""A student as one ONNX graph, pooling and normalization inside, and the proof that it computes the same."""

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
from neuroranker_pipeline.ranking.models import BiEncoder
from neuroranker_pipeline.serving.engine import MODEL_FILE, OUTPUT, SETTINGS_FILE, TOKENIZER_FILE, OnnxEncoder

# The lowest opset with the layer normalization and reductions that the exporter writes; IR version 10 goes with it.
OPSET = 18
IR_VERSION = 10
PARITY_BATCH = 64


class _Embedding(torch.nn.Module):
    """(input_ids, attention_mask) -> unit vectors, by position, as the exporter wants it."""

    def __init__(self, student: BiEncoder) -> None:
        super().__init__()
        self.student = student

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.student(input_ids=input_ids, attention_mask=attention_mask)


def export_student(student_dir: str | Path, out: Path) -> None:
    """Write ``model.onnx``, ``tokenizer.json``, ``config.json`` and ``neuroranker.json`` into ``out``.

    The graph takes ``input_ids`` and ``attention_mask``, int64 (n, t) with n and t free, and gives ``embedding``,
    float32 (n, dimension) unit vectors. It computes attention in plain matrix products: traced from fused attention
    (``dynamo=False`` with SDPA) it loses the padding mask. Afterwards ``fusion.fuse`` joins what ONNX Runtime has a kernel
    for. Raises ``BadInput`` or ``ModelNotFound`` when
    ``student_dir`` holds no bi-encoder with a fast tokenizer.
    """
    student = BiEncoder.load(student_dir)
    if not student.tokenizer.is_fast:
        raise BadInput(f"{student_dir}: its tokenizer has no tokenizer.json; save it with a fast tokenizer")
    student.transformer.set_attn_implementation("eager")
    out.mkdir(parents=True, exist_ok=True)
    _trace(student.eval().cpu()).save(out / MODEL_FILE, external_data=False)
    model = onnx.load(out / MODEL_FILE)
    fuse(model, int(student.transformer.config.num_attention_heads))
    onnx.save(model, out / MODEL_FILE)
    tokenizer = student.tokenizer.backend_tokenizer
    tokenizer.no_padding()
    tokenizer.enable_truncation(student.max_length)
    tokenizer.save(str(out / TOKENIZER_FILE))
    student.transformer.config.save_pretrained(out)
    write_settings(
        out,
        max_length=student.max_length,
        dimension=student.dimension,
        pooling=student.pooling,
        precision="float32",
        source=_digest(student),
    )


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
    expected = BiEncoder.load(student_dir).encode(texts, Compute(torch.device("cpu"), torch.float32))
    encoder = OnnxEncoder(onnx_dir)
    tokens = encoder.tokenize(texts)
    starts = range(0, len(tokens), PARITY_BATCH)
    actual = np.concatenate([encoder.run_padded(tokens[start : start + PARITY_BATCH]) for start in starts])
    return float(np.abs(actual - expected).max())


def _trace(student: BiEncoder) -> torch.onnx.ONNXProgram:
    ids = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 0, 0, 0], [1, 2, 3, 0, 0]])
    longest = student.transformer.config.max_position_embeddings  # PyTorch 2.11 refuses to export without this bound
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=longest)}
    same = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with _quiet_exporter():
        program = torch.onnx.export(
            _Embedding(student).eval(),
            (ids, (ids > 0).long()),
            input_names=["input_ids", "attention_mask"],
            dynamic_shapes={"input_ids": free, "attention_mask": same},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # it is None only when the exporter was given a file to write
    model = program.model
    # The trace names the token embedding `embedding` too, and a graph's names must be unique.
    for node in model.graph:
        for value in node.outputs:
            if value.name == OUTPUT:
                value.name = f"token_{OUTPUT}"
    model.graph.outputs[0].name = OUTPUT
    model.ir_version = IR_VERSION
    # Without the exporter's notes on every node (stack traces with local paths among them).
    for item in (model, model.graph, *model.graph, *model.graph.inputs, *model.graph.outputs):
        item.metadata_props.clear()
    return program


def _digest(student: BiEncoder) -> str:
    """sha256 of the weights: the name, shape and bytes of every parameter, in name order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(student.state_dict().items()):
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
