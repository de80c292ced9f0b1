"""Rows of files, streamed: blocks of bytes become Arrow columns, with the line on which each row stands.

No Python object is made for a line of a TSV file. Lines that are no text (too long, not UTF-8, with NUL bytes) and
rows without their columns go to the rejects.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neuroranker_pipeline.datasets.archives import open_bytes
from neuroranker_pipeline.datasets.rejects import EXCERPT, Rejects
from neuroranker_pipeline.errors import BadInput

BLOCK_BYTES = 8 << 20
MAX_LINE_BYTES = 1 << 20
PARQUET_ROWS = 16_384


@dataclass(frozen=True)
class Rows:
    """Some rows of one file: the line of each (int64), and string columns, null where a value is missing."""

    file: str
    lines: np.ndarray
    columns: Mapping[str, pa.Array]

    def __len__(self) -> int:
        return len(self.lines)

    def having(self, **columns: pa.Array) -> Rows:
        """The same rows with these columns, new or in place of old ones."""
        return Rows(self.file, self.lines, {**self.columns, **columns})

    def filter(self, keep: np.ndarray) -> Rows:
        """The rows where ``keep`` (bool) is true."""
        if keep.all():
            return self
        mask = pa.array(keep)
        return Rows(self.file, self.lines[keep], {name: c.filter(mask) for name, c in self.columns.items()})

    def drop(
        self, bad: pa.Array | np.ndarray, reason: str, rejects: Rejects, shown: str, key: str | None = None
    ) -> Rows:
        """The rows where ``bad`` is false; the others are rejected, with their value in the column ``shown`` and, as
        their id, in ``key``."""
        mask = np.asarray(bad, dtype=bool)
        if not mask.any():
            return self
        dropped = self.filter(mask)
        excerpts = pc.fill_null(dropped.columns[shown], "").to_pylist()
        ids = pc.fill_null(dropped.columns[key], "").to_pylist() if key else [""] * len(dropped)
        for line, excerpt, identifier in zip(dropped.lines.tolist(), excerpts, ids, strict=True):
            rejects.add(self.file, line, reason, excerpt, identifier)
        return self.filter(~mask)


def text_lines(stream: IO[bytes], name: str, rejects: Rejects) -> Iterator[Rows]:
    """The lines of a UTF-8 stream that are not blank, as the column ``line``; line ends (also CRLF) are removed.

    Memory is bounded by ``BLOCK_BYTES`` and ``MAX_LINE_BYTES``. Raises ``BadInput`` for UTF-16.
    """
    number = 1
    for block in _whole_lines(stream):
        if number == 1:
            if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise BadInput(f"{name}: UTF-16 text; convert it to UTF-8")
            block = block.removeprefix(codecs.BOM_UTF8)
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + 1
        offsets = np.concatenate([[0], ends]).astype(np.int32)
        lines = pa.Array.from_buffers(pa.binary(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(block)])
        rows = Rows(name, number + np.arange(len(ends)), {"line": lines})
        yield _texts(rows, b"\0" in block, rejects)
        number += len(ends)


def _whole_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Blocks that end with a line end. Of a line that is longer than allowed only the beginning is kept, still too long."""
    tail, cut = b"", False
    while block := stream.read(BLOCK_BYTES):
        if cut:
            _, found, block = block.partition(b"\n")
            if not found:
                continue
            tail, cut = tail + b"\n", False
        data = tail + block
        end = data.rfind(b"\n") + 1
        tail = data[end:]
        if len(tail) > MAX_LINE_BYTES + 1:  # one for the "\r" of a CRLF
            tail, cut = tail[: MAX_LINE_BYTES + 2], True
        if end:
            yield data[:end]
    if tail:
        yield tail + b"\n"


def _texts(rows: Rows, nul: bool, rejects: Rejects) -> Rows:
    """Lines as strings: the others are rejected, blank ones are left out."""
    lines = rows.columns["line"]
    too_long = np.diff(np.frombuffer(lines.buffers()[1], np.int32)[: len(lines) + 1]) > MAX_LINE_BYTES + 2
    if nul or too_long.any() or not _is_utf8(lines):
        bad = {}
        for index, raw in enumerate(lines.to_pylist()):
            if reason := _no_text(raw, bool(too_long[index])):
                bad[index] = reason
                excerpt = raw[:EXCERPT].decode("utf-8", "replace").replace("\0", "\\0").rstrip()
                rejects.add(rows.file, int(rows.lines[index]), reason, excerpt)
        keep = np.ones(len(rows), bool)
        keep[list(bad)] = False
        rows = rows.filter(keep)
        lines = rows.columns["line"]
    texts = pc.ascii_rtrim(lines.cast(pa.string()), "\r\n")
    rows = Rows(rows.file, rows.lines, {"line": texts})
    return rows.filter(~np.asarray(pc.equal(pc.utf8_trim_whitespace(texts), ""), dtype=bool))


def _is_utf8(lines: pa.BinaryArray) -> bool:
    try:
        lines.cast(pa.string())
    except pa.ArrowInvalid:
        return False
    return True


