"""Query shards and passage shards: the partitions of the graph."""

from __future__ import annotations

from typing import Literal

from neuroranker_pipeline.config.settings import Settings

Shards = Literal["queries", "passages"]

EVALUATION_SPLITS = ("dev", "gate", "test")


def shard_keys(shards: Shards, settings: Settings) -> list[str]:
    """Partition keys: the training queries in N shards and each evaluation split, or the passages in N shards."""
    if shards == "passages":
        return [f"shard-{i:02d}" for i in range(settings.shards.passages)]
    return [*train_shards(settings), *EVALUATION_SPLITS]


def train_shards(settings: Settings) -> list[str]:
    """The query shards that training may read."""
    return [f"train-{i:02d}" for i in range(settings.shards.train_queries)]
