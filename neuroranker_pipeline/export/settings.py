"""What becomes int8. Light: reading a profile imports no ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from neuroranker_pipeline.errors import require


@dataclass(frozen=True)
class QuantizationSettings:
    """What becomes int8, and how far the result may stray.

    products: matrix products with weights; embeddings: the token embedding table; weight_bits: 8, or 7 for x86
    processors without VNNI, whose 8-bit products overflow in 16-bit sums; min_cosine: the least mean cosine with the
    float32 vectors on the calibration texts.
    """

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    products: bool = True
    embeddings: bool = True
    weight_bits: Literal[7, 8] = 8
    min_cosine: float = 0.98

    def __post_init__(self) -> None:
        require(self.weight_bits in (7, 8), "weight_bits", "7 or 8", self.weight_bits)
        require(0 < self.min_cosine <= 1, "min_cosine", "in (0, 1]", self.min_cosine)
