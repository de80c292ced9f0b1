"""Every setting of a run, typed. A profile's YAML fills them; see :mod:`neuroranker_pipeline.config.load`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from neuroranker_pipeline.datasets.joined import check_name
from neuroranker_pipeline.datasets.pydocs import PydocsSettings
from neuroranker_pipeline.datasets.source import DataSettings
from neuroranker_pipeline.errors import require
from neuroranker_pipeline.export.settings import QuantizationSettings
from neuroranker_pipeline.ranking.settings import StudentSettings, TeacherSettings
from neuroranker_pipeline.retrieval.settings import BM25Settings

FORBID: dict[str, Any] = {"extra": "forbid"}


@dataclass(frozen=True)
class ShardSettings:
    """How many partitions the training queries and the passages are split into."""

    train_queries: int = 2
    passages: int = 2

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID

    def __post_init__(self) -> None:
        require(1 <= self.train_queries <= 99, "train_queries", "from 1 to 99", self.train_queries)
        require(1 <= self.passages <= 99, "passages", "from 1 to 99", self.passages)


@dataclass(frozen=True)
class Bounds:
    """What the blocking checks demand on the dev split, in MRR@10: the least gain of one ranker over another, and the most
    that int8 may lose. batch_sensitivity: the most that any component of a text's int8 vector may change with the
    texts that share its batch."""

    teacher_over_bm25: float = 0.0
    student_over_bm25: float = 0.0
    student_over_base: float = 0.0
    int8_loss: float = 0.01
    batch_sensitivity: float = 1e-4

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID

    def __post_init__(self) -> None:
        for name in ("teacher_over_bm25", "student_over_bm25", "student_over_base"):
            require(-1 <= getattr(self, name) <= 1, name, "from -1 to 1", getattr(self, name))
        for name in ("int8_loss", "batch_sensitivity"):
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))


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
    are learned from; ``cascade_depth``: how many candidates of an evaluation query the teacher scores, the base student's
    best; ``device``: where models are trained and run."""

    profile: str
    seed: int = 13
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cascade_depth: int = 100
    data: DataSettings = field(default_factory=PydocsSettings)
    training_collections: Mapping[str, DataSettings] = field(default_factory=dict)
    shards: ShardSettings = field(default_factory=ShardSettings)
    bm25: BM25Settings = field(default_factory=BM25Settings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    quantization: QuantizationSettings = field(default_factory=QuantizationSettings)
    bounds: Bounds = field(default_factory=Bounds)
    bento: BentoSettings = field(default_factory=BentoSettings)

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", "at least 0", self.seed)
        for name in self.training_collections:
            check_name(name)
        student = (
            self.student
        )  # the graph trains it on the teacher's scores, and its control on labels, on the same lists
        require(student.objective == "distill", "student.objective", "distill", student.objective)
        lists = student.lists
        require(lists.negatives >= 1, "student.lists.negatives", "at least 1", lists.negatives)
        require(lists.lists_per_query == 1, "student.lists.lists_per_query", "1", lists.lists_per_query)
        require(self.cascade_depth >= 10, "cascade_depth", "at least 10, the depth of MRR@10", self.cascade_depth)
        require(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.profile) is not None,
            "profile",
            "a file name of letters, digits, '.', '_' and '-'",
            self.profile,
        )
