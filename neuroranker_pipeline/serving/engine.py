"""The inference engine of the service: a query and passages to a ranking, by what an exported model says of them.

What a cross-encoder has in common with the student is here; the rest is in
:mod:`neuroranker_pipeline.serving.cross_encoder`.
"""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.serving.batcher import Batcher, Work
from neuroranker_pipeline.serving.cache import Entry, VectorCache, content_key
from neuroranker_pipeline.serving.interpolation import INTERPOLATION_FILE, bm25_weight, interpolated
from neuroranker_pipeline.serving.onnx_model import Long, OnnxEncoder, OnnxModel, Reading


@dataclass(frozen=True, slots=True)
class Ranked:
    """A text's position in the request, its score, and whether only its beginning was read.

    The score is the cosine or logit, or with a first stage's scores the interpolated one.
    """

    index: int
    score: float
    truncated: bool


@dataclass(frozen=True)
class Ranking:
    """The texts best first; ties keep their order. ``tokens`` were read of query and texts, now or when cached."""

    results: list[Ranked]
    tokens: int
    cached: int  # texts that were in the cache


class Engine(ABC):
    """Orders passages by what a model says of them; safe to use from several threads.

    What the model said of a passage is kept by content, and the token sequences of all concurrent requests share one
    queue. Neither changes a score by a bit: a score depends on the query and its text alone.
    """

    def __init__(self, encoder: OnnxModel, cache_bytes: int = 64 * 2**20) -> None:
        """Start ``encoder.threads`` threads, which end with ``close`` or when the object goes.

        ``cache_bytes`` bounds the memory of the cache; 0 keeps none. Raises ``BadInput`` for a damaged weight of BM25's
        score beside the model.
        """
        self.encoder = encoder
        self.bm25_weight = bm25_weight(encoder.model_file.parent)
        self.cache = VectorCache(cache_bytes)
        self._batcher = Batcher(encoder.run, encoder.threads)
        self._end = weakref.finalize(self, self._batcher.close, wait=False)
        self._counts = threading.Lock()
        self._texts = self._tokens = 0

    def rerank(
        self,
        query: str,
        texts: Sequence[str],
        long: Long = "truncate",
        first_stage: Sequence[float] | None = None,
    ) -> Ranking:
        """Score ``texts`` against ``query``; of one that is read in windows, the best window's score counts.

        first_stage: BM25's score of each text, finite, with which the score is interpolated by the model's weight. Raises
        ``BadInput`` when the model has no weight.
        """
        if first_stage is not None and self.bm25_weight is None:
            raise BadInput(
                f"first_stage_scores: no weight of BM25's score was chosen for this model ({INTERPOLATION_FILE}); leave "
                "them out, or rank by both scores yourself"
            )
        keys = self._keys(query, texts, long)
        entries = self.cache.get(dict.fromkeys(keys))
        cached = sum(key in entries for key in keys)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in entries}
        vector, tokens, computed = self._compute(query, missing, long)
        self.cache.put(computed)
        entries |= computed
        ordered = [entries[key] for key in keys]
        scores = self._scores(vector, ordered)
        if first_stage is not None:
            scores = interpolated(scores, first_stage, self.bm25_weight or 0.0)
        tokens += sum(entry.tokens for entry in ordered)
        with self._counts:
            self._texts += len(texts)
            self._tokens += tokens
        order = np.argsort(-scores, kind="stable").tolist()
        return Ranking([Ranked(i, float(scores[i]), ordered[i].truncated) for i in order], tokens, cached)

    @abstractmethod
    def cut(self, query: str, texts: Sequence[str], long: Long = "truncate") -> tuple[bool, list[int]]:
        """Whether ``rerank`` would cut the query, and the positions of the texts that it would.

        Windows count as read to the end: few texts have more than ``MAX_WINDOWS``.
        """

    def stats(self) -> dict[str, int]:
        """Counts since the start (texts, tokens, cache_hits, cache_misses), and what is there now.

        ``tokens`` counts cached texts too; hits and misses count the different texts of each request; ``queued`` are
        the sequences (queries, texts, windows) that wait for a run.
        """
        return {
            "texts": self._texts,
            "tokens": self._tokens,
            "cache_hits": self.cache.hits,
            "cache_misses": self.cache.misses,
            "cache_entries": len(self.cache),
            "cache_bytes": self.cache.nbytes,
            "queued": self._batcher.queued,
        }

    def close(self) -> None:
        """End the threads; requests that are still queued fail, and so does a later one, with ``RuntimeError``."""
        self._end.detach()
        self._batcher.close()

    @abstractmethod
    def _keys(self, query: str, texts: Sequence[str], long: Long) -> list[bytes]:
        """By what each text is kept."""

    @abstractmethod
    def _compute(self, query: str, texts: dict[bytes, str], long: Long) -> tuple[np.ndarray, int, dict[bytes, Entry]]:
        """The query's vector, the tokens read for it, and the entries of texts that are not in the cache."""

    @abstractmethod
    def _scores(self, query: np.ndarray, entries: Sequence[Entry]) -> np.ndarray:
        """The score of each text, (n,) float64."""

    def _submit(self, readings: Sequence[Reading], *first: Work) -> list[Future[np.ndarray]]:
        """What ``first`` and then the sequences of the readings will give: all are queued at once."""
        works = [Work(tuple(ids)) for reading in readings for ids in reading.sequences]
        return self._batcher.submit([*first, *works])


