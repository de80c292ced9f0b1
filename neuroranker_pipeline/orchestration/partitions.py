"""Query shards and passage shards: the partitions of the graph."""

from __future__ import annotations

from typing import Literal

from neuroranker_pipeline.config.settings import Settings

Shards = Literal["queries", "passages", "tests"]


def shard_keys(shards: Shards, settings: Settings) -> list[str]:
    """Partition keys: the training queries in N shards and each evaluation split, the passages in N shards, or the test
    splits."""
    if shards == "passages":
        return [f"shard-{i:02d}" for i in range(settings.shards.passages)]
    if shards == "tests":
        return list(settings.data.test_splits)
    return [*train_shards(settings), "dev", "gate", *settings.data.test_splits]


def train_shards(settings: Settings) -> list[str]:
    """The query shards that training may read."""
    return [f"train-{i:02d}" for i in range(settings.shards.train_queries)]
