"""Queries without judgments: from a log, or made from the collection itself, and what stands for their positive.

A sentence of a passage is a question that the rest of the passage answers (the Inverse Cloze Task of
https://arxiv.org/abs/1906.00300, which leaves the sentence in one passage of ten; here it is always taken out, for BM25
finds the words by itself). The rest is a passage of its own, with an id of its own, and nothing else is changed: the whole
passage stays as it is for all other queries, and is no candidate of its own sentence.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.datasets.archives import open_bytes
from neuroranker_pipeline.datasets.held_out import Carving, HeldOut
from neuroranker_pipeline.datasets.near import UNSPACED, same_text
from neuroranker_pipeline.datasets.prepare import unique, usable
from neuroranker_pipeline.datasets.rejects import Rejects
from neuroranker_pipeline.datasets.rows import Rows, file_rows, text_lines, tsv_rows
from neuroranker_pipeline.datasets.seen import SeenIds
from neuroranker_pipeline.datasets.shards import stable_number, stable_shard
from neuroranker_pipeline.datasets.tables import QRELS, QUERIES
from neuroranker_pipeline.datasets.trec import ranked
from neuroranker_pipeline.ranking.settings import UNJUDGED, UnjudgedSettings

# A sentence's own passage: qid, the id and the text of what is left of the passage, and the passage's id.
OWN = pa.schema([("qid", pa.string()), ("pid", pa.string()), ("text", pa.string()), ("source_pid", pa.string())])
OWN_FOLDER = "own"  # below the queries
LEARNED = "queries that are judged training questions"

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])\s*|\s*\n\s*\n\s*")
NO_ENDS = re.compile(r"\b(?:[A-Za-z]|e\.g|i\.e|etc|vs|cf|Dr|Mr|Mrs|Ms|St|No|Fig|al)\.$")
WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")

Made = tuple[str, str]
"""(the query, what is left of its passage)."""


def sentences(text: str) -> list[tuple[int, int]]:
    """Where the sentences of a text begin and end. They are cut after a stop, question or exclamation mark that white space
    follows, and at blank lines; not after a common abbreviation or an initial."""
    found, start = [], 0
    for end in SENTENCE_END.finditer(text):
        if end.end() > start and not NO_ENDS.search(text[start : end.start()]):
            found.append((start, end.start()))
            start = end.end()
    return [*found, *([(start, len(text))] if text[start:].strip() else [])]


def sentence_as_query(pid: str, text: str, settings: UnjudgedSettings) -> Made | None:
    """One sentence of a passage, chosen by a hash of the pid, and the passage without it; ``None`` when no sentence has the
    right number of words and leaves at least as many."""
    fitting = [(a, b) for a, b in sentences(text) if fits(text[a:b], settings)]
    for start, end in sorted(fitting, key=lambda place: stable_number(f"{pid}/{place[0]}")):
        rest = f"{text[:start].rstrip()} {text[end:].lstrip()}".strip()
        if words(rest) >= words(text[start:end]):
            return text[start:end].strip(), rest
    return None


def title_as_query(title: str, text: str, settings: UnjudgedSettings) -> Made | None:
    """A passage's title and the passage without it; ``None`` when it has the wrong number of words, or nothing is left."""
    title = title.strip()
    rest = text.strip().removeprefix(title).strip()
    return (title, rest) if fits(title, settings) and rest else None


def made_queries(
    passages: Iterable[pa.RecordBatch], make: Callable[[dict[str, str]], Made | None], count: int | None
) -> tuple[pa.Table, pa.Table]:
    """Queries made from passages (batches with pid and text): ``QUERIES`` and ``OWN`` tables, in the order of pids.

    ``make`` turns a row into a query, or not. The ``count`` with the lowest hashes of their pids are kept: memory is that of
    the queries kept, and few more passages than those are cut into sentences.
    """
    kept: list[tuple[int, str, Made]] = []  # a heap, the highest hash first
    for batch in passages:
        for row in batch.to_pylist():
            place = stable_number(row["pid"])
            if count is not None and len(kept) == count and -kept[0][0] <= place:
                continue
            if (made := make(row)) is None:
                continue
            if count is not None and len(kept) == count:
                heapq.heapreplace(kept, (-place, row["pid"], made))
            else:
                heapq.heappush(kept, (-place, row["pid"], made))
    rows = sorted((pid, made) for _, pid, made in kept)
    qids, pids = [f"{pid}#query" for pid, _ in rows], [f"{pid}#rest" for pid, _ in rows]
    asked = pa.table([qids, [query for _, (query, _) in rows], [UNJUDGED] * len(rows)], schema=QUERIES)
    return asked, pa.table([qids, pids, [rest for _, (_, rest) in rows], [pid for pid, _ in rows]], schema=OWN)


