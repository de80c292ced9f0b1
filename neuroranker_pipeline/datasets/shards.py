"""Which rows belong to which shard."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc


def stable_number(text: str) -> int:
    """64 bits of a text's hash: the same on every machine and in every run."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def stable_shard(identifier: str, shards: int) -> int:
    """The shard, 0 to ``shards - 1``, of an id: the same on every machine and in every run."""
    return stable_number(identifier) % shards


def queries_of_shard(queries: pa.Table, key: str, train_shards: int) -> pa.Table:
    """The rows of a query shard: ``train-NN`` is a part of the training split, any other key a whole split."""
    split, _, number = key.partition("-")
    if split != "train":
        return queries.filter(pc.equal(queries["split"], key))
    rows = queries.filter(pc.equal(queries["split"], split))
    mine = [stable_shard(qid, train_shards) == int(number) for qid in rows["qid"].to_pylist()]
    return rows.filter(pa.array(mine, pa.bool_()))


def rows_of_shard(rows: int, key: str, shards: int) -> slice:
    """The contiguous rows of passage shard ``shard-NN`` out of ``rows``, split as evenly as can be."""
    number = int(key.partition("-")[2])
    return slice(rows * number // shards, rows * (number + 1) // shards)


def judgments_of(qrels: pa.Table, qids: Iterable[str]) -> pa.Table:
    """The judgments of some queries."""
    return qrels.filter(pc.is_in(qrels["qid"], pa.array(list(qids), pa.string())))