def _no_text(raw: bytes, too_long: bool) -> str:
    """Why a line is no text; empty when it is."""
    if too_long:
        return f"longer than {MAX_LINE_BYTES:,} bytes"
    if b"\0" in raw:
        return "NUL byte"
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return "invalid UTF-8"
    return ""


def tsv_rows(stream: IO[bytes], name: str, columns: Sequence[str], rejects: Rejects) -> Iterator[Rows]:
    """Rows of tab-separated values without a header; the last column takes the rest of the line."""
    layout = "<TAB>".join(columns)
    for lines in text_lines(stream, name, rejects):
        yield _split(
            lines, pc.split_pattern(lines.columns["line"], "\t", max_splits=len(columns) - 1), columns, layout, rejects
        )


def spaced_rows(stream: IO[bytes], name: str, columns: Sequence[str], rejects: Rejects) -> Iterator[Rows]:
    """Rows of values with any white space between them, as in TREC's files."""
    layout = " ".join(columns)
    for lines in text_lines(stream, name, rejects):
        trimmed = pc.utf8_trim_whitespace(lines.columns["line"])
        yield _split(lines, pc.ascii_split_whitespace(trimmed), columns, layout, rejects)


def _split(lines: Rows, parts: pa.ListArray, columns: Sequence[str], layout: str, rejects: Rejects) -> Rows:
    wrong = np.asarray(pc.not_equal(pc.list_value_length(parts), len(columns)), dtype=bool)
    kept = lines.drop(wrong, f"expected {layout}", rejects, "line")
    values = (parts.filter(pa.array(~wrong)) if wrong.any() else parts).flatten()
    taken = {
        name: values.take(pa.array(np.arange(start, len(values), len(columns)))) for start, name in enumerate(columns)
    }
    return Rows(lines.file, kept.lines, taken)


def headed_rows(stream: IO[bytes], name: str, columns: Sequence[str], rejects: Rejects) -> Iterator[Rows]:
    """Rows of tab-separated values whose first line names the columns; only ``columns`` are returned.

    Raises ``BadInput`` when there is no header, or one that lacks some of them.
    """
    header: list[str] = []
    for lines in text_lines(stream, name, rejects):
        if not len(lines):
            continue
        if not header:
            header = [part.strip() for part in lines.columns["line"][0].as_py().split("\t")]
            if missing := [column for column in columns if column not in header]:
                where = f"{name}:{lines.lines[0]}"
                raise BadInput(f"{where}: no column {', '.join(missing)} in the header ({', '.join(header)[:200]})")
            lines = lines.filter(np.arange(len(lines)) > 0)
        rows = _split(lines, pc.split_pattern(lines.columns["line"], "\t"), header, "<TAB>".join(header), rejects)
        yield Rows(rows.file, rows.lines, {column: rows.columns[column] for column in columns})
    if not header:
        raise BadInput(f"{name}: empty; expected a first line that names the columns {', '.join(columns)}")


def json_rows(stream: IO[bytes], name: str, columns: Sequence[str], rejects: Rejects) -> Iterator[Rows]:
    """Rows of JSON objects, one a line. Strings and numbers are values; a missing or null one is null."""
    for lines in text_lines(stream, name, rejects):
        values: list[dict[str, Any]] = []
        keep = np.ones(len(lines), bool)
        for index, line in enumerate(lines.columns["line"].to_pylist()):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                values.append(row)
            else:
                keep[index] = False
                rejects.add(name, int(lines.lines[index]), "not a JSON object", line)
        taken = {column: pa.array([_text(row.get(column)) for row in values], pa.string()) for column in columns}
        yield Rows(name, lines.lines[keep], taken)


def _text(value: Any) -> str | None:
    """A JSON value as text; what is neither string nor number counts as missing, as do half surrogate pairs."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return text


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Rows]:
    """Rows of a Parquet file; a line is a row's number from 1. Raises ``BadInput`` when a column is missing."""
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if missing := [column for column in columns if column not in names]:
            raise BadInput(f"{path}: no column {', '.join(missing)}; its columns are {', '.join(names)}")
        number = 1
        for batch in file.iter_batches(PARQUET_ROWS, columns=list(columns)):
            taken = {column: batch[column].cast(pa.string()) for column in columns}
            for values in taken.values():
                values.validate(full=True)  # the file may say that bytes are text
            yield Rows(str(path), number + np.arange(batch.num_rows), taken)
            number += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path}: cannot be read as Parquet ({' '.join(str(error).split())})") from None


def file_rows(path: Path, columns: Sequence[str], rejects: Rejects) -> Iterator[Rows]:
    """Named columns of a ``.tsv`` (with a header), ``.jsonl`` or ``.parquet`` file; the first two may be ``.gz``."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        yield from parquet_rows(path, columns)
        return
    reader = {"tsv": headed_rows, "jsonl": json_rows}.get(kind)
    if reader is None:
        raise BadInput(f"{path}: expected a .tsv, .jsonl or .parquet file (the first two also as .gz)")
    with open_bytes(path) as stream:
        yield from reader(stream, str(path), columns, rejects)
