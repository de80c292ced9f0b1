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
WHOLE_MEMBERS = frozenset(
    {"collection.tsv", "queries.train.tsv", "queries.dev.small.tsv", "qrels.train.tsv", "qrels.dev.small.tsv"}
)
"""Those that are read. Its ``queries.dev.tsv`` is left out: the small development set has its own."""

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
    (qid, pid, query, passage), below ``folder``. A top1000 file ranks nothing: its order stands in for BM25's, and says as
    little.
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

    @property
    def whole_dev(self) -> tuple[str, ...]:
        return ("dev", "gate", *(split for split in self.test_splits if split == "test"))

    @property
    def given_splits(self) -> tuple[str, ...]:
        return tuple(f"test-{name}" for name in self.runs)

    def own_level(self, split: str) -> int:
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
        yield from (rows for _, rows in _opened([(path, "collection.tsv")], tsv_rows, ("pid", "text"), rejects))

    def query_rows(self, rejects: Rejects) -> Iterator[Rows]:
        yield from (rows for _, rows in _opened(self._query_files(), tsv_rows, ("qid", "text"), rejects))

    def judgment_rows(self, rejects: Rejects) -> Iterator[Rows]:
        files = self._judgment_files()
        split_of = {member: split for _, member, split in files}
        places = [(path, member) for path, member, _ in files]
        for member, rows in _opened(places, spaced_rows, ("qid", "0", "pid", "grade"), rejects):
            yield rows.having(split=pa.array([split_of[member]] * len(rows), pa.string()))

    def run_rows(self, rejects: Rejects) -> Iterator[Rows]:
        for name, file in self.settings.runs.items():
            path = self._find(file)
            unranked = path.name.removesuffix(".gz").endswith(".tsv")
            columns = ("qid", "pid", "query", "passage") if unranked else ("qid", "Q0", "pid", "rank", "score", "tag")
            reader = tsv_rows if unranked else spaced_rows
            for _, rows in _opened([(path, path.name)], reader, columns, rejects):
                score = pa.nulls(len(rows), pa.string()) if unranked else rows.columns["score"]
                yield rows.having(score=score, split=pa.array([f"test-{name}"] * len(rows), pa.string()))

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


def _opened(
    files: Sequence[tuple[Path, str]], reader: Reader, columns: tuple[str, ...], rejects: Rejects
) -> Iterator[tuple[str, Rows]]:
    """The rows of files, each by itself or a member of an archive, with the member's name; every archive is read once.

    Raises ``BadInput`` when one is empty.
    """
    members: dict[Path, list[str]] = {}
    for path, member in files:
        members.setdefault(path, []).append(member)
    for path, names in members.items():
        for name, where, stream in _streams(path, names):
            found = False
            for rows in reader(stream, where, columns, rejects):
                found = True
                yield name, rows
            if not found:
                raise BadInput(f"{where}: empty; get the file again")


def _streams(path: Path, names: list[str]) -> Iterator[tuple[str, str, IO[bytes]]]:
    """(name, how messages name it, content)."""
    if path.name.endswith(ARCHIVES):
        for name, stream in open_members(path, tuple(names)):
            yield name, f"{path}({name})", stream
    else:
        with open_bytes(path) as stream:
            yield names[0], str(path), stream


def _names(path: Path) -> frozenset[str]:
    """The files in an archive. It has no table of contents: the large one is taken to be as it was published."""
    if path.name == WHOLE:
        return WHOLE_MEMBERS
    status = path.stat()
    return _names_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _names_of(path: Path, size: int, changed: int) -> frozenset[str]:
    return frozenset(name for name, _ in open_members(path))
