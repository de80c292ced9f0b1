"""Queries without judgments, and what stands for their judgments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.assets.columns import Columns
from neuroranker_pipeline.assets.corpus import passages, queries
from neuroranker_pipeline.assets.lake_asset import Needs, lake_asset
from neuroranker_pipeline.assets.policies import WHEN_INPUTS_CHANGE
from neuroranker_pipeline.assets.previews import table_preview
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.checks import corpus as checks
from neuroranker_pipeline.config.settings import Settings
from neuroranker_pipeline.datasets.held_out import Carving
from neuroranker_pipeline.datasets.joined import MAIN, collection_of
from neuroranker_pipeline.datasets.own import OWN_PASSAGES_FOLDER
from neuroranker_pipeline.datasets.prepare import digest_of_file
from neuroranker_pipeline.datasets.relevance import levelled
from neuroranker_pipeline.datasets.tables import QUERIES, read_batches, read_table, read_texts, write_table
from neuroranker_pipeline.orchestration.partitions import is_unjudged
from neuroranker_pipeline.ranking.settings import UNJUDGED
from neuroranker_pipeline.resources.workspace import Workspace

if TYPE_CHECKING:
    from neuroranker_pipeline.ranking.settings import UnjudgedSettings


def wanted(settings: Settings) -> bool:
    """Whether the student learns from queries without judgments."""
    return settings.unjudged.source != "none"


def _file_version(workspace: Workspace) -> Mapping[str, str]:
    if workspace.settings.unjudged.source != "file":
        return {}
    return {"unjudged.file": digest_of_file(workspace.unjudged_file)}


# An asset of its own, not rows of `queries`: a teacher of many hours does not become stale when the student is given more
# queries to learn from.
@lake_asset(
    group="corpus",
    kinds={"parquet"},
    needs=[Needs(passages, when=lambda settings: settings.unjudged.source in ("titles", "sentences")), queries],
    settings=["unjudged", "shards.unjudged_queries"],
    checks=[checks.unjudged_queries_are_valid, checks.splits_do_not_leak],
    columns=Columns(QUERIES, {"qid": "passages.pid", "text": "passages.text"}),
    automation=WHEN_INPUTS_CHANGE,
    also_from=_file_version,
    code_version="3",
)
def unjudged_queries(step: Step) -> None:
    """Queries that nobody has judged, for the student to learn from by the teacher's scores: qid, text, split (its shard).

    They come from a log of queries, or are sentences or titles of passages; the rest of such a passage is in the folder
    ``own``. A query that is also a judged one is left out. There are none unless the settings ask for them.
    """
    from neuroranker_pipeline.datasets.leaks import leaks_between
    from neuroranker_pipeline.ranking.unjudged import OWN, OWN_FOLDER, in_shards, logged_queries, without_known

    settings, rejects, judged = step.settings.unjudged, step.rejects(), read_table(step.read("queries"))
    asked, own = pa.table([[], [], []], schema=QUERIES), OWN.empty_table()
    if settings.source == "file":
        asked = logged_queries(step.unjudged_file, settings, rejects)
    elif settings.source != "none":
        asked, own = _made(step, settings)
    carving = Carving.read(step.read("queries"))
    asked = in_shards(without_known(asked, judged, carving, rejects), step.settings.shards.unjudged_queries)
    step.account(rejects)
    own = own.filter(pc.is_in(own["qid"], asked["qid"].combine_chunks()))
    step.record(write_table(step.out, asked, QUERIES))
    write_table(step.out / OWN_FOLDER, own, OWN)
    step.show("preview", table_preview(asked))
    step.check(checks.unjudged_queries_are_valid(asked, wanted(step.settings)))
    leaks = leaks_between(asked, judged, carving.near)
    step.show("leaks", leaks.markdown())
    step.check(checks.splits_do_not_leak(leaks, carving.splits))


def _made(step: Step, settings: UnjudgedSettings) -> tuple[pa.Table, pa.Table]:
    """Queries made from passages of the main collection, and what is left of these passages."""
    from neuroranker_pipeline.ranking.unjudged import fits, made_queries, sentence_as_query, title_as_query

    folder = step.read("passages")
    if settings.source == "sentences":
        return made_queries(
            _main_passages(folder, step),
            lambda row: sentence_as_query(row["pid"], row["text"], settings),
            settings.count,
        )
    _, titled = made_queries(
        step.source.titles(),
        lambda row: (row["text"], row["text"]) if fits(row["text"], settings) else None,
        settings.count,
    )
    titles = dict(zip(titled["source_pid"].to_pylist(), titled["text"].to_pylist(), strict=True))
    texts = read_texts(folder, "pid", titles)
    found = pa.table([list(texts), list(texts.values())], names=["pid", "text"])
    return made_queries(
        found.to_batches(), lambda row: title_as_query(titles[row["pid"]], row["text"], settings), settings.count
    )


def _main_passages(folder: Path, step: Step) -> Iterator[pa.RecordBatch]:
    others, done = step.settings.training_collections, 0
    for batch in read_batches(folder):
        yield batch.filter(collection_of(batch["pid"], MAIN, others)) if others else batch
        done += batch.num_rows
        step.progress("reading passages", done, 0)


# For assets by query shard: the shards of queries without judgments alone need them.
IN_OWN_SHARDS = Needs(unjudged_queries, when=wanted, only=f"{UNJUDGED}-")


def asked_queries(step: Step) -> pa.Table:
    """The judged queries, and those without judgments where the step reads them: qid, text, split."""
    return read_table([step.read("queries"), *step.read_all("unjudged_queries")])


def rests(step: Step) -> pa.Table:
    """What is left of the passages that unjudged queries were taken from; empty unless the step reads such queries."""
    from neuroranker_pipeline.ranking.unjudged import OWN, OWN_FOLDER

    folders = [folder / OWN_FOLDER for folder in step.read_all("unjudged_queries")]
    return read_table(folders) if folders else OWN.empty_table()


def own_pairs(step: Step) -> pa.Table:
    """The pairs (qid, pid) of a query with the passage that it is, or was taken from: neither candidate nor negative."""
    taken = rests(step).select(["qid", "source_pid"]).rename_columns(["qid", "pid"])
    return pa.concat_tables([read_table(step.read("qrels") / OWN_PASSAGES_FOLDER), taken])


def judgments_for(step: Step, shard: str) -> pa.Table:
    """The judgments that a query shard is learned from or chosen by: grades below the relevance level are 0.

    Of a sentence or a title, what is left of its own passage is relevant; a query from a file has no judgments.
    """
    from neuroranker_pipeline.ranking.unjudged import own_as_positive

    if is_unjudged(shard):
        return own_as_positive(rests(step))
    return levelled(read_table(step.read("qrels")), step.settings.relevance_levels)


def dev_positives(step: Step) -> dict[str, set[str]]:
    """The relevant passages of every judged dev query: what MRR@10 on dev is a mean over, everywhere."""
    from neuroranker_pipeline.ranking.lists import positives

    judged = judgments_for(step, "dev")
    return positives(judged.filter(pc.equal(judged["split"], "dev")))
