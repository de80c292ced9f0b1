"""``ir_datasets``: any data set of the ir_datasets catalogue (https://ir-datasets.com), where the network allows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from neuroranker_pipeline.datasets.rejects import Rejects
from neuroranker_pipeline.datasets.rows import Rows
from neuroranker_pipeline.datasets.splits import CollectionSettings
from neuroranker_pipeline.errors import BadInput, NotReady, require

ROWS = 10_000


@dataclass(frozen=True, kw_only=True)
class IrDatasetsSettings(CollectionSettings):
    """dataset: the id whose documents are the passages, ``msmarco-passage`` for example.
    train, dev: ids whose queries and judgments are learned from and chosen by.
    tests: ids that are tested on, by name; each is a split ``test-<name>``.
    text: fields of a document, joined by a space.
    The catalogue keeps its files in its own home (``IR_DATASETS_HOME``), so ``folder`` is not used.
    """

    source: Literal["ir_datasets"] = "ir_datasets"
    folder: str = "."
    dataset: str
    train: str
    dev: str | None = None
    tests: Mapping[str, str] = field(default_factory=dict)
    text: tuple[str, ...] = ("title", "text")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.text), "text", "at least one field", self.text)
        for name in self.tests:
            require(re.fullmatch(r"[A-Za-z0-9_.-]+", name) is not None, "tests", "names of letters and digits", name)

    @property
    def test_splits(self) -> tuple[str, ...]:
        return tuple(f"test-{name}" for name in self.tests) or ("test",)


class IrDatasetsSource:
    """The raw rows of data sets in the catalogue."""

    def __init__(self, settings: IrDatasetsSettings) -> None:
        self.settings = settings
        self.name = settings.dataset
        self.licence = f"see https://ir-datasets.com/{settings.dataset.partition('/')[0]}.html"

    def files(self, table: str) -> Sequence[Path]:
        return []  # an id names fixed data: the catalogue checks the digest of what it fetches

    def passage_rows(self, rejects: Rejects) -> Iterator[Rows]:
        name = self.settings.dataset
        known = _load(name, "docs").docs_cls()._fields
        fields = [field for field in self.settings.text if field in known]
        if not fields:
            raise BadInput(
                f"ir_datasets {name}: its documents have no field {', '.join(self.settings.text)}; "
                f"data.text may name {', '.join(known)}"
            )
        found = ((d.doc_id, " ".join(str(v) for f in fields if (v := getattr(d, f)))) for d in _items(name, "docs"))
        yield from _rows(name, "docs", found, ("pid", "text"))

    def query_rows(self, rejects: Rejects) -> Iterator[Rows]:
        for name in self._parts():
            queries = ((query.query_id, query.default_text()) for query in _items(name, "queries"))
            yield from _rows(name, "queries", queries, ("qid", "text"))

    def judgment_rows(self, rejects: Rejects) -> Iterator[Rows]:
        for name, split in self._parts().items():
            judged = ((j.query_id, j.doc_id, str(j.relevance), split) for j in _items(name, "qrels"))
            yield from _rows(name, "qrels", judged, ("qid", "pid", "grade", "split"))

    def run_rows(self, rejects: Rejects) -> Iterator[Rows]:
        return iter(())

    def _parts(self) -> dict[str, str]:
        """Split by data set id."""
        settings = self.settings
        parts = {settings.train: "train"} | ({settings.dev: "dev"} if settings.dev else {})
        return parts | {dataset: f"test-{name}" for name, dataset in settings.tests.items()}


def _load(name: str, part: str) -> Any:
    """A data set of the catalogue that has ``part``: docs, queries or qrels."""
    try:
        import ir_datasets
    except ImportError:
        raise NotReady("ir_datasets is not installed: run pip install 'neuroranker[ir-datasets]'") from None
    try:
        dataset = ir_datasets.load(name)
    except KeyError:
        raise BadInput(f"ir_datasets has no data set {name!r}; see https://ir-datasets.com") from None
    if not getattr(dataset, f"has_{part}")():
        raise BadInput(
            f"ir_datasets {name}: this data set has no {part}; name one that has, see https://ir-datasets.com"
        )
    return dataset


def _items(name: str, part: str) -> Iterator[Any]:
    """The library downloads when asked to iterate or while it does, and raises whatever went wrong there."""
    dataset = _load(name, part)
    try:
        yield from getattr(dataset, f"{part}_iter")()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise NotReady(f"ir_datasets {name}: cannot be had here: {reason[:300]}") from None


def _rows(name: str, part: str, found: Iterator[tuple[str, ...]], columns: tuple[str, ...]) -> Iterator[Rows]:
    """Some thousand rows at a time; a line is a row's number in the data set."""
    number = 1
    while chunk := list(islice(found, ROWS)):
        values = zip(*chunk, strict=True)
        taken = {column: pa.array(list(v), pa.string()) for column, v in zip(columns, values, strict=True)}
        yield Rows(f"ir_datasets:{name}/{part}", number + np.arange(len(chunk)), taken)
        number += len(chunk)
