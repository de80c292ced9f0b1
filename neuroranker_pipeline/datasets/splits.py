"""Which query belongs to which split, and the settings that all collections read from files share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from neuroranker_pipeline.datasets.held_out import SAME, Carving, HeldOut
from neuroranker_pipeline.datasets.near import NEAR, same_text
from neuroranker_pipeline.errors import BadInput, require

FORBID: dict[str, Any] = {"extra": "forbid"}
MAX_WEIGHT = 20
UNJUDGED = "queries without a judgment"
SURPLUS = "training queries beyond data.max_train_queries"
STRENGTH = {"train": 0, "dev": 1, "gate": 2}  # a test split is stronger than all


@dataclass(frozen=True)
class CarveSettings:
    """Shares of questions, chosen by a hash of their text, that make up for splits which the data lacks: ``dev`` of the
    training queries, then ``test`` of dev, then ``gate`` of what is left of dev. All queries of one question go together.

    ``near``: a training question whose words have this Jaccard similarity or more with those of one that was carved out of
    training is not learned from."""

    dev: float = 0.1
    test: float = 0.5
    gate: float = 0.5
    near: float = NEAR

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID

    def __post_init__(self) -> None:
        for name in ("dev", "test", "gate"):
            require(0 < getattr(self, name) < 1, name, "between 0 and 1", getattr(self, name))
        require(0 < self.near <= 1, "near", "above 0, at most 1", self.near)


@dataclass(frozen=True, kw_only=True)
class CollectionSettings:
    """folder: where the files are, absolute or below the data root.
    max_reject_share: the share of rows that may be unusable; above it the asset fails (the main collection's holds for
    joined ones too).
    repair_encoding: mend text that was decoded wrongly (ftfy).
    max_train_queries: at most so many training queries, chosen by a hash of the qid.
    weight: how often a training query is learned from: 0.25 is a quarter of them, chosen by a hash, and 2 is two lists of
    each, with other negatives.
    relevance_level: the lowest grade that counts as relevant in training and in binary measures; a number, or one for each
    split that differs from the data set's own (1, and 2 in TREC DL's test sets): ``{train: 2, test: 2}``.
    queries_are_passages: whether the queries are passages of the collection themselves, which no query may find: true where
    a passage has the query's id, false for none, ``auto`` where it has the query's text too.
    """

    folder: str
    max_reject_share: float = 0.001
    repair_encoding: bool = False
    max_train_queries: int | None = None
    weight: float = 1.0
    carve: CarveSettings = field(default_factory=CarveSettings)
    relevance_level: int | Mapping[str, int] | None = None
    queries_are_passages: Literal["auto"] | bool = "auto"

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID

    def __post_init__(self) -> None:
        require(bool(self.folder), "folder", "a folder", self.folder)
        require(0 <= self.max_reject_share < 1, "max_reject_share", "from 0 to below 1", self.max_reject_share)
        limit = self.max_train_queries
        require(limit is None or limit >= 1, "max_train_queries", "at least 1, or null for all", limit)
        require(0 <= self.weight <= MAX_WEIGHT, "weight", f"from 0 to {MAX_WEIGHT}", self.weight)
        level = self.relevance_level
        known = ("train", "dev", "gate", *self.test_splits)
        for split in level if isinstance(level, Mapping) else ():
            require(split in known, "relevance_level", f"by split, among {', '.join(known)}", split)
        for value in level.values() if isinstance(level, Mapping) else [1 if level is None else level]:
            require(value >= 1, "relevance_level", "at least 1", value)

    @property
    def test_splits(self) -> tuple[str, ...]:
        """The splits that are reported and decide nothing, each a partition of its own."""
        return ("test",)

    @property
    def whole_dev(self) -> tuple[str, ...]:
        """The splits that make up the development set as the field reports it; none where it has no such name."""
        return ()

    @property
    def given_splits(self) -> tuple[str, ...]:
        """The test splits whose candidates came with the data."""
        return ()

    @property
    def judged(self) -> bool:
        """Whether there are queries and judgments at all."""
        return True

    def relevant_from(self, split: str) -> int:
        """The lowest grade that counts as relevant in ``split``, or in the split of a query shard (``train-03``)."""
        split = "train" if split.startswith("train-") else split
        given = self.relevance_level
        if isinstance(given, Mapping):
            return given.get(split, self.own_level(split))
        return self.own_level(split) if given is None else given

    def own_level(self, split: str) -> int:
        """The level that the data set itself states."""
        return 1


class Splits:
    """The split of every judged query.

    A query judged in several splits belongs to the strongest (test, gate, dev, train), and its judgments in the others
    are left out. So are training queries that ask what a query of another split asks: what is tested on is never learned
    from. Splits that the data gives stay as they are; only training loses queries.
    """

    def __init__(
        self, judged: Iterable[tuple[str, str]], settings: CollectionSettings, texts: Iterable[tuple[str, str]] = ()
    ) -> None:
        """``judged`` are (qid, split) pairs and ``texts`` (qid, text) pairs, repeated at will; a query without a text is a
        question of its own. Raises ``BadInput`` for a split that is unknown, or declared and not there."""
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
        self._question: dict[str, str] = {}
        for qid, text in texts:
            if qid in self._given and qid not in self._question:  # of a repeated qid the first row is kept
                self._question[qid] = same_text(text)
        self._left_out = self._repeated()
        self._left_out |= self._surplus(settings.max_train_queries)

    def __len__(self) -> int:
        return len(self._given)

    def given(self, qid: str) -> str | None:
        """The split of the judgments that count for this query; None when it has none."""
        return self._given.get(qid)

    @property
    def carving(self) -> Carving:
        """Which splits were carved out of training."""
        made = {"dev": self._no_dev, "test": self._no_dev and self._no_test, "gate": self._no_dev and self._no_gate}
        return Carving(frozenset(split for split, carved in made.items() if carved), self._carve.near)

    def of(self, qid: str) -> str | None:
        """The split this query ends up in; None when it is not judged or not wanted (``left_out`` says why)."""
        split = self._given.get(qid)
        if split is None or qid in self._left_out:
            return None
        return self._carved(qid, split)

    def left_out(self, qid: str) -> str:
        """Why a query ends up in no split."""
        return self._left_out.get(qid, UNJUDGED)

    def _carved(self, qid: str, split: str) -> str:
        question = self._question.get(qid, qid)
        if split == "train" and self._no_dev and unit_hash(question, "dev") < self._carve.dev:
            split = "dev"
        if split == "dev" and self._no_test and unit_hash(question, "test") < self._carve.test:
            return "test"
        if split == "dev" and self._no_gate and unit_hash(question, "gate") < self._carve.gate:
            return "gate"
        return split

    def _repeated(self) -> dict[str, str]:
        """The training queries that ask what a query of another split asks, and what is said of them."""
        asked = self._question
        given = {asked[qid] for qid, split in self._given.items() if split != "train" and qid in asked}
        train = [qid for qid, split in self._given.items() if split == "train" and qid in asked]
        same = {qid: SAME for qid in train if asked[qid] in given}
        rest = [qid for qid in train if qid not in same]
        ends = {qid: self._carved(qid, "train") for qid in rest}
        carved = tuple(sorted({asked[qid] for qid in rest if ends[qid] != "train"}))
        rest = [qid for qid in rest if ends[qid] == "train"]
        near = HeldOut(carved=carved, near=self._carve.near).repeated([asked[qid] for qid in rest])
        return same | {rest[row]: why for row, why in near.items()}

    def _surplus(self, limit: int | None) -> dict[str, str]:
        if limit is None:
            return {}
        train = [qid for qid in self._given if self.of(qid) == "train"]
        return dict.fromkeys(sorted(train, key=lambda qid: unit_hash(qid, "limit"))[limit:], SURPLUS)


def unit_hash(text: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the text and the purpose alone."""
    digest = hashlib.blake2b(f"{purpose}\t{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
