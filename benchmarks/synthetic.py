"""Make an MS MARCO-shaped collection of any size, for measuring at sizes that are not at hand.

    python benchmarks/synthetic.py RAW_FOLDER OUT --passages 8841823

``RAW_FOLDER`` holds MS MARCO raw files, a part of them is enough: ``collection.tar.gz`` (or ``collection.tsv``) and
``queries.tar.gz``. What is learned from them: how many words passages and queries have, and how often each word occurs,
with its case and punctuation. Nothing longer than a single word is taken over. The files written have the published names
and formats. The same arguments give the same bytes.

The words of a passage are drawn independently, then

* some runs of words repeat what stood a little earlier, so that a passage repeats its words and gzip finds
  about as much to save as in real text (unigram frequencies stay as they are);
* some words are replaced by made-up ones whose ranks follow a power law, so that the vocabulary keeps growing with
  the collection (Heaps' law) as it does in real text: the source alone would end at its own vocabulary.

Everything is streamed in chunks, twice: once for the size (a tar header comes before its data) and for the passages
that queries are made from, and once to write.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import pyarrow as pa

Words = list[str]
Made = TypeVar("Made")

CHUNK = 50_000
"""Passages made at a time (about 20 MB of text)."""
LEVEL = 6
"""zlib level of the archives."""
RUN, REPEATED, REACH = 3, 0.55, 30
"""Words of a run; the share of runs that repeat an earlier one; how many runs back the farthest original is."""
HEAPS = 0.67
"""Heaps' exponent: the vocabulary grows with the HEAPS-th power of the number of words."""
TERMS, TERMS_AT = 2_700_000, 8_841_823 * 57
"""About the number of distinct indexed terms of MS MARCO's passages, and of their words."""
SYLLABLES = np.array([a + b for a in "bcdfghjklmnpqrstvwxz" for b in "aeiou"], dtype="S2")
MOST_RANKS = 100**6
SHARE, RARITY = 0.55, 0.1
"""Words of a query from its passage, as a share; with what power rarer words of it are preferred."""
TOP = 1000
"""Passages a test query is given."""


@dataclass(frozen=True)
class Source:
    """What is learned from real files.

    ``words``: the distinct words; ``counts`` int64 [words]; ``stream``: int32, every occurrence as an index into
    ``words``, so that a uniform draw from it is a draw by frequency; ``lengths``: int64 [passages], in words;
    ``fresh``: the chance that a word is one not seen before. ``query_words`` and ``query_lengths`` alike for queries.
    """

    words: Words
    counts: np.ndarray
    stream: np.ndarray
    lengths: np.ndarray
    fresh: float
    query_words: Words
    query_lengths: np.ndarray


@dataclass(frozen=True)
class Query:
    """A query to be made: its passages from the best (grade 3) down, and the number of its words."""

    qid: int
    split: str
    pids: tuple[int, ...]
    length: int


def terms(text: str) -> Words:
    """The lower-case runs of letters and digits in ``text``."""
    return re.findall(r"\w+", text.lower())


def texts(folder: Path, archive: str, names: tuple[str, ...]) -> Iterator[str]:
    """Second columns of the files ``names`` in ``folder / archive``, or in the folder itself without an archive.

    Raises ``SystemExit`` if neither is there.
    """
    if (folder / archive).is_file():
        with tarfile.open(folder / archive, "r|gz") as tar:
            for member in tar:
                if member.name.rpartition("/")[2] in names and (file := tar.extractfile(member)):
                    yield from _second_column(file)
        return
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise SystemExit(f"{folder}: has neither {archive} nor {names[0]}")
    for path in found:
        with path.open("rb") as file:
            yield from _second_column(file)


def _second_column(file: IO[bytes]) -> Iterator[str]:
    for line in file:
        yield line.decode("utf-8", errors="replace").rstrip("\n").partition("\t")[2]


def learn(folder: Path) -> Source:
    """Learn the shape of the collection in ``folder``. Raises ``SystemExit`` if a file is missing or empty."""
    ids: dict[str, int] = {}
    stream: list[int] = []
    lengths: list[int] = []
    for text in texts(folder, "collection.tar.gz", ("collection.tsv",)):
        words = text.split()
        if words:
            lengths.append(len(words))
            stream.extend(ids.setdefault(word, len(ids)) for word in words)
    names = ("queries.train.tsv", "queries.dev.tsv")
    queries = [words for text in texts(folder, "queries.tar.gz", names) if (words := text.split())]
    if not lengths or not queries:
        raise SystemExit(f"{folder}: there is no passage or no query in its files")
    counts = np.bincount(stream, minlength=len(ids))
    occurrences: dict[str, int] = {}
    for word, count in zip(ids, counts.tolist(), strict=True):
        for term in terms(word):
            occurrences[term] = occurrences.get(term, 0) + count
    # Good and Turing: words seen once are as many of the text as those not seen yet.
    fresh = sum(count == 1 for count in occurrences.values()) / max(1, sum(occurrences.values()))
    return Source(
        words=list(ids),
        counts=counts,
        stream=np.sort(np.array(stream, dtype=np.int32)),  # sorted: frequent words stay in the cache
        lengths=np.array(lengths),
        fresh=min(fresh, 0.05),
        query_words=[word for words in queries for word in words],
        query_lengths=np.array([len(words) for words in queries]),
    )


