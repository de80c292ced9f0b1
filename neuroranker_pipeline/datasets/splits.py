"""Which query belongs to which split, and the settings that all collections read from files share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from neuroranker_pipeline.errors import BadInput, require

FORBID: dict[str, Any] = {"extra": "forbid"}
MAX_WEIGHT = 20
STRENGTH = {"train": 0, "dev": 1, "gate": 2}  # a test split is stronger than all


@dataclass(frozen=True)
class CarveSettings:
    """Shares of queries, chosen by a hash of the qid, that make up for splits which the data lacks: ``dev`` of the
    training queries, then ``test`` of dev, then ``gate`` of what is left of dev."""

    dev: float = 0.1
    test: float = 0.5
    gate: float = 0.5

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID

    def __post_init__(self) -> None:
        for name in ("dev", "test", "gate"):
            require(0 < getattr(self, name) < 1, name, "between 0 and 1", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class CollectionSettings:
    """folder: where the files are, absolute or below the data root.
    max_reject_share: the share of rows that may be unusable; above it the asset fails (the main collection's holds for
    joined ones too).
    repair_encoding: mend text that was decoded wrongly (ftfy).
    max_train_queries: at most so many training queries, chosen by a hash of the qid.
    weight: how often a training query is learned from: 0.25 is a quarter of them, chosen by a hash, and 2 is two lists of
    each, with other negatives.
    """

    folder: str
    max_reject_share: float = 0.001
    repair_encoding: bool = False
    max_train_queries: int | None = None
    weight: float = 1.0
    carve: CarveSettings = field(default_factory=CarveSettings)

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID

    def __post_init__(self) -> None:
        require(bool(self.folder), "folder", "a folder", self.folder)
        require(0 <= self.max_reject_share < 1, "max_reject_share", "from 0 to below 1", self.max_reject_share)
        limit = self.max_train_queries
        require(limit is None or limit >= 1, "max_train_queries", "at least 1, or null for all", limit)
        require(0 <= self.weight <= MAX_WEIGHT, "weight", f"from 0 to {MAX_WEIGHT}", self.weight)

    @property
    def test_splits(self) -> tuple[str, ...]:
        """The splits that are reported and decide nothing, each a partition of its own."""
        return ("test",)

    @property
    def given_splits(self) -> tuple[str, ...]:
        """The test splits whose candidates came with the data."""
        return ()

    @property
    def judged(self) -> bool:
        """Whether there are queries and judgments at all."""
        return True

    def relevance_level(self, split: str) -> int:
        """The lowest grade that counts as relevant in binary measures."""
        return 1


class Splits:
    """The split of every judged query.

    A query judged in several splits belongs to the strongest (test, gate, dev, train), and its judgments in the others
    are left out: what is tested on is never learned from.
    """

    def __init__(self, judged: Iterable[tuple[str, str]], settings: CollectionSettings) -> None:
        """``judged`` are (qid, split) pairs, repeated at will. Raises ``BadInput`` for a split that is unknown, or declared
        and not there."""
        known = ("train", "dev", "gate", *settings.test_splits)
        self._given: dict[str, str] = {}
        for qid, split in judged:
            old = self._given.get(qid)
            if old != split:
                if split not in known:
                    raise BadInput(
                        f"split {split!r} of query {qid}: expected {', '.join(known)} (data.tests names more)"
                    )
                if old is None or STRENGTH.get(split, 3) > STRENGTH.get(old, 3):
                    self._given[qid] = split
        present = set(self._given.values())
        if missing := [split for split in settings.test_splits if split not in present and split != "test"]:
            raise BadInput(f"no query is judged in split {missing[0]}, which data.tests names")
        self._carve = settings.carve
        self._no_dev = "dev" not in present
        self._no_gate = "gate" not in present
        self._no_test = "test" in settings.test_splits and "test" not in present
        self._left_out = self._surplus(settings.max_train_queries)

    def __len__(self) -> int:
        return len(self._given)

    def given(self, qid: str) -> str | None:
        """The split of the judgments that count for this query; None when it has none."""
        return self._given.get(qid)

    def of(self, qid: str) -> str | None:
        """The split this query ends up in; None when it is not judged or not wanted."""
        split = self._given.get(qid)
        if split is None or qid in self._left_out:
            return None
        return self._carved(qid, split)

    def _carved(self, qid: str, split: str) -> str:
        if split == "train" and self._no_dev and unit_hash(qid, "dev") < self._carve.dev:
            split = "dev"
        if split == "dev" and self._no_test and unit_hash(qid, "test") < self._carve.test:
            return "test"
        if split == "dev" and self._no_gate and unit_hash(qid, "gate") < self._carve.gate:
            return "gate"
        return split

    def _surplus(self, limit: int | None) -> set[str]:
        if limit is None:
            return set()
        train = [qid for qid, split in self._given.items() if self._carved(qid, split) == "train"]
        return set(sorted(train, key=lambda qid: unit_hash(qid, "limit"))[limit:])


def unit_hash(qid: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the qid and the purpose alone."""
    digest = hashlib.blake2b(f"{purpose}\t{qid}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
