"""Every setting of a run, typed. A profile's YAML fills them; see :mod:`neuroranker_pipeline.config.load`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from neuroranker_pipeline.datasets.joined import MAIN, check_name
from neuroranker_pipeline.datasets.pydocs import PydocsSettings
from neuroranker_pipeline.datasets.source import DataSettings
from neuroranker_pipeline.errors import require
from neuroranker_pipeline.export.settings import QuantizationSettings
from neuroranker_pipeline.ranking.settings import EnsembleSettings, StudentSettings, UnjudgedSettings
from neuroranker_pipeline.retrieval.settings import BM25Settings

FORBID: dict[str, Any] = {"extra": "forbid"}


@dataclass(frozen=True)
class ShardSettings:
    """How many partitions the training queries, the queries without judgments and the passages are split into."""

    train_queries: int = 2
    passages: int = 2
    unjudged_queries: int = 1

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID

    def __post_init__(self) -> None:
        require(1 <= self.train_queries <= 99, "train_queries", "from 1 to 99", self.train_queries)
        require(1 <= self.passages <= 99, "passages", "from 1 to 99", self.passages)
        require(1 <= self.unjudged_queries <= 99, "unjudged_queries", "from 1 to 99", self.unjudged_queries)


@dataclass(frozen=True)
class Bounds:
    """What the blocking checks demand on the dev split, in MRR@10: the gain of one ranker over another that it must not
    fall short of significantly (a paired randomization test at ``alpha``), and the loss of int8 that it must not exceed so.
    batch_sensitivity: the most that any component of a text's int8 vector may change with the texts that share its batch.
    unanswered: the share of a query shard's queries for which retrieval may find nothing, rounded up to whole queries."""

    teacher_over_bm25: float = 0.0
    student_over_bm25: float = 0.0
    student_over_base: float = 0.0
    alpha: float = 0.05
    unanswered: float = 0.1
    int8_loss: float = 0.01
    batch_sensitivity: float = 1e-4

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID

    def __post_init__(self) -> None:
        for name in ("teacher_over_bm25", "student_over_bm25", "student_over_base"):
            require(-1 <= getattr(self, name) <= 1, name, "from -1 to 1", getattr(self, name))
        require(0 < self.alpha < 1, "alpha", "between 0 and 1", self.alpha)
        require(0 <= self.unanswered <= 1, "unanswered", "from 0 to 1", self.unanswered)
        for name in ("int8_loss", "batch_sensitivity"):
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))


@dataclass(frozen=True)
class MiningSettings:
    """Negatives that the student finds hard itself (ANCE, https://arxiv.org/abs/2007.00808, among BM25's candidates).

    rounds: how often, after its training, the student's own scores order the candidates that new lists are drawn from, which
    it is trained on further. depth: their negatives come from the first so many.
    """

    rounds: int = 0
    depth: int = 20

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID

    def __post_init__(self) -> None:
        require(0 <= self.rounds <= 5, "rounds", "from 0 to 5", self.rounds)
        require(self.depth >= 1, "depth", "at least 1", self.depth)


@dataclass(frozen=True)
class RetrySettings:
    """How often a step that failed for no fault of its input is tried again, and how long after it failed: twice as long
    after each further time."""

    limit: int = 1
    delay_seconds: float = 30.0

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID

    def __post_init__(self) -> None:
        require(0 <= self.limit <= 10, "limit", "from 0 to 10", self.limit)
        require(0 <= self.delay_seconds <= 3600, "delay_seconds", "from 0 to 3600", self.delay_seconds)


@dataclass(frozen=True)
class ReleaseSettings:
    """What search must show on the gate split to be released, in ``measure``: that it is above BM25 by more than
    ``over_bm25``, by a paired randomization test at ``alpha``, and that it loses less than ``loss_to_base`` to the base
    student and less than ``loss_to_release`` to the best release kept, by the interval of the mean difference at the level
    1 - ``alpha``. ``keep``: how many releases are kept, to roll back to."""

    measure: str = "MRR@10"
    alpha: float = 0.05
    over_bm25: float = 0.0
    loss_to_base: float = 0.05
    loss_to_release: float = 0.03
    keep: int = 3

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID

    def __post_init__(self) -> None:
        known = re.fullmatch(r"(MRR|nDCG|R|P|MAP)@[1-9]\d*|MAP|MRR", self.measure) is not None
        require(known, "measure", "a measure such as MRR@10, nDCG@10, R@100 or MAP", self.measure)
        require(0 < self.alpha < 1, "alpha", "between 0 and 1", self.alpha)
        require(-1 <= self.over_bm25 <= 1, "over_bm25", "from -1 to 1", self.over_bm25)
        require(0 <= self.loss_to_base <= 1, "loss_to_base", "from 0 to 1", self.loss_to_base)
        require(0 <= self.loss_to_release <= 1, "loss_to_release", "from 0 to 1", self.loss_to_release)
        require(self.keep >= 1, "keep", "at least 1", self.keep)


@dataclass(frozen=True)
class InterpolationSettings:
    """The final score: the student's, standardized, plus a weight times BM25's, standardized. ``grid``: the weights tried on
    the dev split, among them 0, the student alone; an empty one leaves BM25's score out."""

    grid: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID

    def __post_init__(self) -> None:
        known = all(0 <= weight <= 10 for weight in self.grid) and (not self.grid or 0 in self.grid)
        require(known, "grid", "weights from 0 to 10 with 0 among them, or none", self.grid)