class Reranker(Engine):
    """Orders passages by the cosine of their embedding with the query's, and keeps passages' vectors."""

    encoder: OnnxEncoder

    def encode_query(self, query: str) -> np.ndarray:
        """The unit vector, (dimension,) float32, that ``rerank`` compares the texts with."""
        return self._compute(query, {}, "truncate")[0]

    def too_long(self, texts: Sequence[str]) -> list[int]:
        """Positions of the texts that ``rerank`` would cut."""
        keys = self._keys("", texts, "truncate")
        known = self.cache.peek(keys)
        unknown = [i for i, key in enumerate(keys) if key not in known]
        cut = {unknown[i] for i in self.encoder.too_long([texts[i] for i in unknown])}
        return [i for i, key in enumerate(keys) if i in cut or (key in known and known[key].truncated)]

    def cut(self, query: str, texts: Sequence[str], long: Long = "truncate") -> tuple[bool, list[int]]:
        query_cut = bool(self.encoder.too_long([query]))
        return query_cut, self.too_long(texts) if long == "truncate" else []

    def _keys(self, query: str, texts: Sequence[str], long: Long) -> list[bytes]:
        return [content_key(text, long) for text in texts]

    def _compute(self, query: str, texts: dict[bytes, str], long: Long) -> tuple[np.ndarray, int, dict[bytes, Entry]]:
        query_tokens = tuple(self.encoder.tokenize([query])[0])
        readings = self.encoder.read(list(texts.values()), long) if texts else []
        # Every request waits for its query, and most have no other of its length to share a run with.
        vector, *futures = self._submit(readings, Work(query_tokens, alone=True))
        entries = dict(zip(texts, entries_of(readings, futures), strict=True))
        return vector.result(), len(query_tokens), entries

    def _scores(self, query: np.ndarray, entries: Sequence[Entry]) -> np.ndarray:
        return best_cosines(query, [entry.vectors for entry in entries])


def entries_of(readings: Sequence[Reading], futures: Iterable[Future[np.ndarray]]) -> Iterator[Entry]:
    """What came out for each text, once all of its sequences, in their order, have been run."""
    results = iter(futures)
    for reading in readings:
        vectors = np.stack([next(results).result() for _ in reading.sequences])
        yield Entry(vectors, sum(map(len, reading.sequences)), reading.truncated)


def best_cosines(query: np.ndarray, texts: Sequence[np.ndarray]) -> np.ndarray:
    """The largest cosine, (n,) float64, of a unit vector, (dimension,), with any row of each of n arrays of them."""
    if not texts:
        return np.empty(0)
    # A sum per row, and no matrix product, whose rounding would depend on the number of rows.
    cosines = np.multiply(np.concatenate(texts), query, dtype=np.float64).sum(axis=1).clip(-1, 1)
    return np.maximum.reduceat(cosines, [0, *accumulate(len(rows) for rows in texts[:-1])])
