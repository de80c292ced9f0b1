"""BM25 candidates from a Lucene index, with the Java classes that Pyserini's ``LuceneSearcher`` wraps.

They are called without the Python wrappers, whose import pulls in torch, transformers and an OpenAI client (5 s). The
index is the one Pyserini builds and opens, and the scores are Pyserini's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from neuroranker_pipeline.datasets.tables import CANDIDATES
from neuroranker_pipeline.errors import BadInput, NotReady
from neuroranker_pipeline.progress import Progress, silent
from neuroranker_pipeline.retrieval.index import build_index
from neuroranker_pipeline.retrieval.jvm import java_class, one_ahead, root_cause, start_jvm
from neuroranker_pipeline.retrieval.settings import BM25Settings, TuneSettings

__all__ = ["BM25Settings", "Searcher", "TuneSettings", "build_index"]

HITS_A_BATCH = 50_000
"""Anserini keeps a document object for every hit of a batch, about 1 kB each; two batches are in memory."""
MAX_QUERY_TERMS = 65_536
"""Lucene refuses more; its default of 1,024 would fail on a query of a few pages."""


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
        if not any(index_dir.glob("segments_*")):
            raise NotReady(f"{index_dir}: no Lucene index here; build it first")
        start_jvm(self.settings.heap_mb, self.settings.threads)
        from jnius import JavaException

        java_class("org.apache.lucene.search.IndexSearcher").setMaxClauseCount(MAX_QUERY_TERMS)
        try:
            self._searcher = java_class("io.anserini.search.SimpleSearcher")(str(index_dir), _analyzer(self.settings))
            self.num_docs: int = self._searcher.get_total_num_docs()
        except JavaException as error:
            raise NotReady(f"{index_dir}: not a readable Lucene index ({root_cause(error)}); build it again") from error
        self._searcher.set_bm25(self.settings.k1, self.settings.b)
        self._json = _mapper()

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
            yield _candidates([qid for qid, _ in chunk], json.loads(bytes(self._json.writeValueAsBytes(hits))))
            done += len(chunk)
            progress("searching with BM25", done, len(queries))

    def close(self) -> None:
        """Release the index's files."""
        self._searcher.close()

    def _search(self, chunk: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], Any]:
        """The chunk, and for each of its positions the hits, as a Java map."""
        from jnius import JavaException

        texts = self._java_list([text for _, text in chunk])
        positions = self._java_list([str(position) for position in range(len(chunk))])
        try:
            return chunk, self._searcher.batch_search(texts, positions, self.settings.depth, self.settings.threads)
        except JavaException as error:
            raise BadInput(f"BM25 failed on a query from {chunk[0][0]} on ({root_cause(error)})") from error

    def _java_list(self, values: list[str]) -> Any:
        # ASCII JSON: one call, and no doubt about NUL and emoji
        return self._json.readValue(json.dumps(values), java_class("java.lang.Class").forName("java.util.ArrayList"))


def _analyzer(settings: BM25Settings) -> Any:
    """The analyzer that Anserini's indexer takes for the same settings."""
    if settings.language == "en":
        english = java_class("io.anserini.analysis.DefaultEnglishAnalyzer")
        return english.fromArguments(settings.stemmer, settings.keep_stopwords, None)
    if settings.language == "sw":
        return java_class("org.apache.lucene.analysis.core.WhitespaceAnalyzer")()
    return java_class("io.anserini.analysis.AnalyzerMap").getLanguageSpecificAnalyzer(settings.language)


def _mapper() -> Any:
    """A Jackson mapper that writes a hit as ``[pid, Lucene's number, score]``.

    Reading millions of hits field by field through pyjnius takes longer than the search. Floats are written with as many
    digits as it takes to read them back unchanged.
    """
    java_type = java_class("java.lang.Class").forName
    array = java_class("com.fasterxml.jackson.annotation.JsonFormat$Shape").ARRAY
    mapper = java_class("com.fasterxml.jackson.databind.ObjectMapper")()
    mapper.configOverride(java_type("org.apache.lucene.document.Document")).setIsIgnoredType(
        java_class("java.lang.Boolean")(True)
    )
    mapper.configOverride(java_type("io.anserini.search.ScoredDoc")).setFormat(
        java_class("com.fasterxml.jackson.annotation.JsonFormat$Value").forShape(array)
    )
    return mapper


def _candidates(qids: list[str], hits: dict[str, list[list[Any]]]) -> pa.RecordBatch:
    """Hits by position as CANDIDATES."""
    ranked = [hits[str(position)] for position in range(len(qids))]
    counts = np.fromiter(map(len, ranked), np.int64, len(ranked))
    owner = np.repeat(np.arange(len(qids)), counts)
    score = np.array([hit[2] for hit in chain.from_iterable(ranked)], np.float32)
    # Where many scores tie, Anserini's lowering can overtake the next score or be lost to rounding.
    out_of_order = (owner[1:] == owner[:-1]) & (score[1:] >= score[:-1])
    for position in np.unique(owner[1:][out_of_order]):
        ranked[position].sort(key=lambda hit: (-hit[2], hit[0]))
    rows = list(chain.from_iterable(ranked))
    rank = np.arange(1, len(rows) + 1) - np.repeat(np.cumsum(counts) - counts, counts)
    columns = [
        pa.array(qids, pa.string()).take(pa.array(owner)),
        pa.array([hit[0] for hit in rows], pa.string()),
        pa.array(rank, pa.int32()),
        pa.array(np.array([hit[2] for hit in rows], np.float32)),
    ]
    return pa.record_batch(columns, schema=CANDIDATES)
