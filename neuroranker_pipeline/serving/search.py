"""Search of a packaged collection: BM25's candidates, ordered by the cosine of their stored vectors with the query's, and by
BM25's score as far as the model's weight of it goes.

A collection is a folder that :mod:`neuroranker_pipeline.serving.collection` writes. All of it but ``collection.json`` is
mapped into memory, where the kernel keeps what is asked for. A row of its vectors, ids and texts is a passage; rows
are in the order of the ids' bytes.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import time
from bisect import bisect_left
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from neuroranker_pipeline.errors import BadInput, NotReady
from neuroranker_pipeline.retrieval.jvm import start_jvm
from neuroranker_pipeline.retrieval.lucene import LuceneIndex
from neuroranker_pipeline.retrieval.settings import BM25Settings
from neuroranker_pipeline.serving.engine import Reranker
from neuroranker_pipeline.serving.interpolation import best_first, search_scores
from neuroranker_pipeline.serving.onnx_model import read_json

DEPTH = 100
"""Candidates of BM25, and so the most hits of a search."""
HEAP_MB = 128
"""Of Java. Lucene maps its index, so this does not grow with the collection."""

ABOUT_FILE = "collection.json"
INDEX_FOLDER = "index"
JAR_FILE = "anserini.jar"
VECTORS_FILE = "vectors.npy"
PIDS, TEXTS = "pids", "texts"
HINT = "build the Bento again"


@dataclass(frozen=True)
class Hit:
    """A passage found: its final rank, the final score that gave it, the cosine (``score``), and BM25's rank and score."""

    pid: str
    text: str
    rank: int
    final_score: float
    score: float
    bm25_rank: int
    bm25_score: float


@dataclass(frozen=True)
class Found:
    """Hits, best first; how many candidates they were chosen from; what ``bm25``, ``encode`` and ``rank`` took."""

    hits: list[Hit]
    candidates: int
    milliseconds: dict[str, float]


class CollectionSearch:
    """Two-stage search over a collection's folder. Any thread may search."""

    def __init__(self, folder: Path, reranker: Reranker) -> None:
        """Opens the index, and so starts the process's JVM unless it runs.

        Raises ``BadInput`` when a file of the collection is missing or does not belong to the others or to the model, and
        ``NotReady`` when Java does not start.
        """
        self.passages, settings = check_collection(folder, reranker.encoder.model_file)
        self.reranker = reranker
        self.bm25_weight = reranker.bm25_weight or 0.0
        self._pids, self._texts = (Strings(folder, name, self.passages) for name in (PIDS, TEXTS))
        self._vectors = open_vectors(folder, (self.passages, reranker.encoder.dimension))
        self._index = _open_index(folder, settings, self.passages)
        self.search("ready", 1)  # Java loads and links most of its classes at the first search

    def search(self, query: str, k: int) -> Found:
        """The ``k`` best passages, at most ``DEPTH``; none when no word of the query is in the collection.

        Equal final scores, as float32, are in the order of the pids, as in every run. Raises ``BadInput`` for a query of
        more than 65,536 terms.
        """
        clock = [time.perf_counter()]
        candidates = self._bm25(query)
        clock.append(time.perf_counter())
        vector = self.reranker.encode_query(query) if candidates else None
        clock.append(time.perf_counter())
        hits = [] if vector is None else self._ranked(candidates, vector, k)
        clock.append(time.perf_counter())
        took = [1000 * (after - before) for before, after in pairwise(clock)]
        return Found(hits, len(candidates), dict(zip(("bm25", "encode", "rank"), took, strict=True)))

    def close(self) -> None:
        """Release the index's files."""
        self._index.close()

    def _bm25(self, query: str) -> list[tuple[str, float]]:
        from jnius import detach

        try:
            return self._index.read(self._index.search([query]))[0]
        finally:
            detach()  # the server may end this thread at any time, and Java would keep it

    def _ranked(self, candidates: list[tuple[str, float]], vector: np.ndarray, k: int) -> list[Hit]:
        rows = [self._row(pid) for pid, _ in candidates]
        bm25 = [score for _, score in candidates]
        cosines, final = search_scores(self._vectors[rows], vector, bm25, self.bm25_weight)
        hits = []
        # Rows are in the order of the ids.
        for rank, position in enumerate(best_first(final, np.array(rows))[:k].tolist(), start=1):
            pid, bm25_score = candidates[position]
            text, scores = self._texts[rows[position]].decode(), (float(final[position]), float(cosines[position]))
            hits.append(Hit(pid, text, rank, *scores, position + 1, bm25_score))
        return hits

    def _row(self, pid: str) -> int:
        key = pid.encode()
        row = bisect_left(self._pids, key)
        if row == len(self._pids) or self._pids[row] != key:
            raise NotReady(f"passage {pid!r} is in the index and not among the texts; {HINT}")
        return row


