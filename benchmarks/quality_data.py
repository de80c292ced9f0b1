"""Tables for ``quality.py``: every collection's passages, queries, judgments and BM25 candidates, through the asset graph.

    python benchmarks/quality_data.py DATA OUT

DATA holds ``msmarco-slice`` and ``beir/{nq-oracle,squad,medquad,nfcorpus}``; ``pydocs`` is the documentation installed here.
Each collection is retrieved from its own index, DL 2019 from its given run. OUT is one folder of Parquet files, ids prefixed
by the collection.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neuroranker_pipeline.datasets.tables import read_table
from neuroranker_pipeline.resources.lake import Lake

COLLECTIONS = {
    "slice": "extends: slice\n",
    "nq": "extends: slice\ndata: {source: beir, folder: beir/nq-oracle}\n",
    "squad": "extends: slice\ndata: {source: beir, folder: beir/squad}\n",
    "medquad": "extends: slice\ndata: {source: beir, folder: beir/medquad}\n",
    "nfcorpus": "extends: slice\ndata: {source: beir, folder: beir/nfcorpus}\n",
    "pydocs": "extends: slice\ndata: {source: pydocs}\n",
}
TABLES = ("passages", "queries", "qrels", "bm25_candidates")
LONGEST = 1_600  # characters of a passage: more than 256 tokens are not read


def prefixed(table: pa.Table, name: str) -> pa.Table:
    for column in ("qid", "pid"):
        if column in table.column_names:
            place = table.schema.get_field_index(column)
            table = table.set_column(place, column, pc.binary_join_element_wise(f"{name}/", table[column], ""))
    if "text" in table.column_names:
        place = table.schema.get_field_index("text")
        table = table.set_column(place, "text", pc.utf8_slice_codeunits(table["text"], 0, LONGEST))
    return table


def prepare(name: str, profile: str, data: Path, work: Path) -> Lake:
    """Run the graph up to BM25's candidates; returns the collection's lake."""
    file = work / f"{name}.yaml"
    file.write_text(profile)
    command = [sys.executable, "-m", "neuroranker_pipeline.cli", "run", "-p", str(file), "--lake", str(work / "lake")]
    subprocess.run([*command, "--data", str(data), "--select", "bm25_candidates"], check=True)
    return Lake(work / "lake", name)


def tables(lake: Lake, partitions: list[str]) -> dict[str, pa.Table]:
    found = {name: read_table(lake.read(name)) for name in TABLES[:-1]}
    found["bm25_candidates"] = pa.concat_tables(read_table(lake.read("bm25_candidates", part)) for part in partitions)
    return found


def write(out: Path, name: str, found: dict[str, pa.Table]) -> None:
    for table, rows in found.items():
        folder = out / table
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, folder / f"{name}.parquet", compression="zstd", compression_level=15)
        print(f"{name} {table}: {rows.num_rows:,}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, default=Path("quality-work"))
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    for name, profile in COLLECTIONS.items():
        lake = prepare(name, profile, arguments.data.absolute(), work)
        tests = ["test-dl19" if name == "slice" else "test"]
        found = tables(lake, ["train-00", "train-01", "dev", "gate", *tests])
        write(arguments.out, name, {table: prefixed(rows, name) for table, rows in found.items()})


if __name__ == "__main__":
    main()