def first_rank(fresh: float) -> float:
    """The rank at which made-up words begin so that ``TERMS`` of them are met in ``TERMS_AT`` words.

    Ranks r follow a power law with density (a - 1) / r0 * (r / r0)^-a, a = 1 / HEAPS; n draws from it meet about
    (n * (a - 1) * r0^(a - 1))^(1 / a) * gamma(1 - 1 / a) distinct ones. A draw is not seen if a repeat stands in its
    place and no repeat copies it.
    """
    a = 1 / HEAPS
    draws = max(fresh, 1e-6) * TERMS_AT * (1 - REPEATED * math.exp(-REPEATED))
    return ((TERMS / math.gamma(1 - HEAPS)) ** a / (draws * (a - 1))) ** (1 / (a - 1))


def made_up(ranks: np.ndarray) -> Words:
    """One pronounceable word for each rank (int64): at least three syllables, distinct for distinct ranks."""
    digits = [ranks // 100**power % 100 for power in range(6)]
    table = np.stack([SYLLABLES[digit] for digit in digits], axis=1)  # [ranks, syllables], lowest first
    enough = np.maximum(3, sum((ranks >= 100**power).astype(int) for power in range(6)))
    return [b"".join(row[:n]).decode() for row, n in zip(table.tolist(), enough.tolist(), strict=True)]


class Generator:
    """Makes the passages of a collection of ``passages``; every chunk can be made by itself, in any order."""

    def __init__(self, source: Source, passages: int, seed: int) -> None:
        self.source, self.passages, self.seed = source, passages, seed
        self.chunks = math.ceil(passages / CHUNK)
        self.start = first_rank(source.fresh)
        self._words = [f"{word} " for word in source.words]

    def ids(self, chunk: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids of a chunk: (ids int32 [tokens], first token of each passage int64 [passages], made-up ranks).

        A passage's first token is its label. Ids are positions in: the source's words, the made-up words of
        ``ranks`` (sorted), the labels.
        """
        rng = np.random.Generator(np.random.SFC64([self.seed, chunk]))
        count = min(CHUNK, self.passages - chunk * CHUNK)
        lengths = rng.choice(self.source.lengths, count) + 1
        starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
        tokens = int(lengths.sum())
        ids = self.source.stream[rng.integers(0, len(self.source.stream), tokens, dtype=np.uint32)]
        at = rng.integers(0, tokens, rng.binomial(tokens, self.source.fresh))
        drawn = self.start * (1 - rng.random(len(at))) ** (-1 / (1 / HEAPS - 1))
        ranks, which = np.unique(np.mod(drawn, MOST_RANKS).astype(np.int64), return_inverse=True)
        ids[at] = len(self.source.words) + which
        back = np.exp(rng.random(tokens // RUN + 1, dtype=np.float32) * math.log(REACH)).astype(np.int32)
        back[rng.random(len(back), dtype=np.float32) >= REPEATED] = 0
        origin = np.arange(tokens, dtype=np.int32) - RUN * np.repeat(back, RUN)[:tokens]
        ids = ids[origin % tokens]  # a chunk's first runs repeat its last ones
        ids[starts] = len(self.source.words) + len(ranks) + np.arange(count)
        return ids, starts, ranks

    def dictionary(self, chunk: int, ranks: np.ndarray, count: int) -> Words:
        """What the ids of ``chunk`` stand for, each with the character that follows it."""
        labels = [f"{pid}\t" for pid in range(chunk * CHUNK, chunk * CHUNK + count)]
        return [*self._words, *(f"{word} " for word in made_up(ranks)), *labels]

    def text(self, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """The lines of a chunk: (uint8 [bytes], end of each line int64 [passages])."""
        ids, starts, ranks = self.ids(chunk)
        words = pa.array(self.dictionary(chunk, ranks, len(starts))).take(pa.array(ids))
        _, offsets, data = words.buffers()
        ends = np.frombuffer(offsets, dtype=np.int32)[np.append(starts[1:], len(ids))].astype(np.int64)
        lines = np.frombuffer(data, dtype=np.uint8)[: ends[-1]].copy()
        lines[ends - 1] = ord("\n")  # in place of the space after a passage's last word
        return lines, ends

    def sizes(self, chunk: int, wanted: np.ndarray) -> tuple[int, dict[int, list[tuple[str, int]]], np.ndarray]:
        """(bytes of a chunk, the words of the ``wanted`` pids in it with their counts in the source, ranks in it)."""
        ids, starts, ranks = self.ids(chunk)
        words = self.dictionary(chunk, ranks, len(starts))
        lengths = np.fromiter((len(word) if word.isascii() else len(word.encode()) for word in words), np.int64)
        ends = np.append(starts[1:], len(ids))
        seen, counts = {}, self.source.counts
        for pid in wanted[(wanted >= chunk * CHUNK) & (wanted < chunk * CHUNK + len(starts))].tolist():
            row = pid - chunk * CHUNK
            own = ids[starts[row] + 1 : ends[row]].tolist()
            seen[pid] = [(words[i], int(counts[i]) if i < len(counts) else 1) for i in own]
        present = np.bincount(ids, minlength=len(words))[len(counts) : len(counts) + len(ranks)] > 0
        return int(lengths[ids].sum()), seen, ranks[present]


def plan(source: Source, passages: int, sizes: dict[str, int], seed: int) -> list[Query]:
    """Choose what each query is made from: ``sizes`` says how many a split has. Qids are distinct and unordered."""
    rng = np.random.default_rng([seed, 1 << 32])
    total = sum(sizes.values())
    qids = (1 + rng.permutation(total + total // 3)[:total]).tolist()
    lengths = rng.choice(source.query_lengths, total).tolist()
    splits = [split for split, size in sizes.items() for _ in range(size)]
    queries = []
    for qid, split, length in zip(qids, splits, lengths, strict=True):
        pids = rng.integers(0, passages, 3 if split == "test" else 1).tolist()
        queries.append(Query(qid, split, tuple(dict.fromkeys(pids)), length))
    return queries


def write_query(query: Query, seen: dict[int, list[tuple[str, int]]], source: Source, rng: np.random.Generator) -> str:
    """The text of a query: ``SHARE`` of its words from its passages, rarer ones rather, the rest as queries have them.

    Its best passage gives most; each of the others gives one word.
    """
    own: Words = []
    for place, pid in enumerate(query.pids):
        count = max(1, round(query.length * SHARE)) if place == 0 else 1
        words = {term: n for word, n in seen[pid] for term in terms(word)[:1]}
        # Exponential variables divided by weights: the smallest are a weighted draw without replacement.
        keys = rng.exponential(size=len(words)) * np.array(list(words.values())) ** RARITY
        own.extend(np.array(list(words))[np.argsort(keys)[:count]].tolist())
    common = [source.query_words[i] for i in rng.integers(0, len(source.query_words), max(0, query.length - len(own)))]
    return " ".join(common + own) or "what"


def grades(query: Query, passages: int, rng: np.random.Generator) -> dict[int, int]:
    """pid -> grade (3 the best) of a test query: the passages it was made from, and twenty others that get 0."""
    judged = {int(pid): 0 for pid in rng.integers(0, passages, 20)}
    return judged | {pid: 3 - place for place, pid in enumerate(query.pids)}


def write_tar(path: Path, members: dict[str, tuple[int, Iterator[bytes | memoryview]]]) -> None:
    """Write a gzip archive of ``members``: name -> (its size, its bytes in pieces). No time stamps."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", LEVEL, raw, mtime=0) as file:
        for name, (size, pieces) in members.items():
            info = tarfile.TarInfo(name)
            info.size = size
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            written = sum(file.write(piece) for piece in pieces)
            if written != size:
                raise RuntimeError(f"{name}: {written} bytes, {size} announced")
            file.write(b"\0" * (-size % tarfile.BLOCKSIZE))
        file.write(b"\0" * 2 * tarfile.BLOCKSIZE)


def write_gzip(path: Path, text: str) -> None:
    """Write ``text`` as a gzip file without a time stamp."""
    path.write_bytes(gzip.compress(text.encode(), LEVEL, mtime=0))


def ahead(make: Callable[[int], Made], count: int) -> Iterator[Made]:
    """``make(0)`` to ``make(count - 1)`` in order, the next one being made while the caller uses this one."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(make, 0)
        for i in range(1, count + 1):
            made = pending.result()
            if i < count:
                pending = pool.submit(make, i)
            yield made


def write_queries(out: Path, queries: list[Query], text: dict[int, str]) -> None:
    """Write the files of queries (``text``: qid -> words) and the train and dev judgments."""
    lines = {
        split: "".join(f"{query.qid}\t{text[query.qid]}\n" for query in queries if query.split == split)
        for split in ("train", "dev", "eval", "test")
    }
    members = {f"queries.{split}.tsv": lines[split].encode() for split in ("train", "dev", "eval")}
    write_tar(out / "queries.tar.gz", {name: (len(data), iter([data])) for name, data in members.items()})
    write_gzip(out / "msmarco-test2019-queries.tsv.gz", lines["test"])
    for split, name in (("train", "qrels.train.tsv"), ("dev", "qrels.dev.small.tsv")):
        rows = (f"{query.qid}\t0\t{pid}\t1\n" for query in queries if query.split == split for pid in query.pids)
        (out / name).write_text("".join(rows))


def judge(out: Path, queries: list[Query], passages: int, seed: int) -> dict[int, list[int]]:
    """Write the graded judgments of the test queries; qid -> its given passages, the judged ones among them."""
    rng = np.random.default_rng([seed, 1 << 33])
    rows: list[str] = []
    given: dict[int, list[int]] = {}
    for query in queries:
        if query.split == "test":
            judged = grades(query, passages, rng)
            rows.extend(f"{query.qid} Q0 {pid} {grade}\n" for pid, grade in sorted(judged.items()))
            others = rng.choice(passages, min(passages, TOP + len(judged)), replace=False).tolist()
            top = list(dict.fromkeys([*judged, *others]))[:TOP]
            given[query.qid] = rng.permutation(top).tolist()
    (out / "2019qrels-pass.txt").write_text("".join(rows))
    return given


def generate(source: Source, out: Path, passages: int, sizes: dict[str, int], seed: int, plain: bool) -> dict:
    """Write all files into ``out``; ``sizes``: queries of train, dev, eval and test. What was made, in figures."""
    out.mkdir(parents=True, exist_ok=True)
    generator = Generator(source, passages, seed)
    queries = plan(source, passages, sizes, seed)
    given = judge(out, queries, passages, seed)

    wanted = np.unique([pid for query in queries for pid in query.pids])
    size, ranks = 0, []
    seen: dict[int, list[tuple[str, int]]] = {}
    for chunk_size, chunk_seen, chunk_ranks in ahead(lambda chunk: generator.sizes(chunk, wanted), generator.chunks):
        size += chunk_size
        seen |= chunk_seen
        ranks.append(chunk_ranks)
    rng = np.random.default_rng([seed, 1 << 34])
    text = {query.qid: write_query(query, seen, source, rng) for query in queries}
    write_queries(out, queries, text)

    shown = np.unique([pid for pids in given.values() for pid in pids]).astype(np.int64)
    kept: dict[int, str] = {}
    write_tar(out / "collection.tar.gz", {"collection.tsv": (size, collection(generator, out, plain, shown, kept))})
    rows = (f"{qid}\t{pid}\t{text[qid]}\t{kept[pid]}\n" for qid, pids in given.items() for pid in pids)
    write_gzip(out / "msmarco-passagetest2019-top1000.tsv.gz", "".join(rows))
    packed = (out / "collection.tar.gz").stat().st_size
    figures = {"passages": passages, "bytes": size, "packed": packed, "ratio": round(size / packed, 2)}
    return figures | {"made_up_words": len(np.unique(np.concatenate(ranks))), "source_words": len(source.words)}


def collection(
    generator: Generator, out: Path, plain: bool, shown: np.ndarray, kept: dict[int, str]
) -> Iterator[memoryview]:
    """The bytes of collection.tsv, also written as they are if ``plain``; ``kept`` gets the ``shown`` passages."""
    with (out / "collection.tsv").open("wb") if plain else nullcontext() as file:
        for chunk, (lines, ends) in enumerate(ahead(generator.text, generator.chunks)):
            starts = np.append(0, ends[:-1])
            for pid in shown[(shown >= chunk * CHUNK) & (shown < chunk * CHUNK + len(ends))].tolist():
                row = pid - chunk * CHUNK
                kept[pid] = lines[starts[row] : ends[row] - 1].tobytes().decode().partition("\t")[2]
            if file:
                file.write(lines.data)
            yield lines.data


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of MS MARCO raw files to learn from")
    parser.add_argument("out", type=Path, help="folder to write into")
    parser.add_argument("--passages", type=int, required=True)
    parser.add_argument("--train-queries", type=int, default=10_000)
    parser.add_argument("--dev-queries", type=int, default=1_000)
    parser.add_argument("--eval-queries", type=int, default=1_000, help="without judgments, as published")
    parser.add_argument("--test-queries", type=int, default=43)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--plain", action="store_true", help="also write collection.tsv as it is")
    args = parser.parse_args(arguments)
    if args.passages < 1:
        parser.error("--passages must be at least 1")
    sizes = {split: getattr(args, f"{split}_queries") for split in ("train", "dev", "eval", "test")}
    begun = time.perf_counter()
    figures = generate(learn(args.source), args.out, args.passages, sizes, args.seed, args.plain)
    print(json.dumps(figures | {"seconds": round(time.perf_counter() - begun, 1)}))


if __name__ == "__main__":
    main()
