"""Writes a collection's folder, which travels in the Bento and which :mod:`neuroranker_pipeline.serving.search` serves."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.datasets.tables import read_batches
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.retrieval.jvm import pyserini_jar
from neuroranker_pipeline.retrieval.settings import BM25Settings
from neuroranker_pipeline.serving.onnx_model import OnnxEncoder
from neuroranker_pipeline.serving.search import (
    ABOUT_FILE,
    INDEX_FOLDER,
    JAR_FILE,
    PIDS,
    TEXTS,
    VECTORS_FILE,
    Strings,
    link_or_copy,
    model_digest,
    open_vectors,
)

COMPARED = 9
LEAST_COSINE = 0.9
"""Of a passage's vector with the int8 model's: 0.98 and more for the same model, less than 0.5 for an unrelated one."""

# What BM25 needs of Pyserini's jar, six times as large: no ONNX Runtime for Java, no Parquet, no web server.
JAR_PARTS = (
    "io/anserini/",
    "org/apache/lucene/",
    "org/apache/logging/log4j/",
    "org/apache/commons/",
    "org/tartarus/snowball/",
    "com/carrotsearch/hppc/",
    "com/fasterxml/jackson/",
    "morfologik/",  # Polish and
    "ua/net/nlp/",  # Ukrainian
    "META-INF/MANIFEST.MF",
    "META-INF/LICENSE",
    "META-INF/NOTICE",
    "META-INF/services/org.apache.l",
    "META-INF/org/apache/logging/log4j/",
    "META-INF/versions/",
)


def write_collection(
    out: Path,
    passages: Callable[[], Iterable[pa.RecordBatch]],
    embeddings: Sequence[Path],
    index: Path,
    model: Path,
    bm25: BM25Settings,
) -> int:
    """Write a collection into ``out``, a new folder; returns its number of passages.

    passages: gives the batches (pid, text), the same ones at each of two calls; embeddings: the folders that
    ``embed_passages`` wrote, of these passages or more; index: of these passages, with the analyzer of ``bm25``; model:
    the ONNX folder that will encode the queries.

    Streams: memory is bounded by the ids, some 100 bytes a passage, and a batch. Raises ``BadInput`` when there is no
    passage, an id comes twice, a passage has no embedding, or the embeddings cannot be the model's.
    """
    encoder = OnnxEncoder(model)
    out.mkdir(parents=True)
    ids, lengths = _ids_and_lengths(passages())
    order = pc.sort_indices(ids)  # by the bytes of their UTF-8
    pids = ids.take(order)
    _demand_different(pids)
    _write_strings(out, PIDS, pc.binary_length(pids), [(np.arange(len(pids)), pids)])
    _write_strings(out, TEXTS, lengths.take(order), ((_rows(batch, pids), batch["text"]) for batch in passages()))
    _write_vectors(out / VECTORS_FILE, pids, embeddings, encoder.dimension)
    _demand_vectors_of(encoder, out, len(pids))
    shutil.copytree(index, out / INDEX_FOLDER, copy_function=link_or_copy)
    write_jar(pyserini_jar(), out / JAR_FILE)
    about = {
        "passages": len(pids),
        "model": model_digest(encoder.model_file),
        "bm25": {name: getattr(bm25, name) for name in ("depth", "k1", "b", "language", "stemmer", "keep_stopwords")},
    }
    (out / ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    return len(pids)


def write_jar(source: Path, target: Path) -> None:
    """Copy what BM25 needs out of Pyserini's jar (``JAR_PARTS``)."""
    with zipfile.ZipFile(source) as jar, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as kept:
        for entry in jar.infolist():
            if entry.filename.startswith(JAR_PARTS) and not entry.is_dir():
                kept.writestr(entry, jar.read(entry))


def compared_rows(passages: int) -> np.ndarray:
    """The rows, at most ``COMPARED``, of the passages whose vectors are compared with the model's."""
    return np.unique(np.linspace(0, passages - 1, COMPARED).astype(int))


def _ids_and_lengths(passages: Iterable[pa.RecordBatch]) -> tuple[pa.Array, pa.Array]:
    """Every passage's id, and its text's bytes."""
    parts = [(batch["pid"], pc.binary_length(batch["text"])) for batch in passages]
    if not sum(len(pids) for pids, _ in parts):
        raise BadInput("there is no passage to search")
    pids, lengths = (pa.chunked_array(list(column)).combine_chunks() for column in zip(*parts, strict=True))
    return pids, lengths


def _demand_different(pids: pa.Array) -> None:
    same = pc.equal(pids[1:], pids[:-1])
    if pc.any(same).as_py():
        raise BadInput(f"two passages have the id {pids[pc.index(same, True).as_py()].as_py()!r}")


def _rows(batch: pa.RecordBatch, pids: pa.Array) -> np.ndarray:
    """The row of each of the batch's passages among all."""
    return pc.index_in(batch["pid"], value_set=pids).to_numpy()


def _write_strings(
    out: Path, name: str, lengths: pa.Array, parts: Iterable[tuple[np.ndarray, pa.Array | pa.ChunkedArray]]
) -> None:
    """Strings by row, as ``search.Strings`` reads them; every part has the rows of its strings."""
    offsets = np.concatenate([[0], np.cumsum(lengths.to_numpy(), dtype=np.int64)])
    np.save(out / f"{name}_offsets.npy", offsets)
    with (out / f"{name}.bin").open("wb") as file:
        for rows, strings in parts:
            for offset, text in zip(offsets[rows].tolist(), strings.cast(pa.binary()).to_pylist(), strict=True):
                os.pwrite(file.fileno(), text, offset)


def _write_vectors(file: Path, pids: pa.Array, folders: Sequence[Path], dimension: int) -> None:
    """Every passage's vector as float16, by row."""
    shape, missing = (len(pids), dimension), np.ones(len(pids), bool)
    np.lib.format.open_memmap(file, "w+", np.float16, shape).flush()
    for batch in (batch for folder in folders for batch in read_batches(folder)):
        found = batch["embedding"].type.list_size
        if found != dimension:
            raise BadInput(
                f"the embeddings have {found} components, and the model's {dimension}; embed the passages again"
            )
        rows = pc.index_in(batch["pid"], value_set=pids)  # null for a passage of another collection
        known = rows.is_valid().to_numpy(zero_copy_only=False)
        rows, vectors = rows.drop_null().to_numpy(), batch["embedding"].flatten().to_numpy().reshape(-1, dimension)
        # Mapped anew for each batch, which lets go of the pages that were written.
        np.load(file, mmap_mode="r+", allow_pickle=False)[rows] = vectors[known]
        missing[rows] = False
    if missing.any():
        raise BadInput(f"passage {pids[int(missing.argmax())].as_py()!r} has no embedding; embed the passages again")


def _demand_vectors_of(encoder: OnnxEncoder, folder: Path, passages: int) -> None:
    """Compare a few passages' vectors with those that the model, whose int8 weights are not the trained ones, computes."""
    rows = compared_rows(passages)
    texts = Strings(folder, TEXTS, passages)
    stored = open_vectors(folder, (passages, encoder.dimension))[rows].astype(np.float32)
    cosine = float(np.median((encoder.encode([texts[row].decode() for row in rows]) * stored).sum(axis=1)))
    if not cosine >= LEAST_COSINE:
        raise BadInput(
            f"the embeddings are of another model than {encoder.model_file}: their cosine with what it computes is "
            f"{cosine:.2f}; embed the passages again"
        )
