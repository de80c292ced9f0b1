"""A student made worse on purpose: noise in its weights."""

from __future__ import annotations

from pathlib import Path

import torch

from neuroranker_pipeline.ranking.models import BiEncoder


def add_noise(student: Path, out: Path, strength: float = 20.0, seed: int = 1) -> None:
    """Write ``student`` to ``out`` with noise in all its weights, of ``strength`` times each tensor's standard deviation."""
    model = BiEncoder.load(student)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.transformer.parameters():
            if weights.numel() > 1:
                weights += strength * weights.std() * torch.randn(weights.shape, generator=generator)
    model.save(out)
