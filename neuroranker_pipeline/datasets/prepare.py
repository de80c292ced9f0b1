"""From the raw rows of a source's files to clean tables: one pass a file, every bad row accounted for.

A source module reads its files (:class:`RawSource`); what holds for all of them is here: ids and texts that must be
there, ids that must be unique, and which query belongs to which split.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.datasets.held_out import Carving
from neuroranker_pipeline.datasets.prefetch import prefetched
from neuroranker_pipeline.datasets.rejects import Rejects
from neuroranker_pipeline.datasets.repair import repaired
from neuroranker_pipeline.datasets.rows import Rows
from neuroranker_pipeline.datasets.seen import SeenIds
from neuroranker_pipeline.datasets.splits import CollectionSettings, Splits
from neuroranker_pipeline.datasets.tables import GIVEN, JUDGMENTS, PASSAGES, QUERIES
from neuroranker_pipeline.errors import BadInput

# Settings that say nothing about a table's content: changing them leaves the table fresh.
NOT_OF_PASSAGES = {
    "folder", "tests", "runs", "carve", "max_train_queries", "weight", "queries", "qrels", "train", "dev",
    "relevance_level", "queries_are_passages",
}  # fmt: skip
NOT_OF_OTHERS = {
    "folder", "repair_encoding", "weight", "passages", "titles", "text", "relevance_level", "queries_are_passages",
}  # fmt: skip

ELSEWHERE = "judgments of a query that another split holds"

NOTHING = r"^[\x00-\x20]*$"
"""Control characters are no text either: Lucene refuses a passage of nothing else."""
MAX_ID_BYTES = 512
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


class RawSource(Protocol):
    """What a module reads from its files, row by row; ``settings.folder`` is absolute.

    Columns are strings, null where a value is missing.
    """

    settings: CollectionSettings
    name: str
    licence: str

    def files(self, table: str) -> Sequence[Path]:
        """The files behind a table. Raises ``BadInput`` saying which is missing and where to put it."""
        ...

    def passage_rows(self, rejects: Rejects) -> Iterator[Rows]:
        """Columns pid, text."""
        ...

    def query_rows(self, rejects: Rejects) -> Iterator[Rows]:
        """Columns qid, text, of every split."""
        ...

    def judgment_rows(self, rejects: Rejects) -> Iterator[Rows]:
        """Columns qid, pid, grade (null: 1), split."""
        ...

    def run_rows(self, rejects: Rejects) -> Iterator[Rows]:
        """Columns qid, pid, score (null: the file's order counts), and split: the test set that the run is for."""
        ...


class PreparedSource:
    """A raw source as the pipeline wants it: a ``Source``."""

    def __init__(self, raw: RawSource) -> None:
        self.raw = raw
        self.name = raw.name

    @property
    def licence(self) -> str:
        return self.raw.licence

    def digest(self, table: str) -> str:
        left_out = NOT_OF_PASSAGES if table == "passages" else NOT_OF_OTHERS
        settings = {key: value for key, value in asdict(self.raw.settings).items() if key not in left_out}
        files = [(path.name, digest_of_file(path)) for path in self.raw.files(table)]  # BEIR's names say the split
        content = {"settings": settings, "files": files}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def passages(self, rejects: Rejects) -> Iterator[pa.RecordBatch]:
        seen, before = SeenIds(), rejects.total
        for rows in prefetched(self.raw.passage_rows(rejects)):
            rows = unique(usable(self._repaired(rows), ("pid", "text"), rejects), "pid", seen, rejects)
            rejects.accept(len(rows))
            yield _batch(rows, PASSAGES)
        if rejects.total == before:
            raise BadInput(f"{self._files('passages')}: no passages in it")

    def titles(self) -> Iterator[pa.RecordBatch]:
        if not hasattr(self.raw, "title_rows"):
            raise BadInput(f"{self.name}: its passages have no titles; choose another unjudged.source")
        seen, unread = SeenIds(), Rejects(1.0)  # a passage without a title is none the worse
        for rows in self.raw.title_rows(unread):
            rows = unique(usable(self._repaired(rows), ("pid", "text"), unread), "pid", seen, unread)
            yield _batch(rows, PASSAGES)

    def queries(self, rejects: Rejects) -> Iterator[pa.RecordBatch]:
        seen, before = SeenIds(), rejects.total
        for rows in self.raw.query_rows(rejects):
            rows = usable(rows, ("qid", "text"), rejects)
            qids = rows.columns["qid"].to_pylist()
            split = pa.array([self._splits.of(qid) for qid in qids], pa.string())
            wanted = np.asarray(split.is_valid(), bool)
            for why, count in Counter(self._splits.left_out(qids[row]) for row in np.flatnonzero(~wanted)).items():
                rejects.leave_out(why, count)
            rows = rows.having(split=split).filter(wanted)
            rows = unique(rows, "qid", seen, rejects)
            rejects.accept(len(rows))
            yield _batch(rows, QUERIES)
        if rejects.total == before and self.raw.settings.judged:
            raise BadInput(f"{self._files('queries')}: no queries with a judgment in it")

    def qrels(self, rejects: Rejects) -> Iterator[pa.RecordBatch]:
        splits = self._splits
        for rows in self.raw.judgment_rows(rejects):
            rows = _graded(usable(rows, ("qid", "pid"), rejects), rejects)
            qids, given = rows.columns["qid"].to_pylist(), rows.columns["split"].to_pylist()
            mine = np.fromiter((splits.given(q) == s for q, s in zip(qids, given, strict=True)), bool, len(rows))
            rejects.leave_out(ELSEWHERE, int((~mine).sum()))
            split = pa.array([splits.of(qid) for qid in qids], pa.string())
            rows = rows.having(split=split).filter(mine & np.asarray(split.is_valid(), bool))
            yield _batch(_placed(rows), JUDGMENTS)

    @property
    def carving(self) -> Carving:
        return self._splits.carving

    def candidates(self, rejects: Rejects) -> Iterator[pa.RecordBatch]:
        order = 0
        for rows in self.raw.run_rows(rejects):
            rows = usable(rows, ("qid", "pid"), rejects)
            wrong = pc.fill_null(pc.invert(pc.match_substring_regex(rows.columns["score"], NUMBER)), False)
            rows = rows.drop(wrong, "the score is no number", rejects, "score", "qid")
            scores = pc.cast(rows.columns["score"], pa.float32(), safe=False)
            in_order = pa.array(-(order + np.arange(len(rows), dtype=np.float32)))
            order += len(rows)
            yield _batch(_placed(rows.having(score=pc.coalesce(scores, in_order))), GIVEN)

    def _repaired(self, rows: Rows) -> Rows:
        return rows.having(text=repaired(rows.columns["text"])) if self.raw.settings.repair_encoding else rows

    def _files(self, table: str) -> str:
        return ", ".join(map(str, self.raw.files(table))) or self.name

    @cached_property
    def _splits(self) -> Splits:
        def judged() -> Iterator[tuple[str, str]]:
            for rows in self.raw.judgment_rows(Rejects(1.0)):  # bad rows are counted where the judgments are read
                rows = rows.filter(np.asarray(rows.columns["qid"].is_valid(), bool))
                qids = pc.utf8_trim_whitespace(rows.columns["qid"]).to_pylist()
                yield from zip(qids, rows.columns["split"].to_pylist(), strict=True)

        def texts() -> Iterator[tuple[str, str]]:
            for rows in self.raw.query_rows(Rejects(1.0)):  # bad rows are counted where the queries are read
                rows = usable(rows, ("qid", "text"), Rejects(1.0))
                yield from zip(rows.columns["qid"].to_pylist(), rows.columns["text"].to_pylist(), strict=True)

        return Splits(judged(), self.raw.settings, texts())


def usable(rows: Rows, columns: tuple[str, str], rejects: Rejects) -> Rows:
    """Rows with a value in both columns, trimmed; ids hold no white space, which TREC's files could not, and are short."""
    trimmed = {name: pc.utf8_trim_whitespace(rows.columns[name]) for name in columns}
    rows = rows.having(**trimmed)
    for name in columns:
        missing = pc.fill_null(pc.match_substring_regex(rows.columns[name], NOTHING), True)
        rows = rows.drop(missing, f"no {name}", rejects, columns[0], columns[0])
    for name in columns:
        if name != "text":
            spaced = pc.match_substring_regex(rows.columns[name], r"\s")
            rows = rows.drop(spaced, f"white space in the {name}", rejects, name, name)
            long = pc.greater(pc.binary_length(rows.columns[name]), MAX_ID_BYTES)
            rows = rows.drop(long, f"a {name} of more than {MAX_ID_BYTES} bytes", rejects, name, name)
    return rows


def unique(rows: Rows, key: str, seen: SeenIds, rejects: Rejects) -> Rows:
    """Rows whose id in the column ``key`` did not occur before."""
    return rows.drop(~seen.first_time(rows.columns[key]), f"repeated {key}", rejects, key, key)


def _graded(rows: Rows, rejects: Rejects) -> Rows:
    """Grades as int32; a missing one is 1."""
    grades = pc.fill_null(rows.columns["grade"], "1")
    bad = pc.invert(pc.match_substring_regex(grades, r"^[+-]?\d{1,9}(\.0*)?$"))
    rows = rows.having(grade=grades).drop(bad, "the grade is no whole number", rejects, "grade", "qid")
    return rows.having(grade=rows.columns["grade"].cast(pa.float64()).cast(pa.int32()))


def _placed(rows: Rows) -> Rows:
    return rows.having(file=pa.array([rows.file] * len(rows), pa.string()), line=pa.array(rows.lines, pa.int64()))


def _batch(rows: Rows, schema: pa.Schema) -> pa.RecordBatch:
    return pa.record_batch([rows.columns[name].cast(schema.field(name).type) for name in schema.names], schema=schema)


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's content, read again only when its size or time has changed."""
    status = path.stat()
    return _digest_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest_of(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
