from __future__ import annotations

import codecs
import gzip
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroranker_pipeline.datasets import rows as rows_module
from neuroranker_pipeline.datasets.rejects import Rejects
from neuroranker_pipeline.datasets.rows import (
    MAX_LINE_BYTES,
    file_rows,
    headed_rows,
    json_rows,
    spaced_rows,
    text_lines,
    tsv_rows,
)
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline_tests.datasets.raw import reasons, values

PAIR = ("pid", "text")


def lines_of(content: bytes, rejects: Rejects | None = None) -> list[tuple]:
    return values(text_lines(io.BytesIO(content), "f", rejects or Rejects()), "line")


def naive(content: bytes, limit: int) -> tuple[list[tuple], list[tuple]]:
    """The lines and the rejects, one line after the other; a line may have ``limit`` bytes, and one more before its
    "\\n" (as in CRLF)."""
    good, bad = [], []
    for number, raw in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if len(raw) > limit + 1:
            bad.append((number, f"longer than {limit:,} bytes"))
        elif b"\0" in raw:
            bad.append((number, "NUL byte"))
        else:
            try:
                line = raw.decode().rstrip("\r\n")
            except UnicodeDecodeError:
                bad.append((number, "invalid UTF-8"))
            else:
                if line.strip():
                    good.append((number, line))
    return good, bad


PIECES = st.sampled_from(
    [b"\n", b"\r\n", b"\r", b"\t", b" ", b"a", b"word", b"x" * 9, "é☃😀".encode(), "\u2028\x85\u00a0".encode(), b"\xff",
     b"\xe2\x98", b"\0", codecs.BOM_UTF8]
)  # fmt: skip


@given(st.lists(PIECES, max_size=60).map(b"".join), st.integers(1, 40), st.integers(1, 30))
def test_lines_are_those_of_a_naive_reader_whatever_the_blocks(content: bytes, block: int, limit: int) -> None:
    rejects = Rejects()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "BLOCK_BYTES", block)
        patch.setattr(rows_module, "MAX_LINE_BYTES", limit)
        got = lines_of(content, rejects)
    good, bad = naive(content, limit)
    assert got == good
    assert reasons(rejects) == bad


def test_crlf_bom_blank_lines_and_no_newline_at_the_end() -> None:
    assert lines_of(codecs.BOM_UTF8 + b"one\r\n\r\n  \t\ntwo\xc2\xa0\n\xc2\xa0\nthree") == [
        (1, "one"), (4, "two\u00a0"), (6, "three"),
    ]  # fmt: skip
    assert lines_of(b"") == lines_of(codecs.BOM_UTF8) == lines_of(b"\n\r\n") == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_is_refused(encoding: str) -> None:
    content = "\ufeffpid\ttext\n".encode(encoding) if encoding == "utf-16-be" else "pid\ttext\n".encode(encoding)
    with pytest.raises(BadInput, match=r"^f: UTF-16 text; convert it to UTF-8$"):
        lines_of(content)


def test_what_is_no_text_is_rejected_and_shown() -> None:
    rejects = Rejects()
    content = b"good\nwith \0 inside\ncaf\xe9 with Latin-1\nalso good\n"
    assert lines_of(content, rejects) == [(1, "good"), (4, "also good")]
    assert [(row["line"], row["reason"], row["excerpt"]) for row in rejects.table().to_pylist()] == [
        (2, "NUL byte", "with \\0 inside"),
        (3, "invalid UTF-8", "caf\ufffd with Latin-1"),
    ]


def test_a_line_of_10_mb_is_rejected_and_the_others_keep_their_numbers() -> None:
    rejects = Rejects()
    long = b"2\t" + b"x" * 10_000_000
    found = tsv_rows(io.BytesIO(b"1\tone\n" + long + b"\n3\tthree\n" + long), "f", PAIR, rejects)
    assert values(found, *PAIR) == [(1, "1", "one"), (3, "3", "three")]
    assert reasons(rejects) == [(n, f"longer than {MAX_LINE_BYTES:,} bytes") for n in (2, 4)]
    assert rejects.table()["excerpt"][0].as_py() == "2\t" + "x" * 78


def test_tsv_needs_its_columns_and_the_last_takes_the_rest() -> None:
    rejects = Rejects()
    found = tsv_rows(io.BytesIO(b"1\tone\twith tab\nno tab\n\t\n3\t\n"), "f", PAIR, rejects)
    assert values(found, *PAIR) == [(1, "1", "one\twith tab"), (4, "3", "")]
    assert reasons(rejects) == [(2, "expected pid<TAB>text")]


