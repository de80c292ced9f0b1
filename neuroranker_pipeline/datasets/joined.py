"""Several collections as one: a main one, and others whose training queries are learned from as well.

The ids of a joined collection begin with its name and a colon (``nq:d17``), those of the main one stay as they are. Every
collection is searched by itself (see :func:`collection_of`), and all evaluation is on the main one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.datasets.held_out import Carving, HeldOut
from neuroranker_pipeline.datasets.rejects import Rejects
from neuroranker_pipeline.errors import BadInput

if TYPE_CHECKING:
    from neuroranker_pipeline.datasets.source import RawTable, Source

MAIN = "main"
OF_REPEATED = "judgments of training questions that the main collection holds out"


def check_name(name: str) -> None:
    """Raise ``ValueError`` unless ``name`` can open the ids of a joined collection and name a folder."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) or name == MAIN:
        raise ValueError(
            f"training_collections.{name} must be lower-case letters, digits, '-' and '_', and not {MAIN!r}"
        )


class JoinedSource:
    """The main source's tables, followed by the others' passages, training queries and their judgments."""

    def __init__(self, main: Source, others: Mapping[str, Source]) -> None:
        self.main = main
        self.others = others
        self.name = " + ".join([main.name, *(source.name for source in others.values())])

    @property
    def licence(self) -> str:
        parts = {self.main.name: self.main.licence} | {s.name: s.licence for s in self.others.values()}
        return "; ".join(f"{name}: {licence}" for name, licence in parts.items())

    def digest(self, table: RawTable) -> str:
        parts = {MAIN: self.main.digest(table)}
        if table != "candidates":
            parts |= {name: source.digest(table) for name, source in self.others.items()}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def passages(self, rejects: Rejects) -> Iterator[pa.RecordBatch]:
        for batch in self.main.passages(rejects):
            self._demand_own_ids(batch["pid"])
            yield batch
        for name, source in self.others.items():
            yield from (_prefixed(batch, name, ("pid",)) for batch in source.passages(rejects))

    def titles(self) -> Iterator[pa.RecordBatch]:
        return self.main.titles()

    def queries(self, rejects: Rejects) -> Iterator[pa.RecordBatch]:
        for batch in self.main.queries(rejects):
            self._demand_own_ids(batch["qid"])
            yield batch
        for name, source in self.others.items():
            found = 0
            for batch in map(_training, source.queries(rejects)):
                repeated = [self._repeated[name].get(qid) for qid in batch["qid"].to_pylist()]
                for why, count in Counter(filter(None, repeated)).items():
                    rejects.leave_out(why, count)
                batch = batch.filter(pa.array([why is None for why in repeated], pa.bool_()))
                found += batch.num_rows
                yield _prefixed(batch, name, ("qid",))
            if not found:
                raise BadInput(
                    f"training_collections.{name}: no training query in it that the main collection does not hold out; "
                    "leave the collection out"
                )

    def qrels(self, rejects: Rejects) -> Iterator[pa.RecordBatch]:
        yield from self.main.qrels(rejects)
        for name, source in self.others.items():
            repeated = pa.array(list(self._repeated[name]), pa.string())
            for batch in map(_training, source.qrels(rejects)):
                kept = batch.filter(pc.invert(pc.is_in(batch["qid"], value_set=repeated)))
                rejects.leave_out(OF_REPEATED, batch.num_rows - kept.num_rows)
                yield _prefixed(kept, name, ("qid", "pid"))

    def candidates(self, rejects: Rejects) -> Iterator[pa.RecordBatch]:
        return self.main.candidates(rejects)

    @property
    def carving(self) -> Carving:
        return self.main.carving

    @cached_property
    def _repeated(self) -> dict[str, dict[str, str]]:
        """The training queries of each joined collection that repeat a question that the main one holds out, and why.

        They are read once more for it, where what cannot be used is counted.
        """
        held_out = HeldOut.of(self.main.queries(Rejects(1.0)), self.carving)
        found = {}
        for name, source in self.others.items():
            batches = list(map(_training, source.queries(Rejects(1.0))))
            qids = [qid for batch in batches for qid in batch["qid"].to_pylist()]
            texts = [text for batch in batches for text in batch["text"].to_pylist()]
            found[name] = {qids[row]: why for row, why in held_out.repeated(texts).items()}
        return found

    def _demand_own_ids(self, ids: pa.Array) -> None:
        for name in self.others:
            if pc.any(pc.starts_with(ids, f"{name}:"), min_count=0).as_py():
                raise BadInput(
                    f"training_collections.{name}: ids of the main collection begin with {name!r} and a colon; "
                    "give the joined collection another name"
                )


def collection_of(ids: pa.Array | pa.ChunkedArray, name: str, others: Iterable[str]) -> pa.Array | pa.ChunkedArray:
    """For each qid or pid, whether it belongs to collection ``name``: ``main``, or one of the ``others``."""
    if name != MAIN:
        return pc.starts_with(ids, f"{name}:")
    mine = pc.equal(ids, ids)  # true for each
    for other in others:
        mine = pc.and_not(mine, pc.starts_with(ids, f"{other}:"))
    return mine


def collection_name(qid: str, others: Iterable[str]) -> str:
    """The collection that a qid or pid belongs to: ``main``, or one of the ``others``."""
    name, colon, _ = qid.partition(":")
    return name if colon and name in others else MAIN


def _training(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.filter(pc.equal(batch["split"], "train"))


def _prefixed(batch: pa.RecordBatch, name: str, columns: tuple[str, ...]) -> pa.RecordBatch:
    arrays = [
        pc.binary_join_element_wise(f"{name}:", batch[field.name], "") if field.name in columns else batch[field.name]
        for field in batch.schema
    ]
    return pa.record_batch(arrays, schema=batch.schema)
