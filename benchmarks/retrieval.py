"""Candidates as an Arrow table, against Pyserini's raw ``LuceneSearcher.batch_search``, whose Java objects nobody reads.

    python benchmarks/retrieval.py INDEX QUERIES.tsv

QUERIES.tsv has lines of id, tab, text. Each side is a process of its own with the same JDK and heap (the peer with Java's
default garbage collector, as Pyserini starts it; ours picks the parallel one), warmed by one round
that does not count; then they take turns. Start-up is not counted. Before, the scores of some queries are compared: they
must be equal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from measured import table

COMMON = """
import json, os, sys, time
index, queries, depth, threads, heap_mb = sys.argv[1], json.loads(sys.stdin.readline()), *map(int, sys.argv[2:])
"""
OURS = """
from pathlib import Path
from neuroranker_pipeline.retrieval.bm25 import BM25Settings, Searcher
searcher = Searcher(Path(index), BM25Settings(depth=depth, threads=threads, heap_mb=heap_mb))
search = searcher.search
def read(table):
    found = {}
    for row in table.to_pylist():
        found.setdefault(row["qid"], []).append([row["pid"], row["score"]])
    return found
"""
PEER = """
import jnius_config
from neuroranker_pipeline.retrieval import jvm
before = os.environ.get("JAVA_HOME")
os.environ.update(JAVA_HOME=str(jvm.java_home()), OPENAI_API_KEY="placeholder")  # a client is built on import
jnius_config.add_classpath(str(jvm.pyserini_jar()))
jnius_config.add_options(f"-Xmx{heap_mb}m", f"-XX:ActiveProcessorCount={threads}")
import jnius
jvm.start_jvm()  # silences the logs
from pyserini.search.lucene import LuceneSearcher
searcher = LuceneSearcher(index)
searcher.set_bm25(0.9, 0.4)
def search(queries):
    items = list(queries.items())
    batches = [items[start : start + 50_000 // depth] for start in range(0, len(items), 50_000 // depth)]
    found = {}
    for batch in batches:
        hits = searcher.batch_search([text for _, text in batch], [qid for qid, _ in batch], depth, threads)
        if checking:
            found.update(hits)
    return found
def read(hits):
    return {qid: [[hit.docid, hit.score] for hit in ranked] for qid, ranked in hits.items() if ranked}
"""
SERVE = """
for line in sys.stdin:
    checking = int(line)
    if checking:
        answer = read(search(dict(list(queries.items())[:checking])))
    else:
        start = time.perf_counter()
        search(queries)
        cpu = os.times()
        answer = [time.perf_counter() - start, cpu.user + cpu.system]
    print("answer", json.dumps(answer), flush=True)
"""


class Side:
    """One side's process; it answers a number N: 0 with the seconds of a round, else with the hits of N queries."""

    def __init__(self, code: str, arguments: argparse.Namespace, queries: dict[str, str]) -> None:
        values = [str(arguments.index), *(str(n) for n in (arguments.depth, arguments.threads, arguments.heap_mb))]
        command = [sys.executable, "-c", COMMON + code + SERVE, *values]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._send(json.dumps(queries))

    def ask(self, number: int) -> Any:
        self._send(str(number))
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise SystemExit("a side of the benchmark ended early")

    def close(self) -> None:
        self._process.communicate()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("queries_file", type=Path, metavar="QUERIES.tsv")
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--check", type=int, default=1_000, help="compare the scores of this many queries")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--heap-mb", type=int, default=1024)
    arguments = parser.parse_args()
    with arguments.queries_file.open(encoding="utf-8") as lines:
        queries = dict(line.rstrip("\n").split("\t")[:2] for line in islice(lines, arguments.queries))
    sides = [Side(PEER, arguments, queries), Side(OURS, arguments, queries)]
    if arguments.check:
        expected, found = (side.ask(min(arguments.check, len(queries))) for side in sides)
        if expected != found:
            differing = [qid for qid in expected.keys() | found.keys() if expected.get(qid) != found.get(qid)]
            raise SystemExit(f"scores differ for {len(differing)} queries, such as {differing[0]}")
        print(f"{sum(map(len, found.values())):,} scores of {min(arguments.check, len(queries)):,} queries are equal\n")
    rounds = [[side.ask(0) for side in sides] for _ in range(arguments.rounds + 1)]
    for side in sides:
        side.close()
    # The first round warms both; a round's processor time is what its process has used since the round before.
    seconds = [statistics.median(turn[side][0] for turn in rounds[1:]) for side in (0, 1)]
    cpu = [(rounds[-1][side][1] - rounds[0][side][1]) / arguments.rounds for side in (0, 1)]
    names = ["LuceneSearcher.batch_search", "**ours, as an Arrow table**"]
    rows = [
        [name, f"{s:.2f}", f"{len(queries) / s:,.0f}", f"{c:.2f}"]
        for name, s, c in zip(names, seconds, cpu, strict=True)
    ]
    print(f"{len(queries):,} queries at depth {arguments.depth}, median of {arguments.rounds} rounds\n")
    print(table(["", "seconds", "queries/s", "processor seconds"], rows))
    print(f"\nOurs is {seconds[0] / seconds[1]:.2f} times as fast ({cpu[0] / cpu[1]:.2f} by processor time).")


if __name__ == "__main__":
    main()
