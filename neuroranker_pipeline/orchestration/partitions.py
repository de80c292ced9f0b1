"""Query shards and passage shards: the partitions of the graph."""

from __future__ import annotations

from typing import Literal

from neuroranker_pipeline.config.settings import Settings
from neuroranker_pipeline.ranking.settings import UNJUDGED

Shards = Literal["queries", "passages", "tests"]
WHOLE_DEV = "dev-whole"


def shard_keys(shards: Shards, settings: Settings) -> list[str]:
    """Partition keys: the training queries in N shards, those without judgments where there are some, and each evaluation
    split; the passages in N shards; or what is reported on: the test splits, and the whole development set where the
    field reports on it."""
    if shards == "passages":
        return [f"shard-{i:02d}" for i in range(settings.shards.passages)]
    if shards == "tests":
        return [*settings.data.test_splits, *([WHOLE_DEV] if settings.data.whole_dev else [])]
    return [*learned_shards(settings), "dev", "gate", *settings.data.test_splits]


def reported_parts(key: str, settings: Settings) -> list[str]:
    """The query shards that a reported split consists of."""
    return list(settings.data.whole_dev) if key == WHOLE_DEV else [key]


def reports_of_shards(settings: Settings) -> dict[str, set[str]]:
    """The splits that each query shard is reported in."""
    reported: dict[str, set[str]] = {}
    for key in shard_keys("tests", settings):
        for part in reported_parts(key, settings):
            reported.setdefault(part, set()).add(key)
    return reported


def train_shards(settings: Settings) -> list[str]:
    """The query shards that training may read."""
    return [f"train-{i:02d}" for i in range(settings.shards.train_queries)]


def learned_shards(settings: Settings) -> list[str]:
    """The query shards that the student may learn from: training queries, and those without judgments."""
    if settings.unjudged.source == "none":
        return train_shards(settings)
    return [*train_shards(settings), *(f"{UNJUDGED}-{i:02d}" for i in range(settings.shards.unjudged_queries))]


def is_learned(key: str | None) -> bool:
    """Whether the student learns from a query shard."""
    return (key or "").startswith("train-") or is_unjudged(key)


def is_unjudged(key: str | None) -> bool:
    """Whether a query shard holds queries without judgments."""
    return (key or "").startswith(f"{UNJUDGED}-")
