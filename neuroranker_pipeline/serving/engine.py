"""The inference engine of the service: texts to unit vectors with ONNX Runtime, and passages to a ranking.

What a cross-encoder has in common with it is here too; the rest is in :mod:`neuroranker_pipeline.serving.cross_encoder`.
"""

from __future__ import annotations

import json
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.pointer import resolve_artifact
from neuroranker_pipeline.serving.batcher import Batcher, Work, run_alike, run_size
from neuroranker_pipeline.serving.cache import Entry, VectorCache, content_key

MODEL_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "neuroranker.json"
BI_ENCODER, CROSS_ENCODER = "bi-encoder", "cross-encoder"  # the ``kind`` in the settings

DEFAULT_MAX_LENGTH = 256
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
MAX_WINDOWS = 64

# What to do with a text of more than ``max_length`` tokens: cut it, or read it in windows and take the best one.
Long = Literal["truncate", "windows"]


@dataclass(frozen=True)
class Reading:
    """What the model reads of a text: token sequences, special tokens included, and whether the text goes on."""

    sequences: list[list[int]]
    truncated: bool


@dataclass(frozen=True, slots=True)
class Ranked:
    """A text's position in the request, its score (cosine or logit), and whether only its beginning was read."""

    index: int
    score: float
    truncated: bool


@dataclass(frozen=True)
class Ranking:
    """The texts best first; ties keep their order. ``tokens`` were read of query and texts, now or when cached."""

    results: list[Ranked]
    tokens: int
    cached: int  # texts that were in the cache


