"""First stage: the Lucene index, and BM25's candidates for every query shard."""

from __future__ import annotations

from contextlib import closing

from neuroranker_pipeline.assets.corpus import passages, qrels, queries
from neuroranker_pipeline.assets.lake_asset import lake_asset
from neuroranker_pipeline.assets.previews import bars, table_preview
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.checks import retrieval as checks
from neuroranker_pipeline.datasets.shards import judgments_of, queries_of_shard
from neuroranker_pipeline.datasets.tables import (
    CANDIDATES,
    count_rows,
    read_batches,
    read_table,
    write_table,
)


@lake_asset(
    group="retrieval",
    kinds={"lucene"},
    needs=[passages],
    checks=[checks.index_holds_every_passage],
    pool="jvm",
    by_content=False,
)
def lucene_index(step: Step) -> None:
    """A Lucene index of the passages, built by Pyserini."""
    from neuroranker_pipeline.retrieval.bm25 import Searcher, build_index

    folder = step.read("passages")
    total = count_rows(folder)
    bm25 = step.settings.bm25
    build_index(read_batches(folder), step.out, bm25.threads, bm25.heap_mb, step.progress)
    with closing(Searcher(step.out, bm25)) as searcher:
        docs = searcher.num_docs
    step.record(docs)
    step.check(checks.index_holds_every_passage(docs, total))


@lake_asset(
    group="retrieval",
    kinds={"parquet"},
    needs=[lucene_index, queries, qrels],
    settings=["bm25.k1", "bm25.b", "bm25.depth", "shards.train_queries"],
    shards="queries",
    checks=[checks.candidates_are_complete],
    pool="jvm",
)
def bm25_candidates(step: Step) -> None:
    """BM25's best passages for every query of the shard: qid, pid, rank, score."""
    from neuroranker_pipeline.evaluation.measures import mean_measures
    from neuroranker_pipeline.retrieval.bm25 import Searcher

    assert step.partition is not None
    shard = queries_of_shard(read_table(step.read("queries")), step.partition, step.settings.shards.train_queries)
    texts = dict(zip(shard["qid"].to_pylist(), shard["text"].to_pylist(), strict=True))
    with closing(Searcher(step.read("lucene_index"), step.settings.bm25)) as searcher:
        table = searcher.search(texts, step.progress)
    rows = write_table(step.out, table, CANDIDATES)
    measures = mean_measures(table, judgments_of(read_table(step.read("qrels")), texts))
    step.record(rows, queries=len(texts), **measures)
    step.show("measures", bars(measures))
    step.show("preview", table_preview(table))
    step.check(checks.candidates_are_complete(table, texts, step.settings.bm25.depth))
