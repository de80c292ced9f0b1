"""Questions of the held-out splits that stand in training too: how many, and which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.datasets.near import NEAR, Pairs, near_blocks, same_texts
from neuroranker_pipeline.datasets.tables import SPLITS, is_split
from neuroranker_pipeline.markdown import table

SHOWN = 10
"""Pairs of each split that are kept to be looked at."""


@dataclass(frozen=True)
class SplitLeaks:
    """Counts of a held-out split: its ``queries``, those of them with the ``same`` text in training, those with only a
    ``near`` one, and the ``training`` queries that are either of any."""

    split: str
    queries: int
    same: int
    near: int
    training: int


@dataclass(frozen=True)
class Leak:
    """A held-out query and a training query like it; ``same``: their texts are, but for case, punctuation and space."""

    split: str
    qid: str
    text: str
    training_qid: str
    training_text: str
    jaccard: float
    same: bool


@dataclass(frozen=True)
class Leaks:
    """What ``find_leaks`` found. ``leaks``: a few of each split, by split, similarity (highest first), qids."""

    threshold: float
    splits: tuple[SplitLeaks, ...]
    leaks: tuple[Leak, ...]

    @property
    def same(self) -> int:
        """Held-out queries whose text is in training."""
        return sum(split.same for split in self.splits)

    @property
    def near(self) -> int:
        """Held-out queries that have a near duplicate in training, and not the same text."""
        return sum(split.near for split in self.splits)

    def markdown(self) -> str:
        """Two tables for the UI: the counts, and the pairs."""
        counts = [[s.split, s.queries, s.same, s.near, s.training] for s in self.splits]
        header = ["split", "queries", "in training", f"near one (Jaccard >= {self.threshold:g})", "training queries"]
        pairs = [[p.split, p.qid, p.text, p.training_qid, p.training_text, round(p.jaccard, 3)] for p in self.leaks]
        names = ["split", "qid", "query", "training qid", "training query", "Jaccard"]
        return table(header, counts) + ("\n\n" + table(names, pairs) if pairs else "")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Leaks:
        """From what ``to_dict`` gave."""
        splits = tuple(SplitLeaks(**split) for split in values["splits"])
        return cls(values["threshold"], splits, tuple(Leak(**leak) for leak in values["leaks"]))


def find_leaks(queries: pa.Table, threshold: float = NEAR, shown: int = SHOWN) -> Leaks:
    """The queries of dev, gate and the test splits that are the same as a training query, or near to one.

    ``queries`` as ``QUERIES``. Memory is that of the held-out queries and their vocabulary, and of a few numbers for a
    training query. Raises ``ValueError`` unless 0 < threshold <= 1.
    """
    names = sorted((name for name in pc.unique(queries["split"]).to_pylist() if _is_held_out(name)), key=_place)
    held = queries.filter(pc.is_in(queries["split"], pa.array(names, pa.string())))
    training = queries.filter(pc.equal(queries["split"], "train"))
    texts = list(same_texts(held["text"]))
    splits, codes = np.array(held["split"].to_pylist(), dtype=object), _Codes(texts)
    found = [_Found(name, splits == name, held, training, shown) for name in names]
    for pairs in near_blocks(texts, codes.noted(same_texts(training["text"])), threshold):
        for one in found:
            one.note(pairs)
    counts = tuple(one.counts(codes.in_both()) for one in found)
    return Leaks(threshold, counts, tuple(leak for one in found for leak in one.leaks(codes)))


def leaks_between(asked: pa.Table, judged: pa.Table, threshold: float = NEAR) -> Leaks:
    """The held-out queries of ``judged`` against ``asked``, queries that are learned from without judgments."""
    training = asked.set_column(
        asked.schema.get_field_index("split"), "split", pa.array(["train"] * len(asked), pa.string())
    )
    return find_leaks(pa.concat_tables([judged.filter(pc.not_equal(judged["split"], "train")), training]), threshold)


class _Codes:
    """Numbers that stand for texts: held-out queries' own, and those of others that pass by (-1 when not held out)."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        self.held = np.array([self._numbers[text] for text in texts], np.int64)
        self.others: list[int] = []

    def noted(self, texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            self.others.append(self._numbers.get(text, -1))
            yield text

    def in_both(self) -> np.ndarray:
        """Which held-out queries have their text among the others; bool [held]."""
        return np.isin(self.held, np.array(self.others, np.int64))


class _Found:
    """What is known of a split while pairs come in."""

    def __init__(self, split: str, mine: np.ndarray, held: pa.Table, training: pa.Table, shown: int) -> None:
        self._split, self._mine, self._shown = split, mine, shown
        self._tables = held, training
        self._places = [pc.rank(table["qid"], tiebreaker="first").to_numpy() for table in self._tables]
        self._near = np.zeros(len(held), bool)
        self._training = np.zeros(len(training), bool)
        self._closest = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))

    def note(self, pairs: Pairs) -> None:
        pairs = Pairs(*(part[self._mine[pairs.held]] for part in pairs))
        self._near[pairs.held] = True
        self._training[pairs.other] = True
        both = Pairs(*(np.concatenate(parts) for parts in zip(self._closest, pairs, strict=True)))
        order = np.lexsort((self._places[1][both.other], self._places[0][both.held], -both.jaccard))[: self._shown]
        self._closest = Pairs(*(part[order] for part in both))

    def counts(self, same: np.ndarray) -> SplitLeaks:
        near = int((self._near & ~same & self._mine).sum())
        numbers = int(self._mine.sum()), int((same & self._mine).sum()), near, int(self._training.sum())
        return SplitLeaks(self._split, *numbers)

    def leaks(self, codes: _Codes) -> Iterator[Leak]:
        held, training = self._tables
        for mine, other, jaccard in zip(*(part.tolist() for part in self._closest), strict=True):
            query, like = held.slice(mine, 1).to_pylist()[0], training.slice(other, 1).to_pylist()[0]
            same = bool(codes.held[mine] == codes.others[other])
            yield Leak(self._split, query["qid"], query["text"], like["qid"], like["text"], jaccard, same)


def _is_held_out(split: str) -> bool:
    return is_split(split) and split != "train"


def _place(split: str) -> tuple[int, str]:
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), split)
