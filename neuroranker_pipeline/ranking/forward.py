"""How batches go through a ranker: in which layout, dtype and order, compiled or not."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from neuroranker_pipeline.progress import Progress, silent
from neuroranker_pipeline.ranking.batching import Tokens, by_length
from neuroranker_pipeline.ranking.device import Compute, side_by_side
from neuroranker_pipeline.ranking.packed import PACKED, cast_weights, first_position, packs
from neuroranker_pipeline.ranking.padded import PADDED

if TYPE_CHECKING:
    from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder

# Padded tokens in one forward pass without gradients: enough to fill a GPU, few enough to stay in a core's caches.
INFERENCE_TOKENS = {"cpu": 1_024, "cuda": 131_072}
# The same with gradients, whose activations stay until the backward pass (about 16 GB for six layers of MiniLM's size).
TRAINING_TOKENS = {"cpu": 2_048, "cuda": 131_072}

# Steps that make up for compiling: 10 to 20 s, against 5 ms saved of the 36 ms of a step (six layers, 256 pairs, H100).
COMPILED_STEPS = 2_000


def forward_rows(
    model: BiEncoder | CrossEncoder, tokens: Tokens, rows: np.ndarray, max_tokens: int | None
) -> torch.Tensor:
    """The model's output for ``rows`` of ``tokens``, in their order, computed in batches of similar length.

    ``max_tokens`` padded tokens a batch at most; ``None`` is what suits the device.
    """
    device = next(model.parameters()).device
    parts = list(by_length(tokens.lengths[rows], max_tokens or TRAINING_TOKENS[device.type]))
    outputs = [forward_batch(model, tokens, rows[part], device) for part in parts]
    back = torch.from_numpy(np.argsort(np.concatenate(parts)))
    return torch.cat(outputs)[back.to(device, non_blocking=True)]


def forward_batch(
    model: BiEncoder | CrossEncoder, tokens: Tokens, rows: np.ndarray, device: torch.device
) -> torch.Tensor:
    """The model's output for one batch: packed where that pays and the model allows it, else padded."""
    _attend(model, device)
    if not packs_batches(model, device):
        return model(**tokens.batch(rows, device))
    batch = tokens.packed(rows, device, first_position(model.transformer))
    if not torch.is_autocast_enabled(device.type):
        return model(**batch)
    # Weights cast once: under autocast normalizations and residuals would run, and be kept for the gradient, in float32.
    cast = cast_weights(model.transformer, _dtype(model, device), "transformer.")
    with torch.autocast(device.type, enabled=False):
        return torch.func.functional_call(model, cast, (), batch)


def packs_batches(model: BiEncoder | CrossEncoder, device: torch.device) -> bool:
    """Whether batches are packed here: FlashAttention runs on a GPU, and not in float32."""
    return device.type == "cuda" and model.reads_packed and _dtype(model, device) != torch.float32


def _dtype(model: BiEncoder | CrossEncoder, device: torch.device) -> torch.dtype:
    """What the encoder's matrix products run in."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return next(model.transformer.parameters()).dtype


def _attend(model: BiEncoder | CrossEncoder, device: torch.device) -> None:
    """Have the encoder attend as its batches are laid out; implementations that were chosen elsewhere are left alone."""
    transformer = model.transformer
    now = transformer.config._attn_implementation
    wanted = "sdpa" if now in (PACKED, PADDED) else now
    if packs_batches(model, device):
        wanted = PACKED
    elif wanted == "sdpa" and _attends_in_products(model, device):
        wanted = PADDED
    if wanted != now:
        transformer.set_attn_implementation(wanted)


def _attends_in_products(model: BiEncoder | CrossEncoder, device: torch.device) -> bool:
    """Whether ``padded_attention`` is the faster one: without gradients, in bfloat16, on a CPU; for plain encoders."""
    bfloat16 = device.type == "cpu" and _dtype(model, device) == torch.bfloat16
    return bfloat16 and torch.is_inference_mode_enabled() and packs(model.transformer)


def compiles(setting: Literal["auto", "always", "never"], compute: Compute, steps: int) -> bool:
    """Whether ``TrainingSettings.compile`` asks for compilation in a run of ``steps`` on this device."""
    if setting == "auto":
        # Triton builds the launchers of its kernels.
        compiler = shutil.which(os.environ.get("CC", "gcc")) or shutil.which("clang")
        return compute.device.type == "cuda" and compiler is not None and steps >= COMPILED_STEPS
    return setting == "always"


def compile_layers(model: BiEncoder | CrossEncoder) -> None:
    """Compile the encoder layer by layer, in place: one layer's code serves all, so that it takes seconds."""
    # What the compiler makes of weights that were cast for the step: it looks at their gradient, which they have none of.
    message = "The .grad attribute of a Tensor that is not a leaf"
    warnings.filterwarnings("ignore", message=message, category=UserWarning)
    encoder: Any = model.transformer.base_model
    embeddings = getattr(encoder, "embeddings", None)
    for module in [*([embeddings] if embeddings is not None else []), *encoder_layers(model.transformer)]:
        module.compile(dynamic=True)


def encoder_layers(transformer: PreTrainedModel) -> nn.ModuleList:
    """The encoder's layers, the lowest first."""
    stacks = (module for module in transformer.modules() if isinstance(module, nn.ModuleList))
    return next(stack for stack in stacks if len(stack) == transformer.config.num_hidden_layers)


def infer(
    model: BiEncoder | CrossEncoder,
    tokens: Tokens,
    compute: Compute,
    label: str = "inference",
    progress: Progress = silent,
) -> np.ndarray:
    """The model's float32 output for every sequence, without gradients or dropout."""
    was_training = model.training
    model.eval().to(compute.device)
    parts, outputs, done = list(by_length(tokens.lengths, INFERENCE_TOKENS[compute.device.type])), [], 0

    @torch.inference_mode()
    def output(part: np.ndarray) -> torch.Tensor:
        return forward_batch(model, tokens, part, compute.device).float()

    with _encoder_in(model, compute.dtype):
        with torch.inference_mode():  # here, for the threads must not change the model
            _attend(model, compute.device)
        for part, values in zip(parts, side_by_side(output, parts, compute.device), strict=True):
            outputs.append(values)
            done += len(part)
            progress(label, done, len(tokens))
        whole = torch.cat(outputs).cpu().numpy()  # one transfer: fetching each would make the GPU wait for the next
    model.train(was_training)
    result = np.empty_like(whole)
    result[np.concatenate(parts)] = whole
    return result


@contextmanager
def _encoder_in(model: BiEncoder | CrossEncoder, dtype: torch.dtype) -> Iterator[None]:
    """The encoder's weights in ``dtype`` for the block, and as they were after it.

    Casting them once is 1.14 times as fast as autocast, which casts them in every product (bfloat16, two cores). Pooling
    and linear heads stay in float32, for bfloat16 scores tie.
    """
    kept = [(weight, weight.data) for weight in model.transformer.base_model.parameters()]
    try:
        for weight, data in kept:
            weight.data = data.to(dtype)
        yield
    finally:
        for weight, data in kept:
            weight.data = data
