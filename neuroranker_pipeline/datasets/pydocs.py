"""``pydocs``: the API documentation of installed Python packages as a search collection.

A docstring's summary sentence is the query; the relevant passage is the object's qualified name and the rest of
the docstring's body, the summary removed. Nothing is downloaded, and no package is imported.

Objects that share one body (methods that a class inherits, formatters that are told apart by their names alone) stay
passages of their own, and all of them are relevant to a question whose passage is one of them. To make them one passage of
many names would leave no room for its text; to call one of them relevant would judge a ranker by a toss of a coin.

Questions that are near to each other, or whose passages are, go into one split together: documentation repeats itself, and
a ranker that has learned from one knows the others.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from typing import Any, ClassVar, Literal

import pyarrow as pa

from neuroranker_pipeline.datasets.docstrings import split_docstring
from neuroranker_pipeline.datasets.held_out import Carving
from neuroranker_pipeline.datasets.near import clusters
from neuroranker_pipeline.datasets.python_api import STDLIB, find, public_docstrings, stdlib_modules
from neuroranker_pipeline.datasets.rejects import Rejects
from neuroranker_pipeline.datasets.splits import MAX_WEIGHT, unit_hash
from neuroranker_pipeline.datasets.tables import JUDGMENTS, PASSAGES, QRELS, QUERIES
from neuroranker_pipeline.errors import BadInput, require

DEFAULT_PACKAGES = (STDLIB, "numpy", "scipy", "pandas", "sklearn", "torch", "matplotlib", "networkx", "sympy")

_NOT_A_QUESTION = re.compile(
    r"(see|alias|deprecated|internal|private|todo|note|warning|copyright|usage|.*\b(docstring|deprecated)\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class PydocsSettings:
    """Which documentation to read, how long its texts may be, and how many queries each split gets.

    Lengths of passages are characters of the body (the name not counted), lengths of queries are words.
    ``split_names`` opens a passage with the words of its name (``numpy cumsum``) instead of the name itself: Lucene
    keeps ``numpy.cumsum`` as one word, which no query contains. ``weight`` as for every collection: how often a training
    query is learned from.
    """

    source: Literal["pydocs"] = "pydocs"
    packages: tuple[str, ...] = DEFAULT_PACKAGES
    max_passages: int | None = None
    min_passage_chars: int = 40
    max_passage_chars: int = 2_000
    min_query_words: int = 4
    max_query_words: int = 30
    dev_queries: int = 300
    gate_queries: int = 300
    test_queries: int = 600
    max_train_queries: int | None = None
    split_names: bool = False
    weight: float = 1.0

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        require(bool(self.packages), "packages", "at least one package name", self.packages)
        require(self.min_passage_chars >= 1, "min_passage_chars", "at least 1", self.min_passage_chars)
        longest, shortest = self.max_passage_chars, self.min_passage_chars
        require(longest >= shortest, "max_passage_chars", f"at least min_passage_chars ({shortest})", longest)
        require(self.min_query_words >= 1, "min_query_words", "at least 1", self.min_query_words)
        longest, shortest = self.max_query_words, self.min_query_words
        require(longest >= shortest, "max_query_words", f"at least min_query_words ({shortest})", longest)
        for name in ("dev_queries", "gate_queries", "test_queries"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("max_passages", "max_train_queries"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "at least 1, or null for all", value)
        require(0 <= self.weight <= MAX_WEIGHT, "weight", f"from 0 to {MAX_WEIGHT}", self.weight)

    @property
    def test_splits(self) -> tuple[str, ...]:
        return ("test",)

    @property
    def whole_dev(self) -> tuple[str, ...]:
        return ()

    @property
    def judged(self) -> bool:
        return True

    @property
    def given_splits(self) -> tuple[str, ...]:
        return ()

    @property
    def max_reject_share(self) -> float:
        """For collections that are joined: what is no good query or passage here is never made one."""
        return 0.001

    @property
    def queries_are_passages(self) -> bool:
        return False

    def relevant_from(self, split: str) -> int:
        return 1


@dataclass(frozen=True)
class _Tables:
    passages: pa.Table
    queries: pa.Table
    qrels: pa.Table


class PydocsSource:
    """The documentation data set; the sources are parsed once in a process and settings."""

    name = "pydocs"

    def __init__(self, settings: PydocsSettings | None = None) -> None:
        self.settings = settings or PydocsSettings()

    @property
    def licence(self) -> str:
        """Whose text it is: every package's name, version and licence."""
        packages = ", ".join(_terms(package) for package in self.settings.packages)
        return f"API documentation of installed packages, each under its own licence: {packages}"

    def digest(self, table: str) -> str:
        """SHA-256 over the settings and the versions of Python and of the packages, for every table; reads no source.

        Raises ``BadInput`` when a package is not installed.
        """
        versions = {package: _version(package) for package in self.settings.packages}
        content = {
            "settings": {key: value for key, value in asdict(self.settings).items() if key != "weight"},
            "python": platform.python_version(),
            "versions": versions,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def passages(self, rejects: Rejects) -> Iterator[pa.RecordBatch]:
        yield from self._batches("passages", rejects)

    def titles(self) -> Iterator[pa.RecordBatch]:
        raise BadInput("pydocs: its passages have no titles; choose another unjudged.source")

    def queries(self, rejects: Rejects) -> Iterator[pa.RecordBatch]:
        yield from self._batches("queries", rejects)

    def qrels(self, rejects: Rejects) -> Iterator[pa.RecordBatch]:
        for batch in _tables(self.settings).qrels.to_batches():
            rows = range(1, batch.num_rows + 1)
            placed = [*batch.columns, pa.array(["pydocs"] * len(rows), pa.string()), pa.array(rows, pa.int64())]
            yield pa.record_batch(placed, schema=JUDGMENTS)

    @property
    def carving(self) -> Carving:
        return Carving(frozenset({"dev", "gate", "test"}))

    def candidates(self, rejects: Rejects) -> Iterator[pa.RecordBatch]:
        return iter(())

    def _batches(self, table: Literal["passages", "queries"], rejects: Rejects) -> Iterator[pa.RecordBatch]:
        for batch in getattr(_tables(self.settings), table).to_batches():
            rejects.accept(batch.num_rows)
            yield batch


@lru_cache(maxsize=2)
def _tables(settings: PydocsSettings) -> _Tables:
    """Every table, sorted by pid or qid so that equal sources give equal files."""
    summaries, bodies = _documented(settings)
    chosen = sorted(bodies, key=_hash)[: settings.max_passages]
    pids = sorted(chosen)
    names = {pid: re.sub(r"[._]+", " ", pid) if settings.split_names else pid for pid in pids}
    passages = {"pid": pids, "text": [f"{names[pid]}: {bodies[pid]}" for pid in pids]}
    positives = {_hash(pid): pid for pid in pids if pid in summaries}
    ordered = sorted(positives)
    groups = clusters([summaries[positives[qid]] for qid in ordered], [bodies[positives[qid]] for qid in ordered])
    splits = _assign_splits(ordered, groups, settings)
    qids = sorted(splits)
    relevant = _with_equal_bodies(pids, bodies)
    judged = [(qid, pid) for qid in qids for pid in relevant[positives[qid]]]
    queries = {
        "qid": qids,
        "text": [summaries[positives[qid]] for qid in qids],
        "split": [splits[qid] for qid in qids],
    }
    qrels = {
        "qid": [qid for qid, _ in judged],
        "pid": [pid for _, pid in judged],
        "grade": [1] * len(judged),
        "split": [splits[qid] for qid, _ in judged],
    }
    return _Tables(
        pa.table(passages, schema=PASSAGES), pa.table(queries, schema=QUERIES), pa.table(qrels, schema=QRELS)
    )


def _documented(settings: PydocsSettings) -> tuple[dict[str, str], dict[str, str]]:
    """(usable summary by pid, body by pid); a pid in the first is in the second."""
    summaries: dict[str, str] = {}
    bodies: dict[str, str] = {}
    for package in settings.packages:
        for pid, docstring in public_docstrings(package).items():
            summary, body = split_docstring(docstring)
            if len(body) < settings.min_passage_chars:
                continue
            bodies[pid] = _cut(body, settings.max_passage_chars)
            if _is_query(summary, settings) and not _quotes(f"{pid}: {body}", summary):
                summaries[pid] = summary
    occurrences = Counter(_normal(summary) for summary in summaries.values())
    return {pid: text for pid, text in summaries.items() if occurrences[_normal(text)] == 1}, bodies


def _is_query(summary: str, settings: PydocsSettings) -> bool:
    """Whether a summary reads as something a person would search for: enough words, no template, no remark."""
    words = summary.split()
    if not settings.min_query_words <= len(words) <= settings.max_query_words:
        return False
    if not summary[0].isalpha() or any(mark in summary for mark in ("{", "}", "%(", "http", "|", "\\")):
        return False
    letters = sum(character.isalpha() or character.isspace() for character in summary)
    return letters >= 0.8 * len(summary) and not _NOT_A_QUESTION.match(summary)


def _with_equal_bodies(pids: list[str], bodies: Mapping[str, str]) -> dict[str, list[str]]:
    """Every pid's passages of the same body, itself among them."""
    same: dict[str, list[str]] = {}
    for pid in pids:
        same.setdefault(bodies[pid], []).append(pid)
    return {pid: same[bodies[pid]] for pid in pids}


def _assign_splits(qids: list[str], groups: Iterable[int], settings: PydocsSettings) -> dict[str, str]:
    """Split by qid, all queries of a group together: into the first of test, gate and dev that has room for them, in an
    order that a hash of the group decides, whatever its size; what fits nowhere is training. A group of more than a
    fiftieth of a split stays out of it: many near queries would count as much as many different ones.
    """
    sizes = {"test": settings.test_queries, "gate": settings.gate_queries, "dev": settings.dev_queries}
    too_few = BadInput(
        f"pydocs: {len(qids)} queries cannot fill test_queries + gate_queries + dev_queries = {sum(sizes.values())} "
        "and leave some for training; ask for fewer, raise max_passages or add packages"
    )
    members: dict[int, list[str]] = {}
    for qid, group in zip(qids, groups, strict=True):
        members.setdefault(int(group), []).append(qid)
    splits: dict[str, str] = {}
    room, largest = dict(sizes), {split: max(1, size // 50) for split, size in sizes.items()}
    for together in sorted(members.values(), key=lambda queries: unit_hash(queries[0], "group")):
        fits = (split for split in sizes if len(together) <= min(room[split], largest[split]))
        split = next(fits, "train")
        if split in room:
            room[split] -= len(together)
        splits.update(dict.fromkeys(together, split))
    train = [qid for qid in qids if splits[qid] == "train"]
    if any(room.values()) or not train:
        raise too_few
    surplus = set(train[settings.max_train_queries :] if settings.max_train_queries else ())
    return {qid: split for qid, split in splits.items() if qid not in surplus}


def _hash(pid: str) -> str:
    """A qid: 16 hexadecimal digits that are stable and do not give the name away."""
    return hashlib.blake2b(pid.encode(), digest_size=8).hexdigest()


def _quotes(passage: str, summary: str) -> bool:
    """Whether the passage holds the summary word for word."""
    return _normal(summary) in _normal(passage)


def _normal(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def _cut(text: str, limit: int) -> str:
    """At most ``limit`` characters, ending with a whole word where there is one."""
    return text if len(text) <= limit else text[: limit + 1].rpartition(" ")[0] or text[:limit]


def _is_stdlib(package: str) -> bool:
    return package == STDLIB or package in stdlib_modules()


def _version(package: str) -> str:
    if _is_stdlib(package):
        return platform.python_version()
    find(package)
    distribution = _distribution(package)
    return metadata.version(distribution) if distribution else "unknown"


def _terms(package: str) -> str:
    if _is_stdlib(package):
        return f"{package} {platform.python_version()} (PSF-2.0)"
    distribution = _distribution(package)
    if distribution is None:
        return package
    fields = metadata.metadata(distribution)
    classifiers = [c.rpartition(" :: ")[2] for c in fields.get_all("Classifier") or [] if c.startswith("License ::")]
    licence = fields["License-Expression"] or ", ".join(classifiers) or (fields["License"] or "").partition("\n")[0]
    return f"{distribution} {fields['Version']} ({licence or 'see the package'})"


def _distribution(package: str) -> str | None:
    """The name under which the package was installed (``sklearn`` comes from ``scikit-learn``)."""
    try:
        return str(metadata.metadata(package)["Name"])
    except metadata.PackageNotFoundError:
        return next(iter(sorted(metadata.packages_distributions().get(package, []))), None)
