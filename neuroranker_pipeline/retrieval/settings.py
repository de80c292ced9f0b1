"""Settings of the first stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from neuroranker_pipeline.errors import require

LANGUAGES = (
    "ar", "bn", "da", "de", "en", "es", "fa", "fi", "fr", "hi", "hu", "id", "it", "ja", "ko", "nl", "no", "pl", "pt",
    "ru", "sv", "sw", "te", "th", "tr", "uk", "zh",
)  # fmt: skip
"""What Anserini has an analyzer for."""


@dataclass(frozen=True)
class TuneSettings:
    """A grid of k1 and b, tried on at most ``queries`` training queries.

    The settings' own k1 and b are always part of the grid. ``measure`` is ``recall`` (within the depth) or ``mrr`` (at 10).
    """

    k1: tuple[float, ...] = (0.6, 0.8, 0.9, 1.0, 1.2)
    b: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    queries: int = 500
    measure: Literal["recall", "mrr"] = "recall"

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        require(len(self.k1) > 0 and all(0 <= k1 <= 100 for k1 in self.k1), "k1", "numbers from 0 to 100", self.k1)
        require(len(self.b) > 0 and all(0 <= b <= 1 for b in self.b), "b", "numbers from 0 to 1", self.b)
        require(self.queries >= 1, "queries", "at least 1", self.queries)
        require(self.measure in ("recall", "mrr"), "measure", "recall or mrr", self.measure)


@dataclass(frozen=True)
class BM25Settings:
    """Robertson's BM25 with the constants of Anserini's MS MARCO baseline.

    ``depth`` is the number of candidates a query gets. ``language``, ``stemmer`` and ``keep_stopwords`` choose the analyzer
    of passages and queries; the latter two are for English. ``threads`` and ``heap_mb`` (MiB) of a search count for the
    first user of Java in a process. ``tune`` looks for a better k1 and b.
    """

    k1: float = 0.9
    b: float = 0.4
    depth: int = 100
    threads: int = 2
    heap_mb: int = 1024
    language: str = "en"
    stemmer: Literal["porter", "krovetz", "none"] = "porter"
    keep_stopwords: bool = False
    tune: TuneSettings | None = None

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        require(0 <= self.k1 <= 100, "k1", "from 0 to 100", self.k1)
        require(0 <= self.b <= 1, "b", "from 0 to 1", self.b)
        require(1 <= self.depth <= 10_000, "depth", "from 1 to 10000", self.depth)
        require(1 <= self.threads <= 256, "threads", "from 1 to 256", self.threads)
        require(self.heap_mb >= 64, "heap_mb", "at least 64", self.heap_mb)
        require(self.language in LANGUAGES, "language", f"one of {', '.join(LANGUAGES)}", self.language)
        require(self.stemmer in ("porter", "krovetz", "none"), "stemmer", "porter, krovetz or none", self.stemmer)
        english = self.language == "en"
        require(english or self.stemmer == "porter", "stemmer", "left out: it is for language en alone", self.stemmer)
        require(english or not self.keep_stopwords, "keep_stopwords", "left out: it is for language en alone", True)
