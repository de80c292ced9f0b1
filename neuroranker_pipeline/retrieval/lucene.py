"""BM25 over a Lucene index, with the Java classes that Pyserini's ``LuceneSearcher`` wraps.

They are called without the Python wrappers, whose import pulls in torch, transformers and an OpenAI client (5 s). The
index is the one Pyserini builds and opens, and the scores are Pyserini's. This module travels with the service: it needs
Anserini's jar, pyjnius and numpy alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from neuroranker_pipeline.errors import BadInput, NotReady
from neuroranker_pipeline.retrieval.jvm import java_class, root_cause, start_jvm
from neuroranker_pipeline.retrieval.settings import BM25Settings

MAX_QUERY_TERMS = 65_536
"""Lucene refuses more; its default of 1,024 would fail on a query of a few pages."""

JavaHits = Any
"""What Java found, by position of the query: still in Java."""


class LuceneIndex:
    """A Lucene index, opened read-only and scored by BM25. Any thread may search it."""

    def __init__(self, folder: Path, settings: BM25Settings) -> None:
        """The analyzer of the settings must be the one the index was built with.

        Raises ``NotReady`` when ``folder`` holds no readable Lucene index.
        """
        self.settings = settings
        if not any(folder.glob("segments_*")):
            raise NotReady(f"{folder}: no Lucene index here; build it first")
        start_jvm(settings.heap_mb, settings.threads)
        from jnius import JavaException

        java_class("org.apache.lucene.search.IndexSearcher").setMaxClauseCount(MAX_QUERY_TERMS)
        try:
            self._searcher = java_class("io.anserini.search.SimpleSearcher")(str(folder), analyzer(settings))
            self.num_docs: int = self._searcher.get_total_num_docs()
        except JavaException as error:
            raise NotReady(f"{folder}: not a readable Lucene index ({root_cause(error)}); build it again") from error
        self._searcher.set_bm25(settings.k1, settings.b)
        self._json = _mapper()

    def search(self, texts: Sequence[str], names: str = "the query") -> JavaHits:
        """The hits of every text, to be read with ``read``; raises ``BadInput``, which calls the texts ``names``."""
        from jnius import JavaException

        queries, positions = self._java_list(texts), self._java_list([str(position) for position in range(len(texts))])
        try:
            return self._searcher.batch_search(queries, positions, self.settings.depth, self.settings.threads)
        except JavaException as error:
            raise BadInput(f"BM25 failed on {names} ({root_cause(error)})") from error

    def read(self, found: JavaHits) -> list[list[tuple[str, float]]]:
        """(pid, score) of every text's hits, best first; equal scores by pid."""
        hits = json.loads(bytes(self._json.writeValueAsBytes(found)))
        return in_order([[(pid, score) for pid, _, score in hits[str(position)]] for position in range(len(hits))])

    def close(self) -> None:
        """Release the index's files."""
        self._searcher.close()

    def _java_list(self, values: Sequence[str]) -> Any:
        # ASCII JSON: one call, and no doubt about NUL and emoji
        return self._json.readValue(
            json.dumps(list(values)), java_class("java.lang.Class").forName("java.util.ArrayList")
        )


def in_order(ranked: list[list[tuple[str, float]]]) -> list[list[tuple[str, float]]]:
    """Every list of (pid, score) by falling score and pid, changed in place.

    Anserini's are, but where many scores tie, its lowering of equal ones can overtake the next score or be lost to
    rounding.
    """
    owner = np.repeat(np.arange(len(ranked)), [len(hits) for hits in ranked])
    score = np.array([score for _, score in chain.from_iterable(ranked)], np.float32)
    wrong = (owner[1:] == owner[:-1]) & (score[1:] >= score[:-1])
    for position in np.unique(owner[1:][wrong]):
        ranked[position].sort(key=lambda hit: (-hit[1], hit[0]))
    return ranked


def analyzer(settings: BM25Settings) -> Any:
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
