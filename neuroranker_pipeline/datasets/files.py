"""``files``: anyone's own collection, as TSV (with a header), JSONL or Parquet files with named columns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.datasets.rejects import Rejects
from neuroranker_pipeline.datasets.rows import Rows, file_rows
from neuroranker_pipeline.datasets.splits import FORBID, CollectionSettings
from neuroranker_pipeline.errors import BadInput, require


def _require_relative(file: str) -> None:
    require(bool(file) and not Path(file).is_absolute(), "file", "a name or pattern below data.folder", file)


@dataclass(frozen=True)
class PassageFile:
    """A file (or ``*`` pattern of files), its id column, and the text columns, joined by a space."""

    file: str = "passages.tsv"
    id: str = "pid"
    text: tuple[str, ...] = ("text",)

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID

    def __post_init__(self) -> None:
        _require_relative(self.file)
        require(bool(self.text), "text", "at least one column", self.text)


@dataclass(frozen=True)
class QueryFile:
    """A file of queries. ``split`` names a column that says train, dev, gate, test or test-<name>; without it the
    judgments may say so, and otherwise splits are carved from the queries."""

    file: str = "queries.tsv"
    id: str = "qid"
    text: str = "text"
    split: str | None = None

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID

    def __post_init__(self) -> None:
        _require_relative(self.file)


@dataclass(frozen=True)
class JudgmentFile:
    """A file of judgments; without a ``grade`` column every judged passage is relevant (1)."""

    file: str = "qrels.tsv"
    query: str = "qid"
    passage: str = "pid"
    grade: str | None = None
    split: str | None = None

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID

    def __post_init__(self) -> None:
        _require_relative(self.file)


@dataclass(frozen=True, kw_only=True)
class FilesSettings(CollectionSettings):
    """The three files, below ``folder``; licence: on what terms, for the report.

    With ``queries: null`` and ``qrels: null`` there are passages alone, and the student learns from queries made of them
    (``unjudged``)."""

    source: Literal["files"] = "files"
    folder: str = "."
    passages: PassageFile = field(default_factory=PassageFile)
    queries: QueryFile | None = field(default_factory=QueryFile)
    qrels: JudgmentFile | None = field(default_factory=JudgmentFile)
    tests: tuple[str, ...] = ("test",)
    licence: str = "the user's own data"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.tests), "tests", "at least one split", self.tests)
        for name in self.tests:
            good = re.fullmatch(r"test(-[A-Za-z0-9_.-]+)?", name) is not None
            require(good, "tests", "test or test-<name> of letters, digits, '.', '_' and '-'", name)
        if self.queries is None or self.qrels is None:
            require(self.queries is self.qrels, "qrels", "null where queries is null, and only there", self.qrels)
        else:
            both = self.queries.split is not None and self.qrels.split is not None
            require(not both, "qrels.split", "left out where queries.split is given", self.qrels.split)

    @property
    def judged(self) -> bool:
        return self.queries is not None

    @property
    def test_splits(self) -> tuple[str, ...]:
        return self.tests


class FilesSource:
    """The raw rows of a user's files."""

    def __init__(self, settings: FilesSettings) -> None:
        self.settings = settings
        self._folder = Path(settings.folder)
        self.name = f"files/{self._folder.resolve().name}"
        self.licence = settings.licence

    def files(self, table: str) -> Sequence[Path]:
        settings = self.settings
        if table == "passages":
            return self._matching(settings.passages.file)
        if table == "candidates" or settings.queries is None or settings.qrels is None:
            return []
        return [*self._matching(settings.queries.file), *self._matching(settings.qrels.file)]

    def passage_rows(self, rejects: Rejects) -> Iterator[Rows]:
        spec = self.settings.passages
        for path in self._matching(spec.file):
            for rows in file_rows(path, (spec.id, *spec.text), rejects):
                parts = [pc.fill_null(rows.columns[name], "") for name in spec.text]
                yield rows.having(pid=rows.columns[spec.id], text=pc.binary_join_element_wise(*parts, " "))

    def title_rows(self, rejects: Rejects) -> Iterator[Rows]:
        spec = self.settings.passages
        if len(spec.text) < 2:
            raise BadInput("data.passages.text: titles as queries need two columns, the title's first")
        for path in self._matching(spec.file):
            for rows in file_rows(path, (spec.id, spec.text[0]), rejects):
                yield rows.having(pid=rows.columns[spec.id], text=rows.columns[spec.text[0]])

    def query_rows(self, rejects: Rejects) -> Iterator[Rows]:
        spec = self.settings.queries
        if spec is None:
            return
        wanted = [name for name in (spec.id, spec.text, spec.split) if name is not None]
        for path in self._matching(spec.file):
            for rows in file_rows(path, wanted, rejects):
                split = rows.columns[spec.split] if spec.split else pa.nulls(len(rows), pa.string())
                yield rows.having(qid=rows.columns[spec.id], text=rows.columns[spec.text], split=split)

    def judgment_rows(self, rejects: Rejects) -> Iterator[Rows]:
        spec, split_of = self.settings.qrels, self._splits_of_queries()
        if spec is None:
            return
        wanted = [name for name in (spec.query, spec.passage, spec.grade, spec.split) if name is not None]
        for path in self._matching(spec.file):
            for rows in file_rows(path, wanted, rejects):
                qids, nothing = pc.utf8_trim_whitespace(rows.columns[spec.query]), pa.nulls(len(rows), pa.string())
                if spec.split:
                    split = pc.fill_null(pc.utf8_trim_whitespace(rows.columns[spec.split]), "train")
                else:
                    split = pa.array([split_of.get(qid, "train") for qid in qids.to_pylist()], pa.string())
                grade = rows.columns[spec.grade] if spec.grade else nothing
                yield rows.having(qid=qids, pid=rows.columns[spec.passage], grade=grade, split=split)

    def run_rows(self, rejects: Rejects) -> Iterator[Rows]:
        return iter(())

    def _splits_of_queries(self) -> dict[str, str]:
        if self.settings.queries is None or self.settings.queries.split is None:
            return {}
        found: dict[str, str] = {}
        for rows in self.query_rows(Rejects(1.0)):  # bad rows are counted where the queries are read
            qids, given = (pc.utf8_trim_whitespace(rows.columns[name]).to_pylist() for name in ("qid", "split"))
            found.update((qid, split) for qid, split in zip(qids, given, strict=True) if qid and split)
        return found

    def _matching(self, pattern: str) -> list[Path]:
        found = sorted(path for path in self._folder.glob(pattern) if path.is_file())
        if not found:
            raise BadInput(f"{self._folder}: no file {pattern} there; put it there, or name another in data")
        return found