def logged_queries(path: Path, settings: UnjudgedSettings, rejects: Rejects) -> pa.Table:
    """The queries of a file as a ``QUERIES`` table, each text once; where a ``count`` is given, those of the lowest hashes.

    Memory is that of the file's texts. Ids get an ending that keeps them apart from the judged queries'. Rows without an id
    or a text, and those that repeat an id, are rejected.
    """
    found, seen = dict[str, tuple[str, str]](), SeenIds()
    for rows in _logged_rows(path, rejects):
        rows = unique(usable(rows, ("qid", "text"), rejects), "qid", seen, rejects)
        rejects.accept(len(rows))
        for qid, text in zip(rows.columns["qid"].to_pylist(), rows.columns["text"].to_pylist(), strict=True):
            if fits(text, settings):
                found.setdefault(same_text(text), (qid, text))
    kept = sorted(found, key=stable_number)[: settings.count]
    asked = sorted(found[key] for key in kept)
    return pa.table([[f"{q}#query" for q, _ in asked], [t for _, t in asked], [UNJUDGED] * len(asked)], schema=QUERIES)


def without_known(asked: pa.Table, judged: pa.Table, carving: Carving, rejects: Rejects) -> pa.Table:
    """The queries that nobody judged: what is tested on is never learned from, not even unlabelled, nor what is near to it
    where the splits were carved. What is learned from already is left out as well; ``rejects`` counts both."""
    texts = asked["text"].to_pylist()
    why = HeldOut.of(judged.to_batches(), carving).repeated(texts)
    learned = {same_text(text) for text in judged.filter(pc.equal(judged["split"], "train"))["text"].to_pylist()}
    why = {row: LEARNED for row, text in enumerate(texts) if same_text(text) in learned} | why
    for reason, count in Counter(why.values()).items():
        rejects.leave_out(reason, count)
    return asked.filter(pa.array([row not in why for row in range(len(texts))], pa.bool_()))


def in_shards(asked: pa.Table, shards: int) -> pa.Table:
    """``QUERIES`` whose split is ``unjudged-NN``, one of so many shards by a hash of the qid."""
    split = [f"{UNJUDGED}-{stable_shard(qid, shards):02d}" for qid in asked["qid"].to_pylist()]
    return asked.set_column(asked.schema.get_field_index("split"), "split", pa.array(split, pa.string()))


def own_as_positive(own: pa.Table) -> pa.Table:
    """Pseudo-judgments, a ``QRELS`` table: what is left of a query's own passage is relevant to it."""
    return _relevant(own["qid"], own["pid"])


def best_as_positive(scores: pa.Table) -> pa.Table:
    """Pseudo-judgments, a ``QRELS`` table: the passage that a scores table ranks first (ties by pid) is relevant."""
    order = ranked(scores)
    best = order.filter(pc.equal(order["rank"], 1))
    return _relevant(best["qid"], best["pid"])


def _relevant(qids: pa.ChunkedArray, pids: pa.ChunkedArray) -> pa.Table:
    grades, split = pa.array([1] * len(qids), pa.int32()), pa.array([UNJUDGED] * len(qids), pa.string())
    return pa.table([qids, pids, grades, split], schema=QRELS)


def _logged_rows(path: Path, rejects: Rejects) -> Iterator[Rows]:
    """Rows with qid and text. A ``.txt`` file has no ids: the line's number is one. A ``.tsv`` file may lack a header."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "txt":
        with open_bytes(path) as stream:
            for rows in text_lines(stream, str(path), rejects):
                yield rows.having(qid=pa.array(rows.lines).cast(pa.string()), text=rows.columns["line"])
    elif kind == "tsv" and not _has_header(path):
        with open_bytes(path) as stream:
            yield from tsv_rows(stream, str(path), ("qid", "text"), rejects)
    else:
        yield from file_rows(path, ("qid", "text"), rejects)


def _has_header(path: Path) -> bool:
    with open_bytes(path) as stream:
        first = next(text_lines(stream, str(path), Rejects(1.0)), None)
    words = first.columns["line"][0].as_py().split("\t") if first is not None and len(first) else []
    return {"qid", "text"} <= {word.strip() for word in words}


def fits(text: str, settings: UnjudgedSettings) -> bool:
    """Whether a text has the number of words that a query may have."""
    return settings.min_words <= words(text) <= settings.max_words


def words(text: str) -> int:
    """The number of words. A script that puts no spaces between them counts by the character, as BERT's tokenizer does."""
    return len(WORD.findall(text))
