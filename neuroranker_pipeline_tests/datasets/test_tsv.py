from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

from neuroranker_pipeline.datasets.tables import PASSAGES, write_table
from neuroranker_pipeline.datasets.tsv import MAX_LINE_BYTES, read_passages, read_queries_tsv
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline_tests.datasets.raw import archive, header

CONTENT = "\ufeff1\tfirst text\r\n\n2\tsecond\twith a tab ☃\n"
EXPECTED = {"1": "first text", "2": "second\twith a tab ☃"}


def test_plain_gzip_and_archive_read_alike(tmp_path: Path) -> None:
    plain = tmp_path / "passages.tsv"
    plain.write_text(CONTENT, encoding="utf-8", newline="")
    packed = tmp_path / "passages.tsv.gz"
    packed.write_bytes(gzip.compress(CONTENT.encode()))
    tar = archive(
        tmp_path / "collection.tar.gz", ("deep/collection.tsv", CONTENT.encode()), ("._collection.tsv", b"\0")
    )
    assert [read_passages(path) for path in (plain, packed, tar)] == [EXPECTED] * 3
    assert read_queries_tsv(plain) == EXPECTED


def test_parquet_folder(tmp_path: Path) -> None:
    table = pa.table({"pid": list(EXPECTED), "text": list(EXPECTED.values())}, schema=PASSAGES)
    write_table(tmp_path / "passages", table, PASSAGES)
    assert read_passages(tmp_path / "passages") == EXPECTED
    assert read_passages(tmp_path / "passages", {"2"}) == {"2": EXPECTED["2"]}
    with pytest.raises(BadInput, match="no Parquet file"):
        read_passages(tmp_path)


def test_parquet_folder_with_other_columns(tmp_path: Path) -> None:
    write_table(tmp_path / "other", pa.table({"id": ["1"]}), pa.schema([("id", pa.string())]))
    with pytest.raises(BadInput, match="columns pid and text"):
        read_passages(tmp_path / "other")


def test_reading_stops_when_all_wanted_are_found(tmp_path: Path) -> None:
    path = tmp_path / "passages.tsv"
    path.write_text("1\tone\n2\ttwo\nthis line is bad\n")
    assert read_passages(path, {"2"}) == {"2": "two"}
    with pytest.raises(BadInput, match=r"passages\.tsv:3: expected pid<TAB>text"):
        read_passages(path, {"2", "absent"})


def test_archives_with_members_outside_or_links_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.tsv"
    secret.write_text("9\tsecret\n")
    link = header("link.tsv", tarfile.SYMTYPE, str(secret))
    for member in (("../../escape.tsv", b"1\tone\n"), link):
        tar = archive(tmp_path / "a.tar.gz", ("passages.tsv", b"1\tone\n"), member)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(BadInput, match=r"a\.tar\.gz: the member .*; refused"):
            read_passages(tar)
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1\tone\n1\tagain\n", r":2: query 1 occurs twice"),
        (b"1\tone\nno tab\n", r":2: expected qid<TAB>text, got 'no tab'"),
        (b"1\tone\n2\t  \n", r":2: expected qid<TAB>text"),
        (b"\tone\n", r":1: expected qid<TAB>text"),
        (b"1\tone\n2\t\xff\n", r":2: not UTF-8"),
        (b"1\t" + b"x" * MAX_LINE_BYTES, r":1: longer than"),
        (b"", "no query in it"),
    ],
)
def test_bad_lines_name_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "queries.tsv"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"queries\.tsv.*" + message):
        read_queries_tsv(path)


def test_missing_damaged_and_empty_archives(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_passages(tmp_path / "absent.tsv")
    with pytest.raises(BadInput, match=r"no \.tsv or \.txt file"):
        read_passages(archive(tmp_path / "empty.tar.gz", ("readme.md", b"1\tone\n")))
    whole = archive(tmp_path / "whole.tar.gz", ("c.tsv", b"".join(b"%d\t%d\n" % (n, n * n) for n in range(50_000))))
    torn = tmp_path / "torn.tar.gz"
    torn.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(BadInput, match=r"torn\.tar\.gz: damaged near byte"):
        read_passages(torn)
    torn.with_suffix("").write_bytes(b"not an archive at all")
    with pytest.raises(BadInput, match=r"torn\.tar: "):
        read_passages(torn.with_suffix(""))
    bad = tmp_path / "bad.tsv.gz"
    bad.write_bytes(b"plain text")
    with pytest.raises(BadInput, match=r"bad\.tsv\.gz: damaged near byte"):
        read_passages(bad)
