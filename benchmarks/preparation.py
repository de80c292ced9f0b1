"""From ``collection.tar.gz`` to checked Parquet, against the least that must be done: unpack it, and parse it with DuckDB.

    python benchmarks/preparation.py FOLDER --work SCRATCH

FOLDER holds MS MARCO's raw files (``benchmarks/synthetic.py`` makes some). Ours is the whole command ``neuroranker run
--select passages``: unpacking, checking every row and id, writing, digesting, and checking what was written. The peer is
``gunzip -c | wc -l``, and DuckDB's CSV reader writing the same Parquet from the file unpacked beforehand.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from measured import measure, table

DUCKDB = """
import sys, duckdb
source, target = sys.argv[1:]
duckdb.sql("SET threads = 2; SET memory_limit = '4GB'; SET enable_progress_bar = false")
duckdb.sql(f'''COPY (SELECT * FROM read_csv('{source}', delim='\\t', quote='', escape='', header=false,
    columns={{'pid': 'VARCHAR', 'text': 'VARCHAR'}}, max_line_size=1048576))
    TO '{target}' (FORMAT parquet, COMPRESSION zstd)''')
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="scratch space: about twice the unpacked collection")
    arguments = parser.parse_args()
    archive = arguments.folder.resolve() / "collection.tar.gz"
    arguments.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.work) as scratch:
        work = Path(scratch)
        (work / "raw" / "msmarco").mkdir(parents=True)
        for file in arguments.folder.resolve().iterdir():  # but for an unpacked collection, which would be preferred
            if file.name != "collection.tsv":
                (work / "raw" / "msmarco" / file.name).symlink_to(file)
        count = measure(["sh", "-c", 'gunzip -c "$0" | wc -l', str(archive)])
        run = ["run", "--profile", "msmarco", "--data", str(work / "raw"), "--lake", str(work / "lake")]
        ours = measure([sys.executable, "-m", "neuroranker_pipeline.cli", *run, "--select", "passages"])
        shutil.rmtree(work / "lake")
        with (work / "collection.tsv").open("wb") as plain:
            subprocess.run(["tar", "xzOf", str(archive), "collection.tsv"], stdout=plain, check=True)
        duckdb = measure([sys.executable, "-c", DUCKDB, str(work / "collection.tsv"), str(work / "peer.parquet")])
        passages = _lines(work / "collection.tsv")
    rows = [
        ["gunzip -c \\| wc -l", f"{count.wall:.1f}", f"{count.cpu:.1f}", f"{count.peak:.0f}"],
        ["DuckDB: CSV to Parquet", f"{duckdb.wall:.1f}", f"{duckdb.cpu:.1f}", f"{duckdb.peak:.0f}"],
        ["**neuroranker run --select passages**", f"{ours.wall:.1f}", f"{ours.cpu:.1f}", f"{ours.peak:.0f}"],
    ]
    print(f"{passages:,} passages\n")
    print(table(["", "seconds", "processor seconds", "peak MiB"], rows))
    print(f"\nOurs takes {ours.wall / (count.wall + duckdb.wall):.2f} times as long as the two together, "
          f"{1e6 * ours.wall / passages:.1f} µs a passage.")  # fmt: skip


def _lines(path: Path) -> int:
    with path.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 24), b""))


if __name__ == "__main__":
    main()