def test_spaced_columns_may_have_any_white_space_between_them() -> None:
    rejects = Rejects()
    found = spaced_rows(io.BytesIO(b"q1 0 p1 1\n q2\t0 \tp2  2 \nq3 0 p3\nq4 0 p4 1 x\n"), "f", list("abcd"), rejects)
    assert values(found, *"abcd") == [(1, "q1", "0", "p1", "1"), (2, "q2", "0", "p2", "2")]
    assert reasons(rejects) == [(3, "expected a b c d"), (4, "expected a b c d")]


def test_headed_tsv(monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"\n\ntext\tid \tmore\r\none\t1\tx\r\ntwo\t2\r\nthree\t3\tx\r\n"
    for block in (1, 20, 1_000):
        monkeypatch.setattr(rows_module, "BLOCK_BYTES", block)
        rejects = Rejects()
        assert values(headed_rows(io.BytesIO(content), "f", ("id", "text"), rejects), "id", "text") == [
            (4, "1", "one"),
            (6, "3", "three"),
        ]
        assert reasons(rejects) == [(5, "expected text<TAB>id<TAB>more")]
    with pytest.raises(BadInput, match=r"^f: empty; expected a first line that names the columns id, text$"):
        list(headed_rows(io.BytesIO(b"\n"), "f", ("id", "text"), Rejects()))
    with pytest.raises(BadInput, match=r"^f:3: no column qid, split in the header \(text, id, more\)$"):
        list(headed_rows(io.BytesIO(content), "f", ("qid", "id", "split"), Rejects()))


def test_json_lines() -> None:
    content = (
        rb"""{"id": 7, "text": "seven \u2603"}
{"id": 1.5, "text": null}
{"text": "no id"}
[1, 2]
"text"
{"id": "8", "text": "cut
{"id": true, "text": ["list"]}
{"id": "9", "text": "half a pair \ud83d"}
"""
        + b"[" * 100_000
        + b"\n"
        + b'{"id": '
        + b"1" * 5_000
        + b"}\n"
    )
    rejects = Rejects()
    assert values(json_rows(io.BytesIO(content), "f", ("id", "text"), rejects), "id", "text") == [
        (1, "7", "seven ☃"),
        (2, "1.5", None),
        (3, None, "no id"),
        (7, None, None),
        (8, "9", None),
    ]
    assert reasons(rejects) == [(line, "not a JSON object") for line in (4, 5, 6, 9, 10)]


def test_parquet_columns_of_any_type_become_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "PARQUET_ROWS", 2)
    texts = pa.array(["one", None, "three"], pa.large_string())
    pq.write_table(pa.table({"pid": [1, 2, 3], "text": texts.dictionary_encode()}), tmp_path / "p.parquet")
    found = list(file_rows(tmp_path / "p.parquet", PAIR, Rejects()))
    assert values(found, *PAIR) == [(1, "1", "one"), (2, "2", None), (3, "3", "three")]
    assert len(found) == 2


def test_parquet_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    latin = pa.array([b"1", b"caf\xe9"])
    tables = {
        r"no column text; its columns are pid$": pa.table({"pid": [1]}),
        "cannot be read as Parquet .*struct": pa.table({"pid": [1], "text": [{"a": 1}]}),
        "cannot be read as Parquet .*[Ii]nvalid UTF": pa.table({"pid": latin.view(pa.string()), "text": ["a", "b"]}),
        "cannot be read as Parquet .*[Ii]nvalid UTF.*": pa.table({"pid": latin, "text": ["a", "b"]}),
    }
    for message, content in tables.items():
        pq.write_table(content, path)
        with pytest.raises(BadInput, match=rf"p\.parquet: {message}"):
            list(file_rows(path, PAIR, Rejects()))
    pq.write_table(pa.table({"pid": range(5_000), "text": ["text"] * 5_000}), path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:500] + bytes(2_000) + whole[2_500:], b"PAR1" * 5):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"p\.parquet: cannot be read as Parquet") as caught:
            list(file_rows(path, PAIR, Rejects()))
        assert "\n" not in str(caught.value)


def test_files_are_told_apart_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"pid\ttext\n1\tone\n"))
    (tmp_path / "a.jsonl").write_bytes(b'{"pid": 1, "text": "one"}\n')
    (tmp_path / "a.csv").write_bytes(b"pid,text\n1,one\n")
    assert values(file_rows(tmp_path / "a.tsv.gz", PAIR, Rejects()), *PAIR) == [(2, "1", "one")]
    assert values(file_rows(tmp_path / "a.jsonl", PAIR, Rejects()), *PAIR) == [(1, "1", "one")]
    with pytest.raises(BadInput, match=r"a\.csv: expected a \.tsv, \.jsonl or \.parquet file"):
        list(file_rows(tmp_path / "a.csv", PAIR, Rejects()))
