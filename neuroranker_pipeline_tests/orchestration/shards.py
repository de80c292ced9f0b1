"""A code location of its own for tests of backfills: two assets by query shard, the second on the one GPU, and two more.

They are declared as the real ones are. Only what they compute is small, so that a daemon, its code server and a dozen runs
fit into a test.
"""

from __future__ import annotations

import time

import dagster as dg
import pyarrow as pa

from neuroranker_pipeline.assets.lake_asset import Needs, lake_asset
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.datasets.tables import read_table, write_table
from neuroranker_pipeline.resources.workspace import Workspace, default_lake

SCHEMA = pa.schema([("qid", pa.string()), ("length", pa.int32())])
OVERRIDES = ["shards.train_queries=1", "unjudged.source=none"]
SECONDS = 0.7  # that a step holds the GPU


@lake_asset(group="shards", kinds={"parquet"}, shards="queries")
def lengths(step: Step) -> None:
    """A row a query: here, one a letter of the shard's name."""
    assert step.partition is not None
    rows = [{"qid": f"{step.partition}-{i}", "length": i} for i in range(len(step.partition))]
    step.record(write_table(step.out, pa.Table.from_pylist(rows, SCHEMA), SCHEMA))


@lake_asset(group="shards", kinds={"parquet"}, needs=[Needs(lengths, "own")], shards="queries", pool="gpu")
def doubled(step: Step) -> None:
    """The shard's lengths, doubled on the GPU."""
    table = read_table(step.read("lengths"))
    time.sleep(SECONDS)
    rows = [{**row, "length": 2 * row["length"]} for row in table.to_pylist()]
    step.record(write_table(step.out, pa.Table.from_pylist(rows, SCHEMA), SCHEMA))


@lake_asset(group="shards", kinds={"parquet"}, pool="gpu")
def trained(step: Step) -> None:
    """Something else that wants the GPU."""
    time.sleep(SECONDS)
    step.record(write_table(step.out, pa.Table.from_pylist([], SCHEMA), SCHEMA))


@lake_asset(group="shards", kinds={"parquet"})
def endless(step: Step) -> None:
    """Work that never ends by itself."""
    time.sleep(3600)


ASSETS = (lengths, doubled, trained, endless)


def workspace(lake: str) -> Workspace:
    return Workspace(profile="smoke", lake_root=lake, overrides=OVERRIDES)


@dg.definitions
def defs() -> dg.Definitions:
    served = workspace(default_lake())
    return dg.Definitions(
        assets=[asset.to_dagster(served.settings) for asset in ASSETS],
        resources={"workspace": served},
        executor=dg.in_process_executor,
    )
