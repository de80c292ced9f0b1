"""Passage embeddings on disk, and candidates scored by the cosine of their vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neuroranker_pipeline.datasets.tables import parquet_files, rechunked, write_table
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.progress import Progress, silent
from neuroranker_pipeline.ranking.device import Compute
from neuroranker_pipeline.ranking.distributed import World
from neuroranker_pipeline.ranking.models import BiEncoder
from neuroranker_pipeline.ranking.parts import ROWS_PER_PART, RowsOfTexts, infer_in_parts
from neuroranker_pipeline.ranking.scoring import scores_table, texts

ROWS_PER_PRODUCT = 65_536  # bounds the memory of gathered vectors to about 200 MB at 384 dimensions


class Encoder(Protocol):
    """Anything that turns n texts into unit vectors, (n, dimension) float32."""

    def encode(self, texts: list[str]) -> np.ndarray: ...


@dataclass(frozen=True)
class TorchEncoder:
    """A ``BiEncoder`` with its device and precision, as an ``Encoder``; ``work`` keeps finished parts of many texts."""

    model: BiEncoder
    compute: Compute
    work: Path | None = None

    def encode(self, texts: list[str]) -> np.ndarray:
        def column(part: pa.RecordBatch) -> tuple[list[str]]:
            return (part["text"].to_pylist(),)

        def kept(_: pa.RecordBatch, vectors: np.ndarray) -> pa.Table:
            return pa.table({"embedding": _as_column(vectors)})

        parts = pa.table({"text": pa.array(texts, pa.string())}).to_batches(max_chunksize=ROWS_PER_PART)
        rows = RowsOfTexts(parts, len(texts), column, self.model.tokenize, kept)
        tables = list(infer_in_parts(self.model, rows, self.compute, "encoding", work=self.work))
        vectors = [_as_vectors(table["embedding"].combine_chunks()) for table in tables]
        return np.concatenate([np.zeros((0, self.model.dimension), np.float32), *vectors])


@dataclass(frozen=True)
class Embeddings:
    """ids: n strings; vectors: (n, dimension) float32, each of length one."""

    ids: pa.Array
    vectors: np.ndarray

    def rows(self, ids: pa.ChunkedArray | pa.Array, field: str = "pid") -> np.ndarray:
        """The row of every id, int64; raises ``BadInput`` naming the first that is missing."""
        rows = pc.index_in(ids, value_set=self.ids)
        if rows.null_count:
            missing = ids.filter(pc.is_null(rows))[0].as_py()
            raise BadInput(f"{field} {missing!r} of the candidates has no embedding")
        return rows.to_numpy().astype(np.int64)


def embedding_schema(dimension: int) -> pa.Schema:
    """The table's schema: pid string, embedding fixed_size_list<float32>[dimension]."""
    return pa.schema([("pid", pa.string()), ("embedding", pa.list_(pa.float32(), dimension))])


def embed_passages(
    passages: Iterable[pa.RecordBatch],
    total: int,
    out: Path,
    model: BiEncoder,
    compute: Compute,
    progress: Progress = silent,
    work: Path | None = None,
    world: World = World(),
) -> int:
    """Embed ``total`` passages (batches of pid, text) into Parquet files in ``out``; returns how many.

    Streams: memory is bounded by three parts.
    work: keeps finished parts, so that the same call after ``kill -9`` goes on where it stopped and writes the same;
    world: the processes that share the work, of which the first writes ``out``. See ``infer_in_parts``.
    """
    schema = embedding_schema(model.dimension)

    def column(part: pa.RecordBatch) -> tuple[list[str]]:
        return (part["text"].to_pylist(),)

    def kept(part: pa.RecordBatch, vectors: np.ndarray) -> pa.Table:
        return pa.table([part["pid"], _as_column(vectors)], schema=schema)

    rows = RowsOfTexts(rechunked(passages, ROWS_PER_PART), total, column, model.tokenize, kept)
    tables = infer_in_parts(model, rows, compute, "encoding", progress, work, world)
    batches = (batch for table in tables for batch in table.combine_chunks().to_batches())
    return write_table(out, batches, schema) if world.main else sum(batch.num_rows for batch in batches)


def read_embeddings(folders: Path | list[Path], wanted: pa.Array | None = None) -> Embeddings:
    """Read embeddings written by ``embed_passages``, of the ``wanted`` pids alone where given.

    Memory is 8 bytes a component of what is kept, and one file.
    """
    files = [file for folder in ([folders] if isinstance(folders, Path) else folders) for file in parquet_files(folder)]
    parts = (pq.read_table(file) for file in files)
    kept = (part if wanted is None else part.filter(pc.is_in(part["pid"], wanted)) for part in parts)
    table = pa.concat_tables(kept).combine_chunks()
    return Embeddings(table["pid"].combine_chunks(), _as_vectors(table["embedding"].combine_chunks()))


def _as_column(vectors: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), vectors.shape[1])


def _as_vectors(column: pa.FixedSizeListArray) -> np.ndarray:
    return column.flatten().to_numpy().reshape(len(column), column.type.list_size)


def encode_texts(found: Mapping[str, str], ids: list[str], encoder: Encoder, field: str) -> Embeddings:
    """Encode the texts of some ids; raises ``BadInput`` for an id without text."""
    return Embeddings(pa.array(ids, pa.string()), encoder.encode(texts(ids, found, field)))


def cosine_scores(candidates: pa.Table, queries: Embeddings, passages: Embeddings) -> pa.Table:
    """The cosine of every (qid, pid) row of ``candidates``, as a scores table in the rows' order.

    Raises ``BadInput`` for a qid or pid without an embedding.
    """
    q, p = queries.rows(candidates["qid"], "qid"), passages.rows(candidates["pid"])
    scores = np.empty(len(q), np.float32)
    for start in range(0, len(q), ROWS_PER_PRODUCT):
        part = slice(start, start + ROWS_PER_PRODUCT)
        scores[part] = np.einsum("nd,nd->n", queries.vectors[q[part]], passages.vectors[p[part]])
    return scores_table(candidates, scores)


def rank_by_cosine(
    candidates: pa.Table, queries: Mapping[str, str], passages: Mapping[str, str], encoder: Encoder
) -> pa.Table:
    """Encode the queries and passages that ``candidates`` names and score its rows by cosine."""
    qids, pids = (sorted(pc.unique(candidates[name]).to_pylist()) for name in ("qid", "pid"))
    return cosine_scores(
        candidates, encode_texts(queries, qids, encoder, "qid"), encode_texts(passages, pids, encoder, "pid")
    )
