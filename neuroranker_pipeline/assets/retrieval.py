"""First stage: the Lucene indexes, BM25's parameters, and its candidates for every query shard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.assets.columns import Columns
from neuroranker_pipeline.assets.corpus import given_candidates, passages, qrels, queries
from neuroranker_pipeline.assets.lake_asset import lake_asset
from neuroranker_pipeline.assets.previews import bars, markdown_table, table_preview
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.assets.unjudged import IN_OWN_SHARDS, asked_queries, own_pairs
from neuroranker_pipeline.checks import retrieval as checks
from neuroranker_pipeline.config.settings import Settings
from neuroranker_pipeline.datasets.joined import MAIN, collection_of
from neuroranker_pipeline.datasets.own import without_own
from neuroranker_pipeline.datasets.shards import judgments_of, queries_of_shard
from neuroranker_pipeline.datasets.tables import CANDIDATES, count_rows, read_batches, read_table, write_table
from neuroranker_pipeline.retrieval.settings import BM25Settings

if TYPE_CHECKING:
    from neuroranker_pipeline.retrieval.tuning import GridPoint

# Which collections there are needs no mention here: the passages' ids, and so their data version, tell.
ANALYZER = ["bm25.language", "bm25.stemmer", "bm25.keep_stopwords"]
PARAMETERS_FILE = "bm25.json"
RUN_FILE = "run.trec"


@lake_asset(
    group="retrieval",
    kinds={"lucene"},
    needs=[passages],
    settings=ANALYZER,
    checks=[checks.index_holds_every_passage],
    pool="jvm",
    by_content=False,
)
def lucene_index(step: Step) -> None:
    """A Lucene index for each collection, built by Anserini: ``main``, and one for every joined collection."""
    from neuroranker_pipeline.retrieval.bm25 import Searcher, build_index

    folder, bm25 = step.read("passages"), step.settings.bm25
    total, documents = count_rows(folder), 0
    for name in collections(step.settings):
        build_index(passages_of(folder, name, step.settings), step.out / name, bm25, step.progress, total)
        with closing(Searcher(step.out / name, bm25)) as searcher:
            documents += searcher.num_docs
            step.record(**{f"{name}/documents": searcher.num_docs})
    step.record(documents)
    step.check(checks.index_holds_every_passage(documents, total))


@lake_asset(
    group="retrieval",
    kinds={"json"},
    needs=[lucene_index, queries, qrels],
    settings=["bm25.k1", "bm25.b", "bm25.tune", "bm25.depth", "learned_levels"],
    checks=[checks.parameters_are_in_range],
    pool="jvm",
)
def bm25_parameters(step: Step) -> None:
    """BM25's k1 and b: those of the settings, or where the settings give a grid, its best point on training queries."""
    bm25 = step.settings.bm25
    k1, b = bm25.k1, bm25.b
    grid: Sequence[GridPoint] = ()
    if bm25.tune is not None:
        from neuroranker_pipeline.retrieval.tuning import tune_bm25

        asked = read_table(step.read("queries"))
        asked = asked.filter(pc.and_(pc.equal(asked["split"], "train"), _belongs(asked["qid"], MAIN, step.settings)))
        judged = judgments_of(read_table(step.read("qrels")), asked["qid"].to_pylist())
        level = step.settings.data.relevant_from("train")
        found = tune_bm25(
            step.read("lucene_index") / MAIN, bm25, _texts(asked), judged, step.progress, level, own_pairs(step)
        )
        k1, b, grid = found.k1, found.b, found.rows
        step.show("grid", markdown_table(["k1", "b", bm25.tune.measure], ([row.k1, row.b, row.value] for row in grid)))
    chosen = {"k1": k1, "b": b, "grid": [asdict(row) for row in grid]}
    (step.out / PARAMETERS_FILE).write_text(json.dumps(chosen, indent=2))
    step.record(k1=k1, b=b)
    step.check(checks.parameters_are_in_range(k1, b))


