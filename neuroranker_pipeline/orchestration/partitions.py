"""Query shards and passage shards: the partitions of the graph."""

from __future__ import annotations

from typing import Literal

from neuroranker_pipeline.config.settings import Settings
from neuroranker_pipeline.ranking.settings import UNJUDGED

Shards = Literal["queries", "passages", "tests"]


def shard_keys(shards: Shards, settings: Settings) -> list[str]:
    """Partition keys: the training queries in N shards, those without judgments where there are some, and each evaluation
    split; the passages in N shards; or the test splits."""
    if shards == "passages":
        return [f"shard-{i:02d}" for i in range(settings.shards.passages)]
    if shards == "tests":
        return list(settings.data.test_splits)
    return [*learned_shards(settings), "dev", "gate", *settings.data.test_splits]


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
