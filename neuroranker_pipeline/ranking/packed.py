"""Sequences laid end to end instead of padded: no work is done for padding (https://arxiv.org/abs/2107.02027).

A packed batch is one row of all the tokens; attention keeps to each sequence by its boundaries. Transformers hands
unknown keyword arguments down to a registered attention function, so the models themselves are used as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel

PACKED = "neuroranker_packed"

# The encoders whose attention is plain and whose positions are given: all they need is where their positions begin.
_FIRST_POSITION = {"bert": 0, "electra": 0, "roberta": 2, "xlm-roberta": 2, "camembert": 2}


def packs(transformer: PreTrainedModel) -> bool:
    """Whether ``transformer`` is an encoder that can read packed batches."""
    config = transformer.config
    absolute = getattr(config, "position_embedding_type", "absolute") == "absolute"
    return config.model_type in _FIRST_POSITION and absolute and not getattr(config, "is_decoder", False)


def first_position(transformer: PreTrainedModel) -> int:
    """The position id of a sequence's first token."""
    return _FIRST_POSITION[transformer.config.model_type]


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    bounds: torch.Tensor | None = None,
    longest: int = 0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of (1, heads, total, d) tensors within the sequences that ``bounds``, (n + 1,) int32, delimits.

    FlashAttention's variable-length kernel (https://arxiv.org/abs/2307.08691) on a GPU. It has no dropout of attention
    weights; that of the hidden states stays.
    """
    if bounds is None:
        raise ValueError("packed attention needs `bounds`: the batch is not packed")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if query.is_cuda:
        out = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling)
        assert isinstance(out, torch.Tensor)  # a tuple where more is asked for
    else:
        out = _attention_by_padding(q, k, v, bounds, longest, scaling)
    return out.unsqueeze(0), None


def _attention_by_padding(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, longest: int, scaling: float | None
) -> torch.Tensor:
    """The same on a CPU: attention alone is padded, everything around it is not."""
    lengths = bounds.diff()
    inside = torch.arange(longest, device=q.device) < lengths[:, None]  # (n, longest)

    def pad(x: torch.Tensor) -> torch.Tensor:
        full = x.new_zeros(*inside.shape, *x.shape[1:])
        full[inside] = x
        return full.transpose(1, 2)

    out = F.scaled_dot_product_attention(pad(q), pad(k), pad(v), attn_mask=inside[:, None, None, :], scale=scaling)
    return out.transpose(1, 2)[inside]


AttentionInterface.register(PACKED, packed_attention)


class _Cast(torch.autograd.Function):
    """Tensors in another dtype, and their gradients back in their own."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        return tuple(_copies(tensors, [dtype] * len(tensors)))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        there = [i for i, gradient in enumerate(gradients) if gradient is not None]
        found = [gradient for gradient in gradients if gradient is not None]
        copies = iter(_copies(found, [ctx.dtypes[i] for i in there]))
        return None, *(None if gradient is None else next(copies) for gradient in gradients)


def _copies(tensors: Sequence[torch.Tensor], dtypes: Sequence[torch.dtype]) -> list[torch.Tensor]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor, dtype in zip(tensors, dtypes, strict=True)]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return copies


def cast_weights(module: nn.Module, dtype: torch.dtype, prefix: str) -> dict[str, torch.Tensor]:
    """The parameters of ``module`` in ``dtype`` by name, differentiable: all in one launch, for a step has few to spare."""
    named = {prefix + name: weight for name, weight in module.named_parameters()}
    trained = {name: weight for name, weight in named.items() if weight.requires_grad}
    cast = dict(zip(trained, _Cast.apply(dtype, *trained.values()), strict=True)) if trained else {}
    frozen = {name: weight.detach() for name, weight in named.items() if name not in trained}
    return cast | dict(zip(frozen, _copies(list(frozen.values()), [dtype] * len(frozen)), strict=True))


def mean_of_segments(hidden: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """(n, d) float32 means over the sequences of (total, d) token vectors."""
    return torch.segment_reduce(hidden.float(), "mean", offsets=bounds.long(), axis=0)


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The positions from each start on, so many as its length, end to end: (sum of lengths,) int64."""
    return np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())


def pack(
    ids: np.ndarray, offsets: np.ndarray, segment: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The tokens of ``rows`` end to end: ids, positions and types, (total,) int32, and bounds, (n + 1,) int32."""
    starts, lengths = offsets[rows], offsets[rows + 1] - offsets[rows]
    position = spans(np.zeros_like(lengths), lengths)
    second = position >= np.repeat(segment[rows], lengths)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    return (
        ids[spans(starts, lengths)].astype(np.int32),
        position.astype(np.int32),
        second.astype(np.int32),
        bounds.astype(np.int32),
    )
