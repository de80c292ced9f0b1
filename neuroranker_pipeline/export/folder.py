"""From a model's name to a folder that can be served: exported, proved against PyTorch, and made int8 if asked."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from neuroranker_pipeline.datasets.pydocs import PydocsSettings, PydocsSource
from neuroranker_pipeline.datasets.python_api import STDLIB
from neuroranker_pipeline.datasets.rejects import Rejects
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.export.onnx import export_cross_encoder, export_student, parity, score_parity
from neuroranker_pipeline.export.quantize import (
    Agreement,
    QuantizationSettings,
    ScoreAgreement,
    quantize_cross_encoder,
    quantize_student,
)
from neuroranker_pipeline.ranking.folders import read_layout
from neuroranker_pipeline.ranking.hub import resolve_model
from neuroranker_pipeline.serving.cross_encoder import model_kind
from neuroranker_pipeline.serving.onnx_model import CROSS_ENCODER, MODEL_FILE

TOLERANCE = 1e-4  # of a component of a vector, or of a logit
QUERIES, TEXTS = 24, 12


@dataclass(frozen=True)
class Exported:
    """What was written: the model's kind, its largest difference from PyTorch, and how close int8 is, if it is."""

    kind: str
    difference: float
    agreement: Agreement | ScoreAgreement | None


def export_model(model: str | Path, out: Path, int8: bool = False) -> Exported:
    """Write a student or a cross-encoder, named as ``resolve_model`` allows, as an ONNX folder that must not exist yet.

    Both proofs read documentation of Python's standard library. Nothing is left of a failure. Raises ``ModelNotFound``,
    or ``BadInput`` when ``out`` exists, the model is none of the two, the graph differs from PyTorch by more than
    ``TOLERANCE``, or int8 strays.
    """
    if out.exists():
        raise BadInput(f"{out}: exists already; name a new folder, or remove this one")
    if not out.absolute().parent.is_dir():
        raise BadInput(f"{out}: its folder {out.absolute().parent} does not exist; make it first")
    source = resolve_model(model)
    if (source / MODEL_FILE).is_file():
        raise BadInput(f"{source}: holds an exported model already; name the folder that it was exported from")
    lists = documentation()
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.absolute().parent) as work:
        float32, quantized = Path(work, "float32"), Path(work, "int8")
        cross = read_layout(source).cross_encoder
        difference = _export_cross_encoder(source, float32, lists) if cross else _export_student(source, float32, lists)
        if not difference <= TOLERANCE:  # so that NaN fails too
            raise BadInput(
                f"{source}: its ONNX graph differs from PyTorch by {difference:.1e}, more than {TOLERANCE:.0e}"
            )
        agreement = _quantize(source, float32, quantized, lists) if int8 else None
        os.rename(quantized if int8 else float32, out)
    return Exported(model_kind(out), difference, agreement)


def documentation() -> dict[str, list[str]]:
    """``QUERIES`` summaries from the standard library's documentation, each with the passages most alike by words."""
    source = PydocsSource(PydocsSettings(packages=(STDLIB,), dev_queries=1, gate_queries=1, test_queries=QUERIES))
    passages = [text for batch in source.passages(Rejects()) for text in batch["text"].to_pylist()]
    queries = [text for batch in source.queries(Rejects()) for text in batch["text"].to_pylist()]
    words = [set(_words(text)) for text in passages]

    def alike(query: str) -> list[str]:
        asked = set(_words(query))
        rows = sorted(range(len(passages)), key=lambda row: (-len(asked & words[row]) / len(words[row]) ** 0.5, row))
        return [passages[row] for row in rows[:TEXTS]]

    return {query: alike(query) for query in queries[:: max(1, len(queries) // QUERIES)][:QUERIES]}


def _export_student(source: Path, out: Path, lists: dict[str, list[str]]) -> float:
    export_student(source, out)
    return parity(source, out, [text for query, texts in lists.items() for text in (query, *texts[:4])])


def _export_cross_encoder(source: Path, out: Path, lists: dict[str, list[str]]) -> float:
    export_cross_encoder(source, out)
    pairs = [(query, text) for query, texts in lists.items() for text in texts[:4]]
    return score_parity(source, out, *map(list, zip(*pairs, strict=True)))


def _quantize(source: Path, float32: Path, out: Path, lists: dict[str, list[str]]) -> Agreement | ScoreAgreement:
    settings = QuantizationSettings()
    try:
        if model_kind(float32) == CROSS_ENCODER:
            return quantize_cross_encoder(float32, out, settings, lists)
        return quantize_student(float32, out, settings, [text for texts in lists.values() for text in texts])
    except BadInput as error:  # it names a file that goes
        raise BadInput(str(error).replace(str(float32 / MODEL_FILE), str(source))) from error


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
