"""Raw files of every kind, made for a test, and tables of a few rows."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa

from neuroranker_pipeline.datasets.prepare import PreparedSource
from neuroranker_pipeline.datasets.rejects import Rejects
from neuroranker_pipeline.datasets.rows import Rows
from neuroranker_pipeline.datasets.tables import JUDGMENTS, PASSAGES, QUERIES

Member = tuple[str, bytes] | tarfile.TarInfo


def archive(path: Path, *members: Member) -> Path:
    """A tar archive (gzipped where its name says so) of (name, content) pairs and of headers without content."""
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as out:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                out.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                out.addfile(info, io.BytesIO(member[1]))
    return path


def header(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def write(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """The files with these contents in ``folder``; what is named ``.gz`` is packed."""
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder


def values(found: Iterable[Rows], *columns: str) -> list[tuple]:
    """(line, value of each column) of every row."""
    return [
        row
        for rows in found
        for row in zip(rows.lines.tolist(), *(rows.columns[name].to_pylist() for name in columns), strict=True)
    ]


def reasons(rejects: Rejects) -> list[tuple[int, str]]:
    return [(row["line"], row["reason"]) for row in rejects.table().to_pylist()]


def table(schema: pa.Schema, *rows: tuple) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)


def tuples(batches: Iterable[pa.RecordBatch] | pa.Table, schema: pa.Schema) -> list[tuple]:
    """The rows of a table or of a stream of batches."""
    whole = batches if isinstance(batches, pa.Table) else pa.Table.from_batches(batches, schema)
    assert whole.schema == schema
    return [tuple(row.values()) for row in whole.to_pylist()]


def passages(source: PreparedSource, rejects: Rejects | None = None) -> list[tuple]:
    return tuples(source.passages(rejects or Rejects()), PASSAGES)


def queries(source: PreparedSource, rejects: Rejects | None = None) -> list[tuple]:
    return tuples(source.queries(rejects or Rejects()), QUERIES)


def qrels(source: PreparedSource, rejects: Rejects | None = None) -> list[tuple]:
    """(qid, pid, grade, split) of every judgment."""
    return [row[:4] for row in tuples(source.qrels(rejects or Rejects()), JUDGMENTS)]