class Strings:
    """UTF-8 strings by row, mapped into memory: one after another in ``NAME.bin``, and n + 1 offsets into it."""

    def __init__(self, folder: Path, name: str, rows: int) -> None:
        """Raises ``BadInput`` unless there are this many."""
        self._offsets = open_array(folder / f"{name}_offsets.npy", (rows + 1,), np.int64)
        file = folder / f"{name}.bin"
        try:
            with file.open("rb") as content:
                self._bytes = mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise BadInput(f"{file}: cannot be mapped into memory ({error}); {HINT}") from error
        if len(self._bytes) != self._offsets[-1]:
            raise BadInput(f"{file}: is {len(self._bytes)} bytes, should be {self._offsets[-1]}; {HINT}")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> bytes:
        return self._bytes[self._offsets[row] : self._offsets[row + 1]]


def open_vectors(folder: Path, shape: tuple[int, int]) -> np.ndarray:
    """The collection's unit vectors, float16, mapped into memory."""
    return open_array(folder / VECTORS_FILE, shape, np.float16)


def open_array(file: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An ``.npy`` file, mapped into memory; raises ``BadInput`` when it is not of this shape and type."""
    try:
        mapped = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BadInput(f"{file}: cannot be mapped into memory ({error}); {HINT}") from error
    if mapped.shape != shape or mapped.dtype != dtype:
        raise BadInput(
            f"{file}: {mapped.dtype} of shape {mapped.shape}, should be {np.dtype(dtype)} of shape {shape}; {HINT}"
        )
    return np.asarray(mapped)  # still mapped, and four times as fast to read from


def check_collection(folder: Path, model: Path) -> tuple[int, BM25Settings]:
    """The number of passages and BM25's settings, as the collection's builder wrote them.

    Raises ``BadInput`` when there is no collection, or its vectors are of another model than the ``.onnx`` file.
    """
    about = read_json(folder / ABOUT_FILE)
    if not about:
        raise BadInput(f"{folder / ABOUT_FILE}: missing; {HINT}")
    settings = _settings(folder / ABOUT_FILE, about)
    if model_digest(model) != about["model"]:
        raise BadInput(f"{folder}: its vectors are of another model than {model}; serve the model packaged with it")
    return about["passages"], settings


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A hard link where the file system can, so that a large file is not written again; else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def model_digest(file: Path) -> str:
    """What tells a model from others: the SHA-256 of its ``.onnx`` file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _settings(file: Path, about: dict[str, Any]) -> BM25Settings:
    """BM25's settings as the collection's builder wrote them."""
    known = {field.name for field in fields(BM25Settings)} - {"tune"}
    try:
        if not isinstance(about["passages"], int) or about["passages"] < 1 or not isinstance(about["model"], str):
            raise ValueError("no passages or no model")
        bm25 = {name: value for name, value in about["bm25"].items() if name in known}
        depth = min(bm25.get("depth", DEPTH), DEPTH)
        return BM25Settings(**{**bm25, "depth": depth, "threads": 1, "heap_mb": HEAP_MB})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{file}: not a description of a collection ({error!r}); {HINT}") from error


def _open_index(folder: Path, settings: BM25Settings, passages: int) -> LuceneIndex:
    if not (folder / JAR_FILE).is_file():
        raise BadInput(f"{folder / JAR_FILE}: missing; {HINT}")
    start_jvm(settings.heap_mb, settings.threads, folder / JAR_FILE)
    try:
        index = LuceneIndex(folder / INDEX_FOLDER, settings)
    except NotReady as error:
        raise BadInput(str(error)) from error
    if index.num_docs != passages:
        index.close()
        raise BadInput(f"{folder / INDEX_FOLDER}: {index.num_docs} passages, should be {passages}; {HINT}")
    return index
