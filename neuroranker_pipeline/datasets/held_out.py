"""The questions that a ranker is chosen by, released by and tested on (dev, gate, test): none of them is learned from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from neuroranker_pipeline.datasets.near import NEAR, near_blocks, same_text

SAME = "training questions that are dev, gate or test questions"
CARVING_FILE = "carving.json"
TOO_NEAR = "training questions too near to a carved dev, gate or test question"


@dataclass(frozen=True)
class Carving:
    """Which splits were carved out of training, and from which Jaccard similarity of their words on (``near``) a training
    question is too near to one of theirs."""

    splits: frozenset[str] = frozenset()
    near: float = NEAR

    def write(self, folder: Path) -> None:
        """Keep it beside the queries."""
        about = {"splits": sorted(self.splits), "near": self.near}
        (folder / CARVING_FILE).write_text(json.dumps(about, indent=2) + "\n", "utf-8")

    @staticmethod
    def read(folder: Path) -> Carving:
        about = json.loads((folder / CARVING_FILE).read_text("utf-8"))
        return Carving(frozenset(about["splits"]), about["near"])


@dataclass(frozen=True)
class HeldOut:
    """Questions that are held out: ``all`` as ``same_text`` has them, and the ``carved`` ones among them.

    A split that came with the data is near to training as its makers left it, so only equal questions are kept from
    training there. One that is carved out of training would be full of near ones.
    """

    all: frozenset[str] = frozenset()
    carved: tuple[str, ...] = ()
    near: float = NEAR

    @staticmethod
    def of(queries: Iterable[pa.RecordBatch], carving: Carving) -> HeldOut:
        """From the batches (text, split) of a collection's queries."""
        found: set[str] = set()
        carved: set[str] = set()
        for batch in queries:
            for text, split in zip(batch["text"].to_pylist(), batch["split"].to_pylist(), strict=True):
                if split != "train":
                    found.add(same_text(text))
                    carved |= {text} if split in carving.splits else set()
        return HeldOut(frozenset(found), tuple(sorted(carved)), carving.near)

    def repeated(self, texts: Sequence[str]) -> dict[int, str]:
        """The rows of training questions that may not be learned from, and why: ``SAME`` or ``TOO_NEAR``."""
        asked = [same_text(text) for text in texts]
        near = np.zeros(len(asked), bool)
        for pairs in near_blocks([same_text(text) for text in self.carved], asked, self.near) if self.carved else ():
            near[pairs.other] = True
        same = [row for row, text in enumerate(asked) if text in self.all]
        return dict.fromkeys(np.flatnonzero(near).tolist(), TOO_NEAR) | dict.fromkeys(same, SAME)
