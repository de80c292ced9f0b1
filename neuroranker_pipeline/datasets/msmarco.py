"""``msmarco``: MS MARCO Passage Ranking from the raw files as published, with TREC Deep Learning's test sets.

The files: https://microsoft.github.io/msmarco/Datasets and https://trec.nist.gov/data/deep2019.html (and 2020). Each may
lie unpacked, as ``.gz``, or in the archive it came in; nothing is unpacked to disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Literal

import pyarrow as pa

from neuroranker_pipeline.datasets.archives import ARCHIVES, open_bytes, open_members
from neuroranker_pipeline.datasets.rejects import Rejects
from neuroranker_pipeline.datasets.rows import Rows, spaced_rows, tsv_rows
from neuroranker_pipeline.datasets.splits import CollectionSettings
from neuroranker_pipeline.errors import BadInput, require

WHOLE = "collectionandqueries.tar.gz"

Reader = Callable[[IO[bytes], str, Sequence[str], Rejects], Iterator[Rows]]


@dataclass(frozen=True)
class TestSet:
    """The files of one TREC Deep Learning test set."""

    queries: str
    qrels: str
    relevance_level: int = 2
    """TREC DL: passages graded 1 ("related") do not count as relevant in binary measures."""


TESTS = {
    "dl19": TestSet("msmarco-test2019-queries.tsv", "2019qrels-pass.txt"),
    "dl20": TestSet("msmarco-test2020-queries.tsv", "2020qrels-pass.txt"),
}


@dataclass(frozen=True, kw_only=True)
class MsMarcoSettings(CollectionSettings):
    """tests: which TREC DL test sets are there, each a split ``test-<name>``; without one, ``test`` is carved from dev.
    runs: candidates given for a test set in place of retrieval, by its name: a TREC run, or a ``top1000.tsv[.gz]``
    (qid, pid, query, passage), below ``folder``.
    """

    source: Literal["msmarco"] = "msmarco"
    folder: str = "msmarco"
    tests: tuple[str, ...] = ("dl19", "dl20")
    runs: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.tests:
            require(name in TESTS, "tests", f"among {', '.join(TESTS)}", name)
        for name in self.runs:
            require(name in self.tests, "runs", f"for one of the tests ({', '.join(self.tests)})", name)

    @property
    def test_splits(self) -> tuple[str, ...]:
        return tuple(f"test-{name}" for name in self.tests) or ("test",)

    def relevance_level(self, split: str) -> int:
        test = TESTS.get(split.removeprefix("test-"))
        return test.relevance_level if test else 1


class MsMarcoSource:
    """The raw rows of MS MARCO's files."""

    name = "msmarco"
    licence = "MS MARCO (Microsoft), non-commercial research use only; TREC DL judgments (NIST)"

    def __init__(self, settings: MsMarcoSettings) -> None:
        self.settings = settings
        self._folder = Path(settings.folder)

    def files(self, table: str) -> Sequence[Path]:
        found: list[Path] = []
        if table == "passages":
            found.append(self._find("collection.tsv", "collection.tar.gz", WHOLE))
        if table == "queries":
            found += [path for path, _ in self._query_files()]
        if table in ("queries", "qrels"):
            found += [path for path, _, _ in self._judgment_files()]
        if table == "candidates":
            found += [self._find(file) for file in self.settings.runs.values()]
        return list(dict.fromkeys(found))

    def passage_rows(self, rejects: Rejects) -> Iterator[Rows]:
        path = self._find("collection.tsv", "collection.tar.gz", WHOLE)
        yield from _tsv(path, "collection.tsv", ("pid", "text"), rejects)

    def query_rows(self, rejects: Rejects) -> Iterator[Rows]:
        for path, member in self._query_files():
            yield from _tsv(path, member, ("qid", "text"), rejects)

    def judgment_rows(self, rejects: Rejects) -> Iterator[Rows]:
        for path, member, split in self._judgment_files():
            for rows in _opened(path, member, spaced_rows, ("qid", "0", "pid", "grade"), rejects):
                yield rows.having(split=pa.array([split] * len(rows), pa.string()))

    def run_rows(self, rejects: Rejects) -> Iterator[Rows]:
        for file in self.settings.runs.values():
            path = self._find(file)
            if path.name.removesuffix(".gz").endswith(".tsv"):
                for rows in _tsv(path, path.name, ("qid", "pid", "query", "passage"), rejects):
                    yield rows.having(score=pa.nulls(len(rows), pa.string()))
            else:
                yield from _opened(path, path.name, spaced_rows, ("qid", "Q0", "pid", "rank", "score", "tag"), rejects)

    def _query_files(self) -> list[tuple[Path, str]]:
        """(file, member) of every file with query texts; those of the development set once."""
        files = [self._member("queries.train.tsv"), self._member("queries.dev.tsv", "queries.dev.small.tsv")]
        tests = [TESTS[name].queries for name in self.settings.tests]
        return files + [(self._find(name), name) for name in tests]

    def _judgment_files(self) -> list[tuple[Path, str, str]]:
        """(file, member, split); the small development set is preferred, for it is what the field reports on."""
        train = self._member("qrels.train.tsv")
        dev = self._member("qrels.dev.small.tsv", "qrels.dev.tsv")
        tests = [(TESTS[name].qrels, f"test-{name}") for name in self.settings.tests]
        return [(*train, "train"), (*dev, "dev"), *((self._find(name), name, split) for name, split in tests)]

    def _member(self, *names: str) -> tuple[Path, str]:
        """Where one of these files is: by itself, or in an archive that holds it."""
        for name in names:
            if path := self._there(name):
                return path, name
        archives = ["queries.tar.gz"] * names[0].startswith("queries") + [WHOLE]
        for archive in archives:
            path = self._folder / archive
            if path.is_file():
                held = _names(path)
                for name in names:
                    if name in held:
                        return path, name
        raise self._missing(*names, *archives)

    def _find(self, *names: str) -> Path:
        for name in names:
            if path := self._there(name):
                return path
        raise self._missing(*names)

    def _there(self, name: str) -> Path | None:
        for path in (self._folder / name, self._folder / f"{name}.gz"):
            if path.is_file():
                return path
        return None

    def _missing(self, *names: str) -> BadInput:
        return BadInput(
            f"{self._folder}: none of {', '.join(names)} is there (plain or .gz); put it there, or have the published "
            "files fetched with `neuroranker fetch`"
        )


