"""Tokenize once, then cut batches of similar length: little padding, bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from neuroranker_pipeline.ranking.packed import pack, spans

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

    def packed(self, rows: Sequence[int] | np.ndarray, device: torch.device, first_position: int) -> dict[str, Any]:
        """The given sequences end to end: int32 ``input_ids``, ``position_ids`` (and types), (1, total), and ``bounds``.

        longest: at least the tokens of the longest sequence, rounded up so that few values occur.
        """
        rows = np.asarray(rows, dtype=np.int64)
        ids, position, types, bounds = pack(self.ids, self.offsets, self.segment, rows)
        whole = torch.from_numpy(np.concatenate([ids, position + first_position, types, bounds]))
        if device.type == "cuda":  # one copy, which the GPU's work so far need not wait for
            whole = whole.pin_memory().to(device, non_blocking=True)
        parts = whole.split([len(ids), len(ids), len(ids), len(bounds)])
        batch: dict[str, Any] = {"input_ids": parts[0][None], "position_ids": parts[1][None]}
        if self.typed:
            batch["token_type_ids"] = parts[2][None]
        longest = int(np.diff(bounds).max(initial=1))
        return {**batch, "bounds": parts[3], "longest": 1 << (longest - 1).bit_length() if longest > 32 else 32}


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> Tokens:
    """Tokenize texts to at most ``max_length`` tokens with special tokens."""
    return _tokens(tokenizer, *_encode(tokenizer, texts, max_length))


def tokenize_pairs(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], others: Sequence[str], max_length: int
) -> Tokens:
    """Tokenize (text, other) pairs to at most ``max_length`` tokens with special tokens.

    Truncation takes from the longer text first, as ``sentence_transformers`` does. Every distinct text is tokenized
    once and the pairs are put together from the pieces: a query is in a hundred pairs, a passage in many.
    """
    frame = _Frame.of(tokenizer)
    if frame is None:
        return _tokens(tokenizer, *_encode(tokenizer, texts, max_length, others))
    first, row = _distinct(tokenizer, texts)
    second, other = _distinct(tokenizer, others)
    return _tokens(tokenizer, *frame.join(first, row, second, other, max_length))


@dataclass(frozen=True)
class _Frame:
    """The special tokens around the two texts of a pair; types: whether the second text has a type of its own."""

    before: list[int]
    between: list[int]
    after: list[int]
    types: bool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> _Frame | None:
        """Read off an example; ``None`` when pairs of this tokenizer are not simply their two texts in a frame."""
        example = ("neural ranking", "a model")
        encoding = tokenizer(*example).encodings[0]
        places = encoding.sequence_ids
        if 0 not in places or 1 not in places or tokenizer.truncation_side != "right":
            return None
        ids, start, stop = encoding.ids, places.index(1), len(places) - places[::-1].index(1)
        begin, end = places.index(0), start - places[:start][::-1].index(0)
        found = cls(ids[:begin], ids[end:start], ids[stop:], types=1 in encoding.type_ids)
        alone = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in example]
        same_ids = [*found.before, *alone[0], *found.between, *alone[1], *found.after] == ids
        same_types = not found.types or encoding.type_ids.index(1) == start
        return found if same_ids and same_types else None

    def join(
        self, first: Tokens, row: np.ndarray, second: Tokens, other: np.ndarray, max_length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, lengths and segments of the pairs (``row`` of ``first``, ``other`` of ``second``), framed and cut."""
        room = max_length - len(self.before) - len(self.between) - len(self.after)
        n, m = longest_first(first.lengths[row], second.lengths[other], room)
        lengths = n + m + max_length - room
        starts = np.cumsum(lengths) - lengths
        a = starts + len(self.before)
        b = a + n + len(self.between)
        ids = np.empty(lengths.sum(), np.int32)
        ids[spans(a, n)] = first.ids[spans(first.offsets[row], n)]
        ids[spans(b, m)] = second.ids[spans(second.offsets[other], m)]
        for begin, special in ((starts, self.before), (a + n, self.between), (b + m, self.after)):
            for place, token in enumerate(special):
                ids[begin + place] = token
        return ids, lengths, b - starts if self.types else lengths


def longest_first(n: np.ndarray, m: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens of the two texts of a pair, (pairs,) each, fit in ``room``, the longer one cut first.

    The rule of the tokenizers library: the shorter is kept whole where it leaves the longer no less than itself, else
    they get halves, the longer one the odd token.
    """
    short, long = np.minimum(n, m), np.maximum(n, m)
    halves = 2 * short > room
    kept_short = np.where(halves, room // 2, short)
    kept_long = np.where(halves, room - room // 2, room - short)
    fits = n + m <= room
    kept_short, kept_long = np.where(fits, short, kept_short), np.where(fits, long, kept_long)
    swapped = n > m
    return np.where(swapped, kept_long, kept_short), np.where(swapped, kept_short, kept_long)


def _distinct(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[Tokens, np.ndarray]:
    """The distinct texts, whole and without special tokens, and the row of each text among them.

    Whole, for which of two texts is the longer one decides how a pair is cut.
    """
    place: dict[str, int] = {}
    rows = np.fromiter((place.setdefault(text, len(place)) for text in texts), np.int64, len(texts))
    return _tokens(tokenizer, *_encode(tokenizer, list(place), None, special=False)), rows


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int | None,
    others: Sequence[str] | None = None,
    special: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, lengths and segments, by the tokenizer itself."""
    pieces, lengths, segments = [], [], []
    for start in range(0, len(texts), TEXTS_PER_CALL):
        part = slice(start, start + TEXTS_PER_CALL)
        encoded = tokenizer(
            list(texts[part]),
            None if others is None else list(others[part]),
            truncation="longest_first" if max_length else False,
            max_length=max_length,
            padding=False,
            add_special_tokens=special,
            verbose=False,
            return_token_type_ids=False,
            return_attention_mask=False,
        )
        for row, ids in enumerate(encoded["input_ids"]):
            pieces.append(np.asarray(ids, dtype=np.int32))
            lengths.append(len(ids))
            types = encoded.encodings[row].type_ids if others is not None else ()
            segments.append(types.index(1) if 1 in types else len(ids))
    ids = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
    return ids, np.asarray(lengths, np.int64), np.asarray(segments)


def _tokens(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray, lengths: np.ndarray, segments: np.ndarray) -> Tokens:
    return Tokens(
        ids=ids,
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        segment=segments.astype(np.int32),
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
