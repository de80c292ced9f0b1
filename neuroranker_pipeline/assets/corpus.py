"""The collection: passages, queries and relevance judgments, from the profile's source."""

import hashlib
import json
import warnings
from collections.abc import Callable
from functools import partial
from typing import get_args

import dagster as dg
import pyarrow as pa

from neuroranker_pipeline.assets.columns import Columns
from neuroranker_pipeline.assets.lake_asset import OWNERS, RAW_DATASET, lake_asset
from neuroranker_pipeline.assets.policies import EVERY_HOUR, WHEN_INPUTS_CHANGE
from neuroranker_pipeline.assets.previews import table_preview
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.checks import corpus as checks
from neuroranker_pipeline.datasets.known import existing, known_candidates, known_judgments
from neuroranker_pipeline.datasets.own import OWN_PASSAGES, OWN_PASSAGES_FOLDER, own_passages
from neuroranker_pipeline.datasets.prepare import digest_of_file
from neuroranker_pipeline.datasets.relevance import levelled
from neuroranker_pipeline.datasets.source import RawTable
from neuroranker_pipeline.datasets.tables import (
    CANDIDATES,
    GIVEN,
    JUDGMENTS,
    PASSAGES,
    QRELS,
    QUERIES,
    read_batches,
    read_table,
    write_table,
)
from neuroranker_pipeline.datasets.validate import judged_outside, without_relevant
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.resources.workspace import Workspace

LEAKS_FILE = "leaks.json"  # beside the queries

with warnings.catch_warnings():
    warnings.simplefilter("ignore", dg.BetaWarning)  # the only way to declare data that others write

    @dg.multi_observable_source_asset(
        specs=[
            dg.AssetSpec(
                RAW_DATASET,
                group_name="corpus",
                description="The raw data, outside the lake.",
                owners=OWNERS,
                kinds={"file"},
                automation_condition=EVERY_HOUR,
            )
        ]
    )
    def raw_dataset(workspace: Workspace) -> dg.ObserveResult:
        """Observe the raw data: its version is a digest of its content."""
        return dg.ObserveResult(RAW_DATASET, data_version=dg.DataVersion(raw_version(workspace)))


def raw_version(workspace: Workspace, complete: bool = False) -> str:
    """One digest over all of the raw data; each asset made from it depends on the part that it reads alone.

    A part whose files are missing is no error here, whoever needs it will say so; but raises ``BadInput`` if the data has to
    be ``complete``.
    """

    def part(digest: Callable[[], str]) -> str:
        try:
            return digest()
        except BadInput:
            if complete:
                raise
            return "missing"

    digests = [part(partial(workspace.source.digest, table)) for table in get_args(RawTable)]
    if workspace.settings.unjudged.source == "file":
        digests.append(part(lambda: digest_of_file(workspace.unjudged_file)))
    return hashlib.sha256("".join(digests).encode()).hexdigest()


@lake_asset(
    group="corpus",
    kinds={"parquet"},
    from_source="passages",
    checks=[checks.passages_are_valid],
    columns=Columns(PASSAGES),
    automation=WHEN_INPUTS_CHANGE,
)
def passages(step: Step) -> None:
    """The collection, one row a passage: pid, text."""
    rejects, done = step.rejects(), 0

    def counted():
        nonlocal done
        for batch in step.source.passages(rejects):
            done += batch.num_rows
            step.progress("reading passages", done, 0)
            yield batch

    step.record(write_table(step.out, counted(), PASSAGES))
    step.account(rejects)
    step.show("preview", table_preview(pa.Table.from_batches([next(read_batches(step.out)).slice(0, 5)])))
    step.show("licence", step.source.licence)
    step.check(checks.passages_are_valid(read_batches(step.out)))