class OnnxModel:
    """A graph over token ids, beside its tokenizer.

    Only short sequences share a run, and only those of one length, so nothing is ever padded, and each thread runs its
    own batches: what comes out for a sequence depends on that sequence alone, to the last bit.
    """

    INPUTS: ClassVar = frozenset({"input_ids", "attention_mask"})
    OPTIONAL: ClassVar[frozenset[str]] = frozenset()  # inputs that only some graphs have
    OUTPUT: ClassVar[str]
    SHAPE: ClassVar[tuple[str, ...]]

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        """Open a model folder (``model.onnx``, ``tokenizer.json``), or an ``.onnx`` file beside its tokenizer.

        ``threads`` defaults to the cores this process may use. Raises ``BadInput`` when a file is missing or is
        not what it should be.
        """
        self.model_file = find_model(Path(path))
        folder = self.model_file.parent
        self.threads = threads or available_cores()
        self.session = _open_session(self.model_file)
        self._check_graph()
        self.tokenizer = _open_tokenizer(folder / TOKENIZER_FILE)
        config = read_json(folder / "config.json")
        self.max_length = _max_length(read_json(folder / SETTINGS_FILE), config, self.tokenizer)
        self.pad_id = int(config.get("pad_token_id") or 0)
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.max_length)
        _check_vocabulary(self.tokenizer, config, folder)
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="onnx")

    def run_all(self, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """What the graph gives, (n, ...) float32, for n token sequences, in their order."""
        results = np.empty((len(tokens), *self.session.get_outputs()[0].shape[1:]), np.float32)
        batches = list(_equal_lengths(tokens))
        runs = self._pool.map(lambda rows: run_alike(self.run, [tokens[row] for row in rows]), batches)
        for rows, result in zip(batches, runs, strict=True):
            results[rows] = result
        return results

    def run(self, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """One run of the graph: its output, (n, ...) float32, for n >= 1 token sequences of one length."""
        ids = np.array(tokens, np.int64)
        return self._run(ids, np.ones_like(ids))

    def run_padded(self, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """One run over one padded batch: what the graph itself computes, for checks of its padding mask."""
        lengths = np.array([len(ids) for ids in tokens])
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        ids = np.full(mask.shape, self.pad_id, np.int64)
        ids[mask == 1] = np.concatenate([np.asarray(t, np.int64) for t in tokens])
        return self._run(ids, mask)

    def works(self) -> bool:
        """Whether a run gives finite numbers."""
        return bool(np.isfinite(self.run([self.tokenizer.encode("ready").ids])).all())

    def _run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return self.session.run([self.OUTPUT], {"input_ids": ids, "attention_mask": mask})[0]

    def _check_graph(self) -> None:
        inputs = {node.name for node in self.session.get_inputs()}
        outputs = self.session.get_outputs()
        expected = (self.OUTPUT, len(self.SHAPE))
        if inputs - self.OPTIONAL != self.INPUTS or (outputs[0].name, len(outputs[0].shape)) != expected:
            raise BadInput(
                f"{self.model_file}: expected inputs input_ids and attention_mask and an output {self.OUTPUT!r} of shape "
                f"({', '.join(self.SHAPE)}), found inputs {sorted(inputs)} and outputs "
                f"{[output.name for output in outputs]}; make the folder with `neuroranker export`"
            )


class OnnxEncoder(OnnxModel):
    """A student exported to ONNX: texts to unit vectors."""

    OUTPUT = "embedding"
    SHAPE = ("n", "dimension")

    @property
    def dimension(self) -> int:
        """Components of an embedding."""
        return int(self.session.get_outputs()[0].shape[1])

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, cut to ``max_length``."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]

    def too_long(self, texts: Sequence[str]) -> list[int]:
        """Positions of the texts that ``tokenize`` cuts."""
        return [i for i, e in enumerate(self.tokenizer.encode_batch_fast(list(texts))) if e.overflowing]

    def read(self, texts: Sequence[str], long: Long = "truncate") -> list[Reading]:
        """What to run for each text: its tokens cut to ``max_length``, or windows of that length.

        Windows overlap by half; a text gets at most ``MAX_WINDOWS``, and is truncated if they do not reach its end.
        """
        if long == "truncate":
            return [Reading([e.ids], bool(e.overflowing)) for e in self.tokenizer.encode_batch_fast(list(texts))]
        readings = []
        for encoding in self._windows.encode_batch_fast(list(texts)):
            more = encoding.overflowing
            ids = [encoding.ids, *(window.ids for window in more[: MAX_WINDOWS - 1])]
            readings.append(Reading(ids, len(more) >= MAX_WINDOWS))
        return readings

    @cached_property
    def _windows(self) -> Tokenizer:
        """A tokenizer of its own, for how to cut is a tokenizer's state, which all threads share."""
        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        content = self.max_length - tokenizer.num_special_tokens_to_add(False)
        tokenizer.enable_truncation(self.max_length, stride=content // 2)
        return tokenizer

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, (n, dimension) float32, in the order of ``texts``."""
        return self.run_all(self.tokenize(texts))


class Engine(ABC):
    """Orders passages by what a model says of them; safe to use from several threads.

    What the model said of a passage is kept by content, and the token sequences of all concurrent requests share one
    queue. Neither changes a score by a bit: a score depends on the query and its text alone.
    """

    def __init__(self, encoder: OnnxModel, cache_bytes: int = 64 * 2**20) -> None:
        """Start ``encoder.threads`` threads, which end with ``close`` or when the object goes.

        ``cache_bytes`` bounds the memory of the cache; 0 keeps none.
        """
        self.encoder = encoder
        self.cache = VectorCache(cache_bytes)
        self._batcher = Batcher(encoder.run, encoder.threads)
        self._end = weakref.finalize(self, self._batcher.close, wait=False)
        self._counts = threading.Lock()
        self._texts = self._tokens = 0

    def rerank(self, query: str, texts: Sequence[str], long: Long = "truncate") -> Ranking:
        """Score ``texts`` against ``query``; of one that is read in windows, the best window's score counts."""
        keys = self._keys(query, texts, long)
        entries = self.cache.get(dict.fromkeys(keys))
        cached = sum(key in entries for key in keys)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in entries}
        vector, tokens, computed = self._compute(query, missing, long)
        self.cache.put(computed)
        entries |= computed
        ordered = [entries[key] for key in keys]
        scores = self._scores(vector, ordered)
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


def available_cores() -> int:
    """Cores that this process may run on, and no more than its container has time for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no control group, or no quota: "max"
        return cores


def find_model(path: Path) -> Path:
    """The ``.onnx`` file that ``path`` names, checked to have its tokenizer beside it; raises ``BadInput``."""
    path = resolve_artifact(path)
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        raise BadInput(f"{file}: no such file; name an .onnx file, or a folder that holds {MODEL_FILE}")
    if not (file.parent / TOKENIZER_FILE).is_file():
        raise BadInput(f"{file.parent / TOKENIZER_FILE}: missing; a model needs its tokenizer beside it")
    return file


def _equal_lengths(tokens: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Rows in batches of one length, longest first so that the threads end together."""
    rows = sorted(range(len(tokens)), key=lambda row: (-len(tokens[row]), row))
    for length, group in groupby(rows, key=lambda row: len(tokens[row])):
        same, size = list(group), run_size(length)
        yield from (same[start : start + size] for start in range(0, len(same), size))


def _open_session(file: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    # One thread a run: runs go side by side, which needs no synchronization within a graph of small products.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no other base
        raise BadInput(f"{file}: not a model that ONNX Runtime can load ({_first_line(error)})") from error


def _open_tokenizer(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises plain Exception
        raise BadInput(f"{file}: not a tokenizer ({_first_line(error)})") from error


def _max_length(settings: dict[str, Any], config: dict[str, Any], tokenizer: Tokenizer) -> int:
    """Tokens per text: as exported, else as the tokenizer says, and never more than there are positions."""
    length = settings.get("max_length") or (tokenizer.truncation or {}).get("max_length") or DEFAULT_MAX_LENGTH
    return min(int(length), int(config.get("max_position_embeddings") or length))


def _check_vocabulary(tokenizer: Tokenizer, config: dict[str, Any], folder: Path) -> None:
    rows, tokens = config.get("vocab_size"), tokenizer.get_vocab_size()
    if rows is not None and tokens > rows:
        raise BadInput(
            f"{folder / TOKENIZER_FILE}: {tokens} tokens, but the model knows {rows}; this is another model's tokenizer"
        )


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a model folder, empty without the file; raises ``BadInput``."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise BadInput(f"{file}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise BadInput(f"{file}: expected a JSON object")
    return value


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
