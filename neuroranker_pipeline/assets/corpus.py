"""The collection: passages, queries and relevance judgments, from the profile's source."""

import warnings

import dagster as dg

from neuroranker_pipeline.assets.lake_asset import RAW_DATASET, lake_asset
from neuroranker_pipeline.assets.previews import table_preview
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.checks import corpus as checks
from neuroranker_pipeline.datasets.tables import PASSAGES, QRELS, QUERIES, read_table, write_table
from neuroranker_pipeline.datasets.validate import judged_outside
from neuroranker_pipeline.resources.workspace import Workspace

with warnings.catch_warnings():
    warnings.simplefilter("ignore", dg.BetaWarning)  # the only way to declare data that others write

    @dg.multi_observable_source_asset(
        specs=[dg.AssetSpec(RAW_DATASET, group_name="corpus", description="The raw data, outside the lake.")]
    )
    def raw_dataset(workspace: Workspace) -> dg.ObserveResult:
        """Observe the raw data: its version is a digest of its content."""
        return dg.ObserveResult(RAW_DATASET, data_version=dg.DataVersion(workspace.source.digest()))


@lake_asset(
    group="corpus",
    kinds={"parquet"},
    from_source=True,
    settings=["data"],
    checks=[checks.passages_are_valid],
)
def passages(step: Step) -> None:
    """The collection, one row a passage: pid, text."""
    rows = write_table(step.out, step.source.passages(), PASSAGES)
    table = read_table(step.out)
    step.record(rows)
    step.show("preview", table_preview(table))
    step.show("licence", step.source.licence)
    step.check(checks.passages_are_valid(table))


@lake_asset(
    group="corpus",
    kinds={"parquet"},
    from_source=True,
    settings=["data"],
    checks=[checks.queries_are_valid],
)
def queries(step: Step) -> None:
    """One row a query: qid, text, split (train, dev, gate or test)."""
    rows = write_table(step.out, step.source.queries(), QUERIES)
    table = read_table(step.out)
    sizes = table.group_by("split").aggregate([("qid", "count")]).to_pylist()
    step.record(rows, **{f"{size['split']}_queries": size["qid_count"] for size in sizes})
    step.show("preview", table_preview(table))
    step.check(checks.queries_are_valid(table))


@lake_asset(
    group="corpus",
    kinds={"parquet"},
    from_source=True,
    needs=[passages, queries],
    settings=["data"],
    checks=[checks.qrels_are_valid],
)
def qrels(step: Step) -> None:
    """Relevance judgments, one row a judged pair: qid, pid, grade, split.

    Graded test judgments of passages outside the collection are kept: without them the ideal DCG would change.
    """
    rows = write_table(step.out, step.source.qrels(), QRELS)
    table = read_table(step.out)
    collection = read_table(step.read("passages"), columns=["pid"])
    outside = judged_outside(table, collection["pid"])
    step.record(rows, judged_outside_collection=sum(outside.values()))
    step.show("preview", table_preview(table))
    step.check(checks.qrels_are_valid(table, read_table(step.read("queries")), collection))
