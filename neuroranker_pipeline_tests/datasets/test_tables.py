from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroranker_pipeline.datasets.tables import (
    PASSAGES,
    count_rows,
    read_batches,
    read_rows,
    read_table,
    read_texts,
    rechunked,
    write_table,
)
from neuroranker_pipeline.errors import BadInput


def batches(sizes: list[int]) -> list[pa.RecordBatch]:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [
        pa.record_batch(
            [pa.array([f"p{start + n}" for n in range(size)], pa.string()), pa.array(["text"] * size, pa.string())],
            schema=PASSAGES,
        )
        for start, size in zip(starts, sizes, strict=True)
    ]


SIZES = st.lists(st.integers(0, 9), max_size=6)


@given(SIZES, st.integers(1, 12), st.integers(0, 60), st.integers(0, 60))
def test_what_is_written_is_read_back_whole_and_in_slices(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], per_file: int, start: int, stop: int
) -> None:
    folder = tmp_path_factory.mktemp("table")
    data, rows = batches(sizes), sum(sizes)
    assert write_table(folder, iter(data), PASSAGES, rows_per_file=per_file) == count_rows(folder) == rows
    table = pa.Table.from_batches(data, PASSAGES)
    assert read_table(folder).equals(table)
    assert pa.Table.from_batches(read_batches(folder), PASSAGES).equals(table)
    part = pa.Table.from_batches(read_rows(folder, slice(start, stop)), PASSAGES)
    assert part["pid"].to_pylist() == table["pid"].to_pylist()[start:stop]


@given(SIZES, st.integers(1, 12))
def test_rechunked(sizes: list[int], rows: int) -> None:
    data = batches(sizes)
    again = list(rechunked(iter(data), rows))
    assert pa.Table.from_batches(again, PASSAGES).equals(pa.Table.from_batches(data, PASSAGES))
    assert all(batch.num_rows == rows for batch in again[:-1])
    assert all(batch.num_rows <= rows for batch in again[-1:])


def test_no_file_grows_far_beyond_its_size(tmp_path: Path) -> None:
    write_table(tmp_path, iter(batches([5] * 6)), PASSAGES, rows_per_file=10)
    assert [pq.ParquetFile(file).metadata.num_rows for file in sorted(tmp_path.iterdir())] == [10, 10, 10]


def test_columns_and_texts_of_a_few(tmp_path: Path) -> None:
    write_table(tmp_path, iter(batches([3, 3])), PASSAGES)
    assert read_table(tmp_path, ["pid"]).column_names == ["pid"]
    assert read_texts(tmp_path, "pid", ["p4", "absent"]) == {"p4": "text"}
    assert list(read_texts(tmp_path, "pid")) == [f"p{n}" for n in range(6)]


def test_an_error_while_writing_is_the_one_that_is_raised(tmp_path: Path) -> None:
    def torn():
        yield from batches([2])
        raise BadInput("f:3: no tab")

    with pytest.raises(BadInput, match="f:3: no tab"):
        write_table(tmp_path, torn(), PASSAGES)


def test_a_folder_without_parquet(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no Parquet file here"):
        read_table(tmp_path)
