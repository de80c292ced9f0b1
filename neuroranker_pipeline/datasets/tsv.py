"""Queries and passages from tab-separated files (plain, .gz, or members of a .tar.gz) and from Parquet
folders.

Everything is streamed: an archive is never extracted to disk, only its regular members are read, and a line has a
bounded length.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa

from neuroranker_pipeline.datasets.archives import ARCHIVES, open_bytes, open_members
from neuroranker_pipeline.datasets.rows import MAX_LINE_BYTES
from neuroranker_pipeline.datasets.tables import read_batches
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.pointer import resolve_artifact

Line = tuple[str, str]
"""(where it stands, ``file:line``; its text without the line end)."""


def read_queries_tsv(path: Path) -> dict[str, str]:
    """Read ``qid<TAB>text`` lines. Raises ``BadInput`` naming file and line for a bad line or a repeated qid."""
    queries: dict[str, str] = {}
    for where, qid, text in _rows(path, "qid"):
        if qid in queries:
            raise BadInput(f"{where}: query {qid} occurs twice")
        queries[qid] = text
    if not queries:
        raise BadInput(f"{path}: no query in it")
    return queries


def read_passages(path: Path, wanted: set[str] | None = None) -> dict[str, str]:
    """Read pid -> text from ``pid<TAB>text`` lines or a Parquet folder; only the ``wanted`` pids where given.

    Reading stops once every wanted pid is found; a pid that is not there is simply missing from the answer.
    Memory is that of the texts returned. Raises ``BadInput`` naming file and line for a bad line or a
    repeated pid.
    """
    passages: dict[str, str] = {}
    rows = _parquet_rows(resolve_artifact(path)) if path.is_dir() else _rows(path, "pid")
    for where, pid, text in rows:
        if wanted is not None and pid not in wanted:
            continue
        if pid in passages:
            raise BadInput(f"{where}: passage {pid} occurs twice")
        passages[pid] = text
        if wanted is not None and len(passages) == len(wanted):
            break
    return passages


def read_lines(path: Path) -> Iterator[Line]:
    """Stream the non-blank lines of a UTF-8 text file, a .gz of one, or every .tsv and .txt member of an
    archive.
    """
    if path.name.endswith(ARCHIVES):
        yield from _archive_lines(path)
    else:
        with open_bytes(path) as stream:
            yield from _lines(stream, str(path))


def _archive_lines(path: Path) -> Iterator[Line]:
    found = False
    for name, stream in open_members(path):
        if name.endswith((".tsv", ".txt")):
            found = True
            yield from _lines(stream, f"{path}({name})")
    if not found:
        raise BadInput(f"{path}: no .tsv or .txt file in this archive")


def _lines(stream: IO[bytes], name: str) -> Iterator[Line]:
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        where = f"{name}:{number}"
        if len(raw) > MAX_LINE_BYTES:
            raise BadInput(f"{where}: longer than {MAX_LINE_BYTES} bytes; is this a text file?")
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise BadInput(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); convert the file") from error
        if line.strip():
            yield where, line


def _rows(path: Path, key: str) -> Iterator[tuple[str, str, str]]:
    for where, line in read_lines(path):
        identifier, tab, text = line.partition("\t")
        identifier, text = identifier.strip(), text.strip()
        if not (tab and identifier and text):
            raise BadInput(f"{where}: expected {key}<TAB>text, got {line[:60]!r}")
        yield where, identifier, text


def _parquet_rows(folder: Path) -> Iterator[tuple[str, str, str]]:
    try:
        for batch in read_batches(folder, columns=["pid", "text"]):
            for pid, text in zip(batch.column("pid").to_pylist(), batch.column("text").to_pylist(), strict=True):
                yield str(folder), pid, text
    except (pa.ArrowException, KeyError) as error:
        raise BadInput(f"{folder}: not Parquet files with the columns pid and text ({error})") from error