@lake_asset(
    group="retrieval",
    kinds={"parquet"},
    needs=[lucene_index, bm25_parameters, given_candidates, queries, IN_OWN_SHARDS, qrels],
    settings=["bm25.depth", "shards.train_queries", "relevance_levels", "bounds.unanswered", *ANALYZER],
    shards="queries",
    checks=[checks.candidates_are_complete],
    pool="jvm",
    columns=Columns(
        CANDIDATES,
        {
            "qid": "queries.qid",
            "pid": "passages.pid given_candidates.pid",
            "rank": "given_candidates.rank",
            "score": "queries.text passages.text given_candidates.score",
        },
    ),
)
def bm25_candidates(step: Step) -> None:
    """BM25's best passages for every query of the shard (qid, pid, rank, score), also as a TREC run.

    Where candidates were given with the data, they are taken as they are. A sentence or title that serves as a query does
    not find the passage that it was taken from, nor does a query that is a passage find itself.
    """
    from neuroranker_pipeline.datasets.trec import write_run
    from neuroranker_pipeline.evaluation.measures import mean_measures

    assert step.partition is not None
    shard = queries_of_shard(asked_queries(step), step.partition, step.settings.shards.train_queries)
    given, own = read_table(step.read("given_candidates")), own_pairs(step)
    given, own = (table.filter(pc.is_in(table["qid"], shard["qid"].combine_chunks())) for table in (given, own))
    depth = step.settings.bm25.depth
    if given.num_rows:
        given = without_own(given, own) if own.num_rows else given
        rows, depth = write_table(step.out, given, CANDIDATES), int(pc.max(given["rank"]).as_py())
    else:
        rows = write_table(step.out, _searched(step, shard, own), CANDIDATES)
    table, texts = read_table(step.out), _texts(shard)
    write_run(table, step.out / RUN_FILE, "BM25")
    level = step.settings.data.relevant_from(step.partition)
    judged = judgments_of(read_table(step.read("qrels")), texts)
    measures = mean_measures(table, judged, relevance_level=level) if judged.num_rows else {}
    silent = len(texts.keys() - set(pc.unique(table["qid"]).to_pylist()))
    figures = {"queries": len(texts), "queries_without_candidates": silent, "given": float(bool(given.num_rows))}
    step.record(rows, **figures, **measures)
    step.show("measures", bars(measures))
    step.show("preview", table_preview(table))
    step.check(checks.candidates_are_complete(table, texts, depth, step.settings.bounds.unanswered))


def collections(settings: Settings) -> list[str]:
    """The names of the main collection and of the joined ones."""
    return [MAIN, *settings.training_collections]


def tuned_parameters(settings: BM25Settings, folder: Path) -> BM25Settings:
    """The settings with the k1 and b that the ``bm25_parameters`` artifact in ``folder`` holds."""
    found = json.loads((folder / PARAMETERS_FILE).read_text())
    return replace(settings, k1=found["k1"], b=found["b"])


def passages_of(folder: Path, name: str, settings: Settings) -> Iterator[pa.RecordBatch]:
    """The passages of one collection, from the ``passages`` artifact in ``folder``."""
    for batch in read_batches(folder):
        mine = batch.filter(_belongs(batch["pid"], name, settings)) if settings.training_collections else batch
        if mine.num_rows:
            yield mine


def _searched(step: Step, shard: pa.Table, own: pa.Table) -> Iterator[pa.RecordBatch]:
    """Candidates of the shard's queries, each searched in its own collection, and one more where some are left out."""
    from neuroranker_pipeline.retrieval.bm25 import Searcher

    bm25, depth = tuned_parameters(step.settings.bm25, step.read("bm25_parameters")), step.settings.bm25.depth
    bm25 = replace(bm25, depth=depth + 1) if own.num_rows else bm25
    for name in collections(step.settings):
        asked = shard.filter(_belongs(shard["qid"], name, step.settings))
        if asked.num_rows:
            with closing(Searcher(step.read("lucene_index") / name, bm25)) as searcher:
                for batch in searcher.search_batches(_texts(asked), step.progress):
                    found = pa.Table.from_batches([batch])
                    yield from (without_own(found, own, depth) if own.num_rows else found).to_batches()


def _belongs(ids: pa.Array | pa.ChunkedArray, name: str, settings: Settings) -> pa.Array | pa.ChunkedArray:
    return collection_of(ids, name, settings.training_collections)


def _texts(queries: pa.Table) -> Mapping[str, str]:
    return dict(zip(queries["qid"].to_pylist(), queries["text"].to_pylist(), strict=True))
