"""The high-accuracy mode: a cross-encoder in ONNX, which reads a query and a text together, in place of the student.

It costs a run of the graph for every pair that was not asked before, where a student's text is read once for all queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.serving.cache import Entry, content_key
from neuroranker_pipeline.serving.engine import Engine, Reranker, entries_of
from neuroranker_pipeline.serving.onnx_model import (
    BI_ENCODER,
    CROSS_ENCODER,
    MAX_WINDOWS,
    SETTINGS_FILE,
    TOKENIZER_FILE,
    Long,
    OnnxEncoder,
    OnnxModel,
    Reading,
    find_model,
    read_json,
)

TYPES = "token_type_ids"


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts fit in ``room``: the longer one is cut, and what both need halves for gets halves.

    The rule of the tokenizers library, with which the model was trained; the longer text gets the odd token.
    """
    if first + second <= room:
        return first, second
    short = min(first, second, room // 2)
    return (room - short, short) if first > second else (short, room - short)


@dataclass(frozen=True)
class Frame:
    """The special tokens around the two texts of a pair; ``types``: whether the second has a token type of its own."""

    before: list[int]
    between: list[int]
    after: list[int]
    types: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Frame | None:
        """Read off an example; ``None`` when pairs of this tokenizer are not simply their two texts in a frame."""
        example = ("neural ranking", "a model")
        pair = tokenizer.encode(*example)
        places = pair.sequence_ids
        if 0 not in places or 1 not in places:
            return None
        begin, start = places.index(0), places.index(1)
        first, second = (tokenizer.encode(text, add_special_tokens=False).ids for text in example)
        end, stop = begin + len(first), start + len(second)
        found = cls(pair.ids[:begin], pair.ids[end:start], pair.ids[stop:], types=1 in pair.type_ids)
        same_ids = [*found.before, *first, *found.between, *second, *found.after] == pair.ids
        same_types = not found.types or pair.type_ids == [int(i >= start) for i in range(len(pair.ids))]
        return found if same_ids and same_types else None

    @property
    def size(self) -> int:
        """Special tokens of a pair."""
        return len(self.before) + len(self.between) + len(self.after)

    def join(self, first: Sequence[int], second: Sequence[int]) -> list[int]:
        """A pair as one sequence, in which a token of type 1 is the complement of its id, and so negative."""
        rest = [*second, *self.after]
        return [*self.before, *first, *self.between, *([~token for token in rest] if self.types else rest)]


class OnnxCrossEncoder(OnnxModel):
    """A cross-encoder exported to ONNX: (query, text) pairs to logits. A sequence here is what ``Frame.join`` gives."""

    OPTIONAL = frozenset({TYPES})
    OUTPUT = "score"
    SHAPE = ("n",)

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        """Open a model folder or file as ``OnnxModel`` does; raises ``BadInput`` also for a tokenizer without pairs."""
        super().__init__(path, threads)
        self.tokenizer.no_truncation()  # which of two texts is the longer decides how a pair is cut
        file = self.model_file.parent / TOKENIZER_FILE
        if (frame := Frame.of(self.tokenizer)) is None:
            raise BadInput(
                f"{file}: its pairs are not two texts between special tokens; no cross-encoder can be served"
            )
        if self.max_length < frame.size + 2:
            raise BadInput(f"{file.parent / SETTINGS_FILE}: max_length {self.max_length} leaves no room for two texts")
        self.frame = frame
        self.room = self.max_length - frame.size
        self._typed = TYPES in {node.name for node in self.session.get_inputs()}

    def read(self, query: str, texts: Sequence[str], long: Long = "truncate") -> list[Reading]:
        """What to run for each text beside the query: ``max_length`` tokens, the longer of the two cut first.

        With ``long="windows"`` the text goes on in more such pairs, with the query as the first one has it: windows
        overlap by half; a text gets at most ``MAX_WINDOWS``, and is truncated if they do not reach its end.
        """
        first, *rest = self._ids([query, *texts])
        return [self._pair(first, second, 1 if long == "truncate" else MAX_WINDOWS) for second in rest]

    def cut(self, query: str, texts: Sequence[str], long: Long = "truncate") -> tuple[bool, list[int]]:
        """Whether the query is not read whole, alone or beside any text, and the positions of such texts."""
        first, *rest = map(len, self._ids([query, *texts]))
        kept = [longest_first(first, second, self.room) for second in rest]
        query_cut = first > self.room or any(n < first for n, _ in kept)
        whole = long == "windows"
        return query_cut, [i for i, (_, m) in enumerate(kept) if m < rest[i] and not whole]

    def score(self, query: str, texts: Sequence[str], long: Long = "truncate") -> np.ndarray:
        """The logits, (n,) float32, of a query with n texts; of one that is read in windows, the best one's."""
        readings = self.read(query, texts, long)
        logits = iter(self.run_all([ids for reading in readings for ids in reading.sequences]).tolist())
        best = [max(next(logits) for _ in reading.sequences) for reading in readings]
        return np.array(best, np.float32)

    def _run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        feeds = {"input_ids": np.maximum(ids, ~ids), "attention_mask": mask}
        if self._typed:
            feeds[TYPES] = (ids < 0).astype(np.int64)
        return self.session.run([self.OUTPUT], feeds)[0]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _pair(self, first: list[int], second: list[int], windows: int) -> Reading:
        n, m = longest_first(len(first), len(second), self.room)
        step = max(1, m - m // 2)
        starts = range(0, max(1, len(second) - m + step), step)[:windows]
        pairs = [self.frame.join(first[:n], second[start : start + m]) for start in starts]
        return Reading(pairs, starts[-1] + m < len(second))


class CrossReranker(Engine):
    """Orders passages by a cross-encoder's logit of each with the query, and keeps the scores of pairs."""

    encoder: OnnxCrossEncoder

    def cut(self, query: str, texts: Sequence[str], long: Long = "truncate") -> tuple[bool, list[int]]:
        return self.encoder.cut(query, texts, long)

    def _keys(self, query: str, texts: Sequence[str], long: Long) -> list[bytes]:
        prefix = content_key(query, "query").hex()
        return [content_key(prefix + text, long) for text in texts]

    def _compute(self, query: str, texts: dict[bytes, str], long: Long) -> tuple[np.ndarray, int, dict[bytes, Entry]]:
        readings = self.encoder.read(query, list(texts.values()), long) if texts else []
        entries = dict(zip(texts, entries_of(readings, self._submit(readings)), strict=True))
        return np.empty(0, np.float32), 0, entries  # the query has no vector, and its tokens are among each pair's

    def _scores(self, query: np.ndarray, entries: Sequence[Entry]) -> np.ndarray:
        return np.array([entry.vectors.max() for entry in entries], np.float64)


def model_kind(path: str | Path) -> str:
    """``bi-encoder`` or ``cross-encoder``, as the folder of an exported model says; raises ``BadInput``."""
    file = find_model(Path(path)).parent / SETTINGS_FILE
    kind = read_json(file).get("kind", BI_ENCODER)
    if kind not in (BI_ENCODER, CROSS_ENCODER):
        raise BadInput(f"{file}: kind {kind!r} is unknown, expected {BI_ENCODER} or {CROSS_ENCODER}")
    return kind


def open_model(path: str | Path, threads: int | None = None) -> OnnxEncoder | OnnxCrossEncoder:
    """Open an exported model of either kind; raises ``BadInput``."""
    return (OnnxCrossEncoder if model_kind(path) == CROSS_ENCODER else OnnxEncoder)(path, threads)


def open_reranker(path: str | Path, cache_bytes: int = 64 * 2**20) -> Reranker | CrossReranker:
    """A re-ranker by an exported model of either kind; raises ``BadInput``."""
    model = open_model(path)
    return CrossReranker(model, cache_bytes) if isinstance(model, OnnxCrossEncoder) else Reranker(model, cache_bytes)
