"""Building the Lucene index straight from Parquet, against Anserini's own IndexCollection on a JSONL copy.

    python benchmarks/indexing.py PASSAGES_FOLDER --work SCRATCH

PASSAGES_FOLDER holds Parquet files with columns pid and text. Ours reads them, indexes, merges to one segment and checks
the result. The peer's time is that of DuckDB writing the JSONL copy, a file for each thread, and of ``IndexCollection
-optimize`` over it, with the same JDK, heap, buffers and threads, and Java's default garbage collector (ours picks the
parallel one). The peer checks nothing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from measured import Measured, measure, table

from neuroranker_pipeline.retrieval.index import BUFFER_SHARE, LARGEST_BUFFER
from neuroranker_pipeline.retrieval.jvm import java_home, pyserini_jar

OURS = """
import sys
from pathlib import Path
from neuroranker_pipeline.datasets.tables import read_batches
from neuroranker_pipeline.retrieval.index import build_index
from neuroranker_pipeline.retrieval.settings import BM25Settings
folder, out, threads, heap_mb = sys.argv[1:]
build_index(read_batches(Path(folder)), Path(out), BM25Settings(threads=int(threads), heap_mb=int(heap_mb)))
"""
TO_JSONL = """
import sys, duckdb
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
folder, out, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
Path(out).mkdir()
duckdb.sql("SET threads = 1; SET memory_limit = '1GB'")
def copy(part):
    duckdb.cursor().sql(f'''COPY (SELECT pid AS id, text AS contents
        FROM read_parquet('{folder}/*.parquet', file_row_number=true) WHERE file_row_number % {threads} = {part})
        TO '{out}/{part}.jsonl' (FORMAT json)''')
with ThreadPoolExecutor(threads) as pool:
    list(pool.map(copy, range(threads)))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--heap-mb", type=int, default=1024, help="of both")
    parser.add_argument("--work", type=Path, help="scratch space: about three times the text")
    parser.add_argument("--keep", type=Path, help="move our index there, for retrieval.py")
    arguments = parser.parse_args()
    passages = sum(pq.ParquetFile(file).metadata.num_rows for file in arguments.folder.glob("*.parquet"))
    with tempfile.TemporaryDirectory(dir=arguments.work) as scratch:
        work = Path(scratch)
        folder, threads, heap = str(arguments.folder), str(arguments.threads), str(arguments.heap_mb)
        ours = measure([sys.executable, "-c", OURS, folder, str(work / "ours"), threads, heap])
        ours_size = _mebibytes(work / "ours")
        if arguments.keep:
            shutil.move(work / "ours", arguments.keep)
        else:
            shutil.rmtree(work / "ours")
        copying = measure([sys.executable, "-c", TO_JSONL, folder, str(work / "jsonl"), threads])
        copy_size = _mebibytes(work / "jsonl")
        indexing = measure(_index_collection(work, threads, arguments.heap_mb))
        peer_size = _mebibytes(work / "peer")
    peer = Measured(copying.wall + indexing.wall, copying.cpu + indexing.cpu, max(copying.peak, indexing.peak))
    rows = [
        _row("JSONL copy by DuckDB", copying, passages, copy_size),
        _row("IndexCollection", indexing, passages, peer_size),
        _row("peer: both", peer, passages, peer_size),
        _row("**ours**", ours, passages, ours_size),
    ]
    print(f"{passages:,} passages, {threads} threads, {heap} MiB of Java heap\n")
    print(table(["", "seconds", "passages/s", "processor seconds", "peak MiB", "size MiB"], rows))
    print(f"\nOurs is {peer.wall / ours.wall:.2f} times as fast ({peer.cpu / ours.cpu:.2f} by processor time), "
          f"{1e6 * ours.wall / passages:.1f} µs a passage.")  # fmt: skip


def _index_collection(work: Path, threads: str, heap_mb: int) -> list[str]:
    buffer = int(min(LARGEST_BUFFER, BUFFER_SHARE * heap_mb))
    java = [str(java_home() / "bin" / "java"), f"-Xmx{heap_mb}m", "-cp", str(pyserini_jar())]
    what = ["-collection", "JsonCollection", "-generator", "DefaultLuceneDocumentGenerator", "-optimize"]
    where = ["-input", str(work / "jsonl"), "-index", str(work / "peer")]
    return [
        *java,
        "io.anserini.index.IndexCollection",
        *what,
        *where,
        "-threads",
        threads,
        "-memoryBuffer",
        str(buffer),
    ]


def _row(name: str, measured: Measured, passages: int, size: float) -> list[str]:
    figures = [f"{passages / measured.wall:,.0f}", f"{measured.cpu:.1f}", f"{measured.peak:.0f}", f"{size:.0f}"]
    return [name, f"{measured.wall:.1f}", *figures]


def _mebibytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.iterdir()) / 2**20


if __name__ == "__main__":
    main()
