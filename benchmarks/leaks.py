"""Near duplicates of held-out queries in training: ours, against SetSimilaritySearch and datasketch's MinHashLSH.

    python benchmarks/leaks.py QUERIES

QUERIES is a Parquet file or folder of queries (qid, text, split), or a folder of MS MARCO's raw files, as synthetic.py makes
them. Variants of some held-out queries are put into training, for made-up queries have few near duplicates. Every way is a
process of its own, gets the same texts, and finds pairs of queries whose word sets have a Jaccard similarity of at least the
threshold. Its time includes normalizing and splitting into words, not reading; its peak is that of the whole process,
libraries and texts included. A peer that is not installed is left out.
"""

from __future__ import annotations

import argparse
import gzip
import random
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from measured import Measured, measure, table

from neuroranker_pipeline.datasets.near import NEAR, near_pairs, same_text, tokens
from neuroranker_pipeline.datasets.tables import read_table

Found = list[tuple[int, int]]
"""(row in held, row in training) of every pair."""
PERMUTATIONS = 128


def ours(held: list[str], training: list[str], threshold: float) -> Found:
    pairs = near_pairs(held, training, threshold)
    return list(zip(pairs.held.tolist(), pairs.other.tolist(), strict=True))


def set_similarity_search(held: list[str], training: list[str], threshold: float) -> Found:
    """The held-out queries are asked for in an index of the training ones (the other way round takes longer)."""
    from SetSimilaritySearch import SearchIndex

    index = SearchIndex(words_of(training), similarity_func_name="jaccard", similarity_threshold=threshold)
    return [(row, int(other)) for row, words in enumerate(words_of(held)) for other, _ in index.query(words)]


def minhash_lsh(held: list[str], training: list[str], threshold: float) -> Found:
    """Candidates of the index of held-out queries, verified: no false pair is left, and some may be missed."""
    from datasketch import MinHash, MinHashLSH

    index, sets = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS), words_of(held)
    least = Fraction(str(threshold))
    for row, hashed in enumerate(MinHash.generator(encoded(sets), num_perm=PERMUTATIONS)):
        index.insert(row, hashed)
    found, others = [], words_of(training)
    for other, hashed in enumerate(MinHash.generator(encoded(others), num_perm=PERMUTATIONS)):
        words = others[other]
        near = (row for row in index.query(hashed) if len(words & sets[row]) >= least * len(words | sets[row]))
        found.extend((row, other) for row in near)
    return found


WAYS: dict[str, tuple[Callable[[list[str], list[str], float], Found], str]] = {
    "ours": (ours, "neuroranker_pipeline"),
    "SetSimilaritySearch": (set_similarity_search, "SetSimilaritySearch"),
    f"MinHashLSH, {PERMUTATIONS} permutations": (minhash_lsh, "datasketch"),
}


def words_of(texts: list[str]) -> list[set[str]]:
    return [tokens(same_text(text)) for text in texts]


def encoded(sets: list[set[str]]) -> Iterator[list[bytes]]:
    return ([word.encode() for word in words] for words in sets)


def read(path: Path, planted: int) -> tuple[list[str], list[str]]:
    """(held-out texts, training texts, with the variants)."""
    held, training = raw(path) if (path / "queries.tar.gz").is_file() else parquet(path)
    chosen = random.Random(13)
    for text in chosen.sample(held, min(planted, len(held))):
        training.append(chosen.choice([f"{text.upper()}?", f"{text} please", text.partition(" ")[2] or text]))
    return held, training


def parquet(path: Path) -> tuple[list[str], list[str]]:
    queries = read_table(path, ["text", "split"])
    is_training = pc.equal(queries["split"], "train")
    parts = queries.filter(pc.invert(is_training)), queries.filter(is_training)
    held, training = (part["text"].to_pylist() for part in parts)
    return held, training


def raw(folder: Path) -> tuple[list[str], list[str]]:
    found: dict[str, list[str]] = {"train": [], "dev": []}
    with tarfile.open(folder / "queries.tar.gz") as archive:
        for split, texts in found.items():
            lines = archive.extractfile(f"queries.{split}.tsv")
            assert lines is not None
            texts.extend(line.decode().rstrip("\n").partition("\t")[2] for line in lines)
    for path in folder.glob("msmarco-test*-queries.tsv*"):
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
            found["dev"].extend(line.decode().rstrip("\n").partition("\t")[2] for line in lines)
    return found["dev"], found["train"]


def run(way: str, arguments: argparse.Namespace) -> None:
    """One way, in this process; its pairs and seconds go into a file."""
    held, training = read(arguments.queries, arguments.planted)
    start, cpu = time.perf_counter(), time.process_time()
    found = WAYS[way][0](held, training, arguments.threshold)
    seconds = [time.perf_counter() - start, time.process_time() - cpu]
    rows = np.unique(np.array(found, np.int64).reshape(-1, 2), axis=0)
    np.savez(arguments.out, seconds=seconds, pairs=rows, sizes=[len(held), len(training)])


def row(way: str, file: Path, process: Measured, expected: set[tuple[int, int]]) -> list[object]:
    """A line of the table; ``expected`` are the pairs that all ways together have found."""
    with np.load(file) as result:
        found, (wall, cpu) = set(map(tuple, result["pairs"].tolist())), result["seconds"].tolist()
    return [way, f"{wall:.1f}", f"{cpu:.1f}", f"{process.peak:.0f}", f"{len(found):,}", f"{len(expected - found):,}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--threshold", type=float, default=NEAR)
    parser.add_argument(
        "--planted", type=int, default=1_000, help="held-out queries of which a variant goes to training"
    )
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        return run(arguments.way, arguments)
    results: dict[str, tuple[Path, Measured]] = {}
    expected: set[tuple[int, int]] = set()
    with tempfile.TemporaryDirectory() as scratch:
        for number, way in enumerate(way for way, (_, package) in WAYS.items() if find_spec(package)):
            out = Path(scratch, f"{number}.npz")
            results[way] = (out, measure([sys.executable, *sys.argv, "--way", way, "--out", str(out)]))
            with np.load(out) as result:
                expected |= set(map(tuple, result["pairs"].tolist()))
                held, training = result["sizes"].tolist()
        print(f"{held:,} held-out and {training:,} training queries, threshold {arguments.threshold}\n")
        rows = [row(way, *measured, expected) for way, measured in results.items()]
    print(table(["", "seconds", "processor seconds", "peak MiB", "pairs", "missed"], rows))


if __name__ == "__main__":
    main()