def _tsv(path: Path, member: str, columns: tuple[str, ...], rejects: Rejects) -> Iterator[Rows]:
    return _opened(path, member, tsv_rows, columns, rejects)


def _opened(path: Path, member: str, reader: Reader, columns: tuple[str, ...], rejects: Rejects) -> Iterator[Rows]:
    """The rows of a file, or of one member of an archive. Raises ``BadInput`` when it is empty."""
    found = False
    for rows in _read(path, member, reader, columns, rejects):
        found = True
        yield rows
    if not found:
        raise BadInput(f"{path if path.name.startswith(member) else f'{path}({member})'}: empty; get the file again")


def _read(path: Path, member: str, reader: Reader, columns: tuple[str, ...], rejects: Rejects) -> Iterator[Rows]:
    if path.name.endswith(ARCHIVES):
        for name, stream in open_members(path, (member,)):
            yield from reader(stream, f"{path}({name})", columns, rejects)
    else:
        with open_bytes(path) as stream:
            yield from reader(stream, str(path), columns, rejects)


def _names(path: Path) -> frozenset[str]:
    status = path.stat()
    return _names_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _names_of(path: Path, size: int, changed: int) -> frozenset[str]:
    """The files in an archive: it has no table of contents, so all of it is read, once a process."""
    return frozenset(name for name, _ in open_members(path))
