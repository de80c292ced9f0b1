"""BM25 candidates from a Lucene index, with the Java classes that Pyserini's ``LuceneIndexer`` and
``LuceneSearcher`` wrap.

They are called without the Python wrappers, whose import pulls in torch, transformers and an OpenAI client (5 s). The
index is the one Pyserini builds and opens, and the scores are Pyserini's.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from neuroranker_pipeline.datasets.tables import CANDIDATES
from neuroranker_pipeline.errors import BadInput, NotReady, require
from neuroranker_pipeline.progress import Progress, silent
from neuroranker_pipeline.retrieval.jvm import java_class, start_jvm

PASSAGES_A_BATCH = 5_000
HITS_A_BATCH = 50_000
"""Anserini keeps a document object for every hit of a batch, about 1 kB each."""
MAX_QUERY_TERMS = 65_536
"""Lucene refuses more; its default of 1,024 would fail on a query of a few pages."""


@dataclass(frozen=True)
class BM25Settings:
    """Robertson's BM25 with the constants of Anserini's MS MARCO baseline.

    ``depth`` is the number of candidates a query gets; ``heap_mb`` (MiB) counts for the first user of Java in a process.
    """

    k1: float = 0.9
    b: float = 0.4
    depth: int = 100
    threads: int = 2
    heap_mb: int = 1024

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        require(0 <= self.k1 <= 100, "k1", "from 0 to 100", self.k1)
        require(0 <= self.b <= 1, "b", "from 0 to 1", self.b)
        require(1 <= self.depth <= 10_000, "depth", "from 1 to 10000", self.depth)
        require(1 <= self.threads <= 256, "threads", "from 1 to 256", self.threads)
        require(self.heap_mb >= 64, "heap_mb", "at least 64", self.heap_mb)


def build_index(
    passages: Iterable[pa.RecordBatch],
    out: Path,
    threads: int = 2,
    heap_mb: int = 1024,
    progress: Progress = silent,
) -> int:
    """Index passages (pid, text) into ``out``, an empty or absent folder; returns their number.

    Memory is bounded by one batch and the Java heap (MiB). Text is analyzed as Anserini does by default:
    English tokens, stop words removed, Porter stemmer. Raises ``BadInput`` when a passage cannot be indexed;
    ``out`` is removed then.
    """
    if out.exists() and any(out.iterdir()):
        raise BadInput(f"{out}: not empty; an index is only built in a new folder")
    start_jvm(heap_mb)
    out.mkdir(parents=True, exist_ok=True)
    indexer = java_class("io.anserini.index.SimpleIndexer")(str(out), False, threads)
    document = java_class("io.anserini.collection.JsonCollection$Document").fromFields
    count = 0
    try:
        for batch in _slices(passages):
            pids, texts = batch.column("pid").to_pylist(), batch.column("text").to_pylist()
            added = indexer.addJsonDocuments([document(*pair) for pair in zip(pids, texts, strict=True)])
            if added != len(pids):
                raise BadInput(f"{len(pids) - added} passages between {pids[0]} and {pids[-1]} have no text to index")
            count += added
            progress("indexing passages", count, 0)
    except BaseException:
        indexer.close()
        shutil.rmtree(out, ignore_errors=True)
        raise
    indexer.close()
    return count


class Searcher:
    """BM25 over a Lucene index.

    Ties are broken by ascending pid, at the cut-off too: Anserini makes Lucene sort by (score, docid). It
    also rounds scores to four decimals and lowers each of a run of equal ones by a millionth, so that no
    order is left to chance.
    """

    def __init__(self, index_dir: Path, settings: BM25Settings | None = None) -> None:
        """Raises ``NotReady`` when ``index_dir`` holds no readable Lucene index."""
        self.settings = settings or BM25Settings()
        if not any(index_dir.glob("segments_*")):
            raise NotReady(f"{index_dir}: no Lucene index here; build it first")
        start_jvm(self.settings.heap_mb)
        from jnius import JavaException

        java_class("org.apache.lucene.search.IndexSearcher").setMaxClauseCount(MAX_QUERY_TERMS)
        try:
            self._searcher = java_class("io.anserini.search.SimpleSearcher")(str(index_dir))
            self.num_docs: int = self._searcher.get_total_num_docs()
        except JavaException as error:
            raise NotReady(
                f"{index_dir}: not a readable Lucene index ({_first_line(error)}); build it again"
            ) from error
        self._searcher.set_bm25(self.settings.k1, self.settings.b)

    def search(self, queries: Mapping[str, str], progress: Progress = silent) -> pa.Table:
        """Candidates of every query (qid -> text), best first; a query that matches nothing has no row.

        The text is a bag of words: punctuation and operators mean nothing. All rows are held in memory.
        """
        return pa.Table.from_batches(self.search_batches(queries, progress), schema=CANDIDATES)

    def search_batches(self, queries: Mapping[str, str], progress: Progress = silent) -> Iterator[pa.RecordBatch]:
        """As ``search``, streamed: one record batch for a few hundred queries, in the order given."""
        remaining = iter(queries.items())
        size = max(1, HITS_A_BATCH // self.settings.depth)
        done = 0
        while chunk := dict(islice(remaining, size)):
            yield self._search(chunk)
            done += len(chunk)
            progress("searching with BM25", done, len(queries))

    def close(self) -> None:
        """Release the index's files."""
        self._searcher.close()

    def _search(self, queries: dict[str, str]) -> pa.RecordBatch:
        from jnius import JavaException

        try:
            hits = self._searcher.batch_search(
                _java_list(queries.values()), _java_list(queries), self.settings.depth, self.settings.threads
            )
        except JavaException as error:
            raise BadInput(f"BM25 failed on a query from {next(iter(queries))} on ({_first_line(error)})") from error
        by_qid = {entry.getKey(): entry.getValue() for entry in hits.entrySet().toArray()}
        rows: list[tuple[str, str, int, float]] = []
        for qid in queries:
            ranked = sorted((-hit.score, hit.docid) for hit in by_qid[qid])
            rows.extend((qid, pid, rank, -score) for rank, (score, pid) in enumerate(ranked, start=1))
        columns = list(zip(*rows, strict=True)) or [()] * 4
        return pa.record_batch(
            [pa.array(c, f.type) for c, f in zip(columns, CANDIDATES, strict=True)], schema=CANDIDATES
        )


def _slices(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, batch.num_rows, PASSAGES_A_BATCH):
            yield batch.slice(start, PASSAGES_A_BATCH)


def _java_list(values: Iterable[str]) -> Any:
    array = java_class("java.util.ArrayList")()
    for value in values:
        array.add(value)
    return array


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].removeprefix("JVM exception occurred: ")