@dataclass(frozen=True)
class BentoSettings:
    """The Bento's name in the BentoML store, as in ``bentoml serve <name>:latest``; ``search``: whether it carries the
    collection (index, texts and vectors) and answers ``/search``."""

    name: str = "ranker"
    search: bool = True

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID

    def __post_init__(self) -> None:
        good = re.fullmatch(r"[a-z0-9]([-_.a-z0-9]*[a-z0-9])?", self.name) is not None
        require(good, "name", "lower-case letters, digits, '-', '_' and '.'", self.name)


@dataclass(frozen=True)
class Settings:
    """One profile. ``data`` is the collection, ``training_collections`` are further ones, by name, whose training queries
    are learned from; ``unjudged``: queries without judgments that the student learns from too; ``cascade_depth``: how many
    candidates of an evaluation query the teacher scores, the base student's best; ``timing_seconds``: how long the report
    times each ranker, three queries at least; ``device``: where models are trained and run."""

    profile: str
    seed: int = 13
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cascade_depth: int = 100
    timing_seconds: float = 2.0
    data: DataSettings = field(default_factory=PydocsSettings)
    training_collections: Mapping[str, DataSettings] = field(default_factory=dict)
    unjudged: UnjudgedSettings = field(default_factory=UnjudgedSettings)
    shards: ShardSettings = field(default_factory=ShardSettings)
    bm25: BM25Settings = field(default_factory=BM25Settings)
    teacher: EnsembleSettings = field(default_factory=EnsembleSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    mining: MiningSettings = field(default_factory=MiningSettings)
    quantization: QuantizationSettings = field(default_factory=QuantizationSettings)
    bounds: Bounds = field(default_factory=Bounds)
    interpolation: InterpolationSettings = field(default_factory=InterpolationSettings)
    bento: BentoSettings = field(default_factory=BentoSettings)
    release: ReleaseSettings = field(default_factory=ReleaseSettings)
    retries: RetrySettings = field(default_factory=RetrySettings)

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", "at least 0", self.seed)
        require(self.timing_seconds >= 0, "timing_seconds", "at least 0", self.timing_seconds)
        for name in self.training_collections:
            check_name(name)
        student = (
            self.student
        )  # the graph trains it on the teacher's scores, and its control on labels, on the same lists
        require(student.objective == "distill", "student.objective", "distill", student.objective)
        lists = student.lists
        require(lists.negatives >= 1, "student.lists.negatives", "at least 1", lists.negatives)
        for name, member in self.teacher.members.items():
            for collection in member.collections or ():
                known = MAIN, *self.training_collections
                place = f"teacher.members.{name}.collections"
                require(collection in known, place, f"among {', '.join(known)}", collection)
        deep = not self.mining.rounds or self.mining.depth >= lists.negatives
        require(deep, "mining.depth", "at least student.lists.negatives", self.mining.depth)
        learned = self.data.judged or self.unjudged.source != "none"
        require(learned, "unjudged.source", "file, titles or sentences where data has no queries", self.unjudged.source)
        enough = self.unjudged.source != "file" or self.cascade_depth > lists.negatives
        require(enough, "cascade_depth", "more than student.lists.negatives", self.cascade_depth)
        require(self.cascade_depth >= 10, "cascade_depth", "at least 10, the depth of MRR@10", self.cascade_depth)
        require(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.profile) is not None,
            "profile",
            "a file name of letters, digits, '.', '_' and '-'",
            self.profile,
        )

    @property
    def splits_needed(self) -> tuple[str, ...]:
        """The splits that must hold a query, to train with and to choose by; none where nothing is judged."""
        if not self.data.judged:
            return ()
        members = self.teacher.members.values()
        ready = bool(members) and not any(member.train for member in members)
        return ("dev",) if ready and self.unjudged.source != "none" else ("train", "dev")

    @property
    def relevance_levels(self) -> dict[str, dict[str, int]]:
        """The lowest grade that counts as relevant, by collection and split: of joined collections, training's alone."""
        splits = ("train", "dev", "gate", *self.data.test_splits)
        levels = {MAIN: {split: self.data.relevant_from(split) for split in splits}}
        return levels | {
            name: {"train": other.relevant_from("train")} for name, other in self.training_collections.items()
        }

    @property
    def queries_are_passages(self) -> dict[str, Literal["auto"] | bool]:
        """Whether the queries of each collection are passages of it."""
        collections = {MAIN: self.data, **self.training_collections}
        return {name: data.queries_are_passages for name, data in collections.items()}

    @property
    def learned_levels(self) -> dict[str, dict[str, int]]:
        """Those of ``relevance_levels`` that training and choosing read."""
        levels = self.relevance_levels
        return levels | {MAIN: {split: levels[MAIN][split] for split in ("train", "dev")}}

    @property
    def judged_negatives(self) -> bool:
        """Whether passages judged not relevant are learned from though retrieval may not have found them."""
        lists = [self.student.lists, self.teacher.lists, *(member.lists for member in self.teacher.members.values())]
        return any(one.judged_negatives for one in lists)

    @property
    def collection_weights(self) -> dict[str, float]:
        """How often a training query of each collection is learned from."""
        return {MAIN: self.data.weight, **{name: other.weight for name, other in self.training_collections.items()}}