@lake_asset(
    group="corpus",
    kinds={"parquet"},
    from_source="queries",
    settings=["splits_needed"],
    checks=[checks.queries_are_valid, checks.splits_do_not_leak],
    columns=Columns(QUERIES),
    automation=WHEN_INPUTS_CHANGE,
    code_version="2",
)
def queries(step: Step) -> None:
    """One row a judged query: qid, text, split (train, dev, gate, and the test splits).

    A training question that is a dev, gate or test question is left out.
    """
    from neuroranker_pipeline.datasets.leaks import find_leaks

    rejects, carving = step.rejects(), step.source.carving
    rows = write_table(step.out, step.source.queries(rejects), QUERIES)
    step.account(rejects)
    table = read_table(step.out)
    carving.write(step.out)
    sizes = table.group_by("split").aggregate([("qid", "count")]).to_pylist()
    step.record(rows, **{f"{size['split']}_queries": size["qid_count"] for size in sizes})
    step.show("preview", table_preview(table))
    step.check(checks.queries_are_valid(table, step.settings.splits_needed))
    leaks = find_leaks(table, carving.near)
    (step.out / LEAKS_FILE).write_text(json.dumps(leaks.to_dict(), indent=2, ensure_ascii=False) + "\n", "utf-8")
    step.show("leaks", leaks.markdown())
    step.check(checks.splits_do_not_leak(leaks, carving.splits))


@lake_asset(
    group="corpus",
    kinds={"parquet"},
    from_source="qrels",
    needs=[passages, queries],
    settings=["relevance_levels", "queries_are_passages"],
    checks=[checks.qrels_are_valid],
    columns=Columns(QRELS, {"qid": "queries.qid", "split": "queries.split"}),
    automation=WHEN_INPUTS_CHANGE,
    code_version="2",
)
def qrels(step: Step) -> None:
    """Relevance judgments, one row a judged pair: qid, pid, grade, split.

    Graded test judgments of passages outside the collection are kept: without them the ideal DCG would change. Queries
    that are passages of the collection themselves are in the folder ``own_passages``: they are not judged about themselves,
    nor do they find themselves.
    """
    rejects = step.rejects()
    judged = pa.Table.from_batches(step.source.qrels(rejects), JUDGMENTS)
    asked = read_table(step.read("queries"))
    pids = existing(step.read("passages"), "pid", judged["pid"])
    own = own_passages(asked, read_batches(step.read("passages")), step.settings.queries_are_passages)
    write_table(step.out / OWN_PASSAGES_FOLDER, own, OWN_PASSAGES)
    table = known_judgments(judged, asked["qid"].combine_chunks(), pids, rejects, own)
    rows = write_table(step.out, table, QRELS)
    step.account(rejects)
    relevant = levelled(table, step.settings.relevance_levels)
    step.record(rows, judged_outside_collection=sum(judged_outside(table, pids).values()))
    step.record(queries_without_relevant=len(without_relevant(relevant)), own_passages=own.num_rows)
    step.show("preview", table_preview(table))
    step.check(checks.qrels_are_valid(relevant, asked, pids, rejects.max_share, own["qid"].combine_chunks()))


@lake_asset(
    group="corpus",
    kinds={"parquet"},
    from_source="candidates",
    needs=[passages, queries],
    settings=["bounds.unanswered"],
    checks=[checks.given_candidates_are_usable],
    columns=Columns(CANDIDATES, {"qid": "queries.qid", "pid": "passages.pid"}),
    automation=WHEN_INPUTS_CHANGE,
)
def given_candidates(step: Step) -> None:
    """Candidates that came with the data, which take the place of retrieval for their queries: qid, pid, rank, score.

    A test set whose candidates were retrieved from a larger collection is measured on those. Often there are none.
    """
    rejects = step.rejects()
    given = pa.Table.from_batches(step.source.candidates(rejects), GIVEN)
    pids = existing(step.read("passages"), "pid", given["pid"])
    asked = read_table(step.read("queries"), ["qid", "split"])
    table = known_candidates(given, asked, pids, rejects)
    step.record(write_table(step.out, table, CANDIDATES))
    step.account(rejects)
    step.show("preview", table_preview(table))
    splits, unanswered = step.settings.data.given_splits, step.settings.bounds.unanswered
    step.check(checks.given_candidates_are_usable(table, asked, splits, unanswered))
