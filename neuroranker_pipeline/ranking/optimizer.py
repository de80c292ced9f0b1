"""Which weights of a model learn, and the optimizer that moves them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.ranking.forward import encoder_layers
from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder
from neuroranker_pipeline.ranking.settings import TrainingSettings


def is_head(name: str) -> bool:
    """Whether a parameter belongs to a cross-encoder's head, which has a learning rate of its own."""
    return name.startswith(("head.", "transformer.classifier."))


def freeze(model: BiEncoder | CrossEncoder, settings: TrainingSettings) -> None:
    """Set the dropout and which parameters learn; autograd then skips frozen embeddings and layers by itself.

    Raises ``BadInput`` when more layers are to be frozen than there are.
    """
    if settings.dropout is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = settings.dropout
    encoder: Any = model.transformer.base_model
    frozen: list[nn.Module] = []
    reads_pooler = isinstance(model, CrossEncoder) and model.head is None
    if getattr(encoder, "pooler", None) is not None and not reads_pooler:
        frozen.append(encoder.pooler)
    if settings.freeze_embeddings:
        frozen.append(getattr(encoder, "embeddings", None) or encoder.get_input_embeddings())
    if settings.frozen_layers:
        layers = encoder_layers(model.transformer)
        if settings.frozen_layers > len(layers):
            raise BadInput(
                f"training.frozen_layers: the model has {len(layers)} layers, {settings.frozen_layers} cannot be frozen"
            )
        frozen += list(layers)[: settings.frozen_layers]
    for module in frozen:
        module.requires_grad_(False)


def build_optimizer(trained: dict[str, nn.Parameter], settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW (https://arxiv.org/abs/1711.05101); no weight decay on biases and normalizations, as in BERT."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, p in trained.items():
        groups.setdefault((is_head(name), p.ndim >= 2), []).append(p)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "peak": settings.head_learning_rate if head else settings.learning_rate,
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
            for (head, decays), parameters in groups.items()
        ],
        fused=True,
    )
