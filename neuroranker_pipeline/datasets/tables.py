"""The tables that pass between the parts: their schemas, and reading and writing them as Parquet folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from neuroranker_pipeline.errors import BadInput, NotReady

SPLITS = ("train", "dev", "gate", "test")

PASSAGES = pa.schema([("pid", pa.string()), ("text", pa.string())])
QUERIES = pa.schema([("qid", pa.string()), ("text", pa.string()), ("split", pa.string())])
QRELS = pa.schema([("qid", pa.string()), ("pid", pa.string()), ("grade", pa.int32()), ("split", pa.string())])
CANDIDATES = pa.schema([("qid", pa.string()), ("pid", pa.string()), ("rank", pa.int32()), ("score", pa.float32())])
SCORES = pa.schema([("qid", pa.string()), ("pid", pa.string()), ("score", pa.float32())])
TEACHER_SCORES = SCORES.append(pa.field("cross_encoder", pa.float32()))
RANKER_VALUES = pa.schema(
    [("ranker", pa.string()), ("measure", pa.string()), ("qid", pa.string()), ("value", pa.float64())]
)

# Rows from outside on their way into a table, with the place they stand at.
PLACE = [("file", pa.string()), ("line", pa.int64())]
JUDGMENTS = pa.schema([*QRELS, *PLACE])
GIVEN = pa.schema([*SCORES, ("split", pa.string()), *PLACE])

ROWS_PER_FILE = 500_000


def is_split(name: str) -> bool:
    """One of the four splits, or a further test split such as ``test-dl19``."""
    return name in SPLITS or (name.startswith("test-") and len(name) > len("test-"))


def write_table(
    folder: Path,
    data: pa.Table | Iterable[pa.RecordBatch],
    schema: pa.Schema,
    rows_per_file: int = ROWS_PER_FILE,
) -> int:
    """Write ``data`` as ``part-00000.parquet``, ... (zstd) in ``folder``; returns the number of rows.

    Streams: memory is bounded by one batch. An empty input still writes one file, so that the schema is readable.
    Raises ``NotReady`` when the disk is full, or cannot be written to.
    """
    batches: Iterator[pa.RecordBatch] = iter(data.to_batches() if isinstance(data, pa.Table) else data)
    folder.mkdir(parents=True, exist_ok=True)
    rows, part, in_file = 0, 0, 0
    writer = pq.ParquetWriter(folder / f"part-{part:05d}.parquet", schema, compression="zstd")
    try:
        for batch in batches:
            if in_file >= rows_per_file:
                writer.close()
                part, in_file = part + 1, 0
                writer = pq.ParquetWriter(folder / f"part-{part:05d}.parquet", schema, compression="zstd")
            writer.write_batch(batch.cast(schema))
            in_file += batch.num_rows
            rows += batch.num_rows
        writer.close()
    except OSError as error:
        raise NotReady(f"{folder}: cannot be written ({error})") from None
    finally:
        with suppress(OSError):
            writer.close()
    return rows


def read_table(folders: Path | Sequence[Path], columns: list[str] | None = None) -> pa.Table:
    """Read the Parquet files of one folder, or of several in the given order, as one table.

    Raises ``BadInput`` when a folder holds no Parquet file.
    """
    return pa.concat_tables(ds.dataset(parquet_files(f)).to_table(columns=columns) for f in _listed(folders))


def read_batches(folder: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Stream the Parquet files of a folder in file order."""
    for file in parquet_files(folder):
        yield from pq.ParquetFile(file).iter_batches(columns=columns)


def read_rows(folder: Path, rows: slice, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Stream the rows ``start`` to ``stop`` of a Parquet folder, counted over its files in order."""
    first = 0
    for file in parquet_files(folder):
        if first >= rows.stop:
            return
        parquet = pq.ParquetFile(file)
        if first + parquet.metadata.num_rows > rows.start:
            for batch in parquet.iter_batches(columns=columns):
                start, stop = max(rows.start - first, 0), min(rows.stop - first, batch.num_rows)
                if start < stop:
                    yield batch.slice(start, stop - start)
                first += batch.num_rows
        else:
            first += parquet.metadata.num_rows


def rechunked(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of ``rows`` (the last may be smaller)."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(part.num_rows for part in waiting) >= rows:
            *full, last = pa.Table.from_batches(waiting).combine_chunks().to_batches(max_chunksize=rows)
            yield from full if last.num_rows < rows else [*full, last]
            waiting = [last] if last.num_rows < rows else []
    if waiting:
        yield from pa.Table.from_batches(waiting).combine_chunks().to_batches(max_chunksize=rows)


def read_texts(folder: Path, key: str, wanted: Iterable[str] | None = None) -> dict[str, str]:
    """``{id: text}`` of a passages or queries folder (``key`` is pid or qid), of the ``wanted`` ids alone when given.

    A file at a time, so that a few texts of a large collection need little memory.
    """
    ids = None if wanted is None else pa.array(sorted(set(wanted)), pa.string())
    found: dict[str, str] = {}
    for file in parquet_files(folder):
        table = pq.read_table(file, columns=[key, "text"])
        rows = table if ids is None else table.filter(pc.is_in(table[key], ids))
        found.update(zip(rows[key].to_pylist(), rows["text"].to_pylist(), strict=True))
    return found


def count_rows(folder: Path) -> int:
    """Rows in a Parquet folder, read from the file footers alone."""
    return sum(pq.ParquetFile(file).metadata.num_rows for file in parquet_files(folder))


def parquet_files(folder: Path) -> list[str]:
    """The folder's Parquet files in name order, or the one file given; raises ``BadInput`` when there is none."""
    if folder.is_file():
        return [str(folder)]
    files = sorted(str(file) for file in folder.glob("*.parquet"))
    if not files:
        raise BadInput(f"{folder}: no Parquet file here; run the asset that writes it first")
    return files


def _listed(folders: Path | Sequence[Path]) -> Sequence[Path]:
    return [folders] if isinstance(folders, Path) else folders
