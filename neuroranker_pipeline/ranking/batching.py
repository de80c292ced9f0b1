"""Tokenize once, then cut batches of similar length: little padding, bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

TEXTS_PER_CALL = 4096


@dataclass(frozen=True)
class Tokens:
    """``n`` token sequences laid end to end.

    ids: (total,) int32; offsets: (n + 1,) int64; segment: (n,) int32, where the second text of a pair begins
    (the sequence's length for a single text); typed: whether the model takes ``token_type_ids``.
    """

    ids: np.ndarray
    offsets: np.ndarray
    segment: np.ndarray
    pad_id: int
    typed: bool

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64 tokens in each sequence, special tokens included."""
        return np.diff(self.offsets)

    def batch(self, rows: Sequence[int] | np.ndarray, device: torch.device) -> dict[str, torch.Tensor]:
        """Pad the given sequences to the longest: int64 ``input_ids``, ``attention_mask`` (and types), (b, t)."""
        rows = np.asarray(rows, dtype=np.int64)
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        position = np.arange(lengths.max(initial=1))
        inside = position < lengths[:, None]
        ids = np.full(inside.shape, self.pad_id, dtype=np.int64)
        ids[inside] = self.ids[(self.offsets[rows][:, None] + position)[inside]]
        batch = {"input_ids": ids, "attention_mask": inside.astype(np.int64)}
        if self.typed:
            batch["token_type_ids"] = (inside & (position >= self.segment[rows][:, None])).astype(np.int64)
        return {key: torch.from_numpy(value).to(device) for key, value in batch.items()}


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int,
    pairs: Sequence[str] | None = None,
) -> Tokens:
    """Tokenize texts, or (text, pair) pairs, to at most ``max_length`` tokens with special tokens.

    Truncation takes from the longer text first, as ``sentence_transformers`` does.
    """
    pieces, lengths, segments = [], [], []
    for start in range(0, len(texts), TEXTS_PER_CALL):
        part = slice(start, start + TEXTS_PER_CALL)
        encoded = tokenizer(
            list(texts[part]),
            None if pairs is None else list(pairs[part]),
            truncation="longest_first",
            max_length=max_length,
            padding=False,
            return_token_type_ids=False,
            return_attention_mask=False,
        )
        for row, ids in enumerate(encoded["input_ids"]):
            pieces.append(np.asarray(ids, dtype=np.int32))
            lengths.append(len(ids))
            types = encoded.encodings[row].type_ids
            segments.append(types.index(1) if pairs is not None and 1 in types else len(ids))
    return Tokens(
        ids=np.concatenate(pieces) if pieces else np.zeros(0, np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        segment=np.asarray(segments, dtype=np.int32),
        pad_id=tokenizer.pad_token_id or 0,
        typed="token_type_ids" in tokenizer.model_input_names,
    )


def by_length(lengths: np.ndarray, max_tokens: int) -> Iterator[np.ndarray]:
    """Row numbers in batches of at most ``max_tokens`` padded tokens (or one row), longest first.

    Longest first, so that memory that does not suffice shows at once.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, max_tokens // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size


def epoch_order(items: int, seed: int, epoch: int) -> np.ndarray:
    """(items,) int64: the order in which ``epoch`` visits the training lists, the same on every machine."""
    return np.random.default_rng([seed, epoch]).permutation(items)
