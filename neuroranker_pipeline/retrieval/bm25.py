"""BM25 candidates of many queries from a Lucene index, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from neuroranker_pipeline.datasets.tables import CANDIDATES
from neuroranker_pipeline.progress import Progress, silent
from neuroranker_pipeline.retrieval.index import build_index
from neuroranker_pipeline.retrieval.jvm import one_ahead
from neuroranker_pipeline.retrieval.lucene import JavaHits, LuceneIndex
from neuroranker_pipeline.retrieval.settings import BM25Settings, TuneSettings

__all__ = ["BM25Settings", "Searcher", "TuneSettings", "build_index"]

HITS_A_BATCH = 50_000
"""Anserini keeps a document object for every hit of a batch, about 1 kB each; two batches are in memory."""


class Searcher:
    """BM25 over a Lucene index, opened read-only.

    Ties are broken by ascending pid, at the cut-off too: Anserini makes Lucene sort by (score, docid). It
    also rounds scores to four decimals and lowers each of a run of equal ones by a millionth, so that no
    order is left to chance.
    """

    def __init__(self, index_dir: Path, settings: BM25Settings | None = None) -> None:
        """The analyzer of the settings must be the one the index was built with.

        Raises ``NotReady`` when ``index_dir`` holds no readable Lucene index.
        """
        self.settings = settings or BM25Settings()
        self._index = LuceneIndex(index_dir, self.settings)
        self.num_docs = self._index.num_docs

    def search(self, queries: Mapping[str, str], progress: Progress = silent) -> pa.Table:
        """Candidates of every query (qid -> text), best first; a query that matches nothing has no row.

        The text is a bag of words: punctuation and operators mean nothing. All rows are held in memory.
        """
        return pa.Table.from_batches(self.search_batches(queries, progress), schema=CANDIDATES)

    def search_batches(self, queries: Mapping[str, str], progress: Progress = silent) -> Iterator[pa.RecordBatch]:
        """As ``search``, streamed: one record batch for a few hundred queries, in the order given.

        Java searches the next batch, in parallel threads, while this one is converted.
        """
        size = max(1, HITS_A_BATCH // self.settings.depth)
        items = iter(queries.items())
        chunks = iter(lambda: list(islice(items, size)), [])
        done = 0
        for chunk, hits in one_ahead(self._search, chunks):
            yield _candidates([qid for qid, _ in chunk], self._index.read(hits))
            done += len(chunk)
            progress("searching with BM25", done, len(queries))

    def close(self) -> None:
        """Release the index's files."""
        self._index.close()

    def _search(self, chunk: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], JavaHits]:
        """The chunk, and what was found for each of its texts."""
        return chunk, self._index.search([text for _, text in chunk], f"a query from {chunk[0][0]} on")


def _candidates(qids: list[str], ranked: list[list[tuple[str, float]]]) -> pa.RecordBatch:
    """The hits of each query as CANDIDATES."""
    counts = np.fromiter(map(len, ranked), np.int64, len(ranked))
    owner = np.repeat(np.arange(len(qids)), counts)
    rows = list(chain.from_iterable(ranked))
    rank = np.arange(1, len(rows) + 1) - np.repeat(np.cumsum(counts) - counts, counts)
    columns = [
        pa.array(qids, pa.string()).take(pa.array(owner)),
        pa.array([pid for pid, _ in rows], pa.string()),
        pa.array(rank, pa.int32()),
        pa.array(np.array([score for _, score in rows], np.float32)),
    ]
    return pa.record_batch(columns, schema=CANDIDATES)
