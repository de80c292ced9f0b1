from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest

from neuroranker_pipeline.datasets.tables import PASSAGES
from neuroranker_pipeline.errors import BadInput, NotReady
from neuroranker_pipeline.retrieval.bm25 import Searcher
from neuroranker_pipeline.retrieval.index import build_index, verify_index
from neuroranker_pipeline.retrieval.settings import BM25Settings

SETTINGS = BM25Settings(heap_mb=256)


def batches(texts: dict[str, str], rows: int = 7) -> Iterator[pa.RecordBatch]:
    table = pa.table({"pid": list(texts), "text": list(texts.values())}, schema=PASSAGES)
    yield from table.to_batches(max_chunksize=rows)


def many(count: int) -> dict[str, str]:
    draw = random.Random(count)
    return {f"p{n}": " ".join(f"w{draw.randrange(5_000)}" for _ in range(20)) for n in range(count)}


def found(index: Path, text: str, settings: BM25Settings = SETTINGS) -> list[str]:
    with closing(Searcher(index, settings)) as searcher:
        return searcher.search({"q": text})["pid"].to_pylist()


def test_it_is_one_segment_and_tells_its_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuroranker_pipeline.retrieval.index.BUFFER_SHARE", 1 / 256)  # 1 MiB: several flushes
    monkeypatch.setattr("neuroranker_pipeline.retrieval.index.PASSAGES_A_BATCH", 3_000)
    seen: list[tuple[str, int, int]] = []
    texts = many(10_000)
    count = build_index(
        batches(texts, 10_000), tmp_path, SETTINGS, lambda label, done, total: seen.append((label, done, total)), 10_000
    )
    assert count == 10_000
    assert [done for _, done, _ in seen] == [3_000, 6_000, 9_000, 10_000, 10_000]
    assert {total for *_, total in seen} == {10_000}
    assert len(list(tmp_path.glob("*.fnm"))) == 1
    assert "p77" in found(tmp_path, texts["p77"])


@pytest.mark.parametrize(
    "text",
    [
        "a \0 b wanted",
        "wanted 😀",
        'the "wanted" \\ one',
        "line\u2028wanted\nline",
        "\ufeffwanted",
        "{wanted}",
        "wanted\x7f",
    ],
)
def test_any_character_is_indexed(tmp_path: Path, text: str) -> None:
    build_index(batches({"p 😀\0": text, "other": "something else"}), tmp_path, SETTINGS)
    assert found(tmp_path, "wanted") == ["p 😀\0"]


def test_a_text_that_analyzes_to_nothing_is_still_a_document(tmp_path: Path) -> None:
    assert build_index(batches({"a": "the of and", "b": "!!!", "c": "fox"}), tmp_path, SETTINGS) == 3
    verify_index(tmp_path, 3)


def test_no_passage_at_all_is_an_empty_index(tmp_path: Path) -> None:
    assert build_index([], tmp_path, SETTINGS) == 0
    assert found(tmp_path, "fox") == []


def test_long_texts_are_indexed_in_smaller_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuroranker_pipeline.retrieval.index.BYTES_A_BATCH", 600)
    seen: list[int] = []
    texts = {f"p{n}": f"number{n} " * 60 for n in range(6)}
    build_index(batches(texts), tmp_path, SETTINGS, lambda _, done, total: seen.append(done))
    assert seen == [1, 2, 3, 4, 5, 6, 6]
    assert found(tmp_path, "number4") == ["p4"]


def test_an_index_is_only_built_in_a_new_folder(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(BadInput, match="not empty"):
        build_index(batches({"a": "fox"}), tmp_path, SETTINGS)
    assert (tmp_path / "keep.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"b": "  ", "c": "\0\n"}, "passages without text cannot be indexed: b, c$"),
        ({f"b{n}": " " for n in range(7)}, "indexed: b0, b1, b2, b3, b4 and 2 more$"),
        ({"b" * 40_000: "text"}, "refuses 1 passages between .* is an id above 32766 bytes"),
    ],
)
def test_a_passage_that_cannot_be_indexed_leaves_no_folder(tmp_path: Path, bad: dict[str, str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        build_index(batches({"a": "text", **bad, "z": "text"}, 20), tmp_path / "index", SETTINGS)
    assert not (tmp_path / "index").exists()


def test_a_failing_source_leaves_no_folder(tmp_path: Path) -> None:
    def failing() -> Iterator[pa.RecordBatch]:
        yield from batches(many(100))
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        build_index(failing(), tmp_path / "index", SETTINGS)
    assert not (tmp_path / "index").exists()


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((NotReady, OSError), match="file"):
        build_index(batches({"a": "fox"}), tmp_path / "file" / "index", SETTINGS)


FULL_DISK = """
import resource, sys
from pathlib import Path
from neuroranker_pipeline.retrieval import index
from neuroranker_pipeline_tests.retrieval.test_index import BM25Settings, batches, many
out, limit, share = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
index.BUFFER_SHARE = share
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    index.build_index(batches(many(20_000), 2_000), out, BM25Settings(heap_mb=256))
except Exception as error:
    print(type(error).__name__, error)
print("folder", out.exists())
"""


@pytest.mark.parametrize("fails", ["while indexing", "at the last flush", "while merging"])
def test_a_full_disk_is_one_clear_error_and_leaves_no_folder(tmp_path: Path, fails: str) -> None:
    share = 0.4 if fails == "at the last flush" else 2 / 256  # of 256 MiB
    limit = 50_000
    if fails == "while merging":  # only the merged file is as large as this
        build_index(batches(many(20_000)), tmp_path / "whole", SETTINGS)
        limit = max(file.stat().st_size for file in (tmp_path / "whole").iterdir()) * 9 // 10
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL_DISK, str(tmp_path / "index"), str(limit), str(share)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    error, folder = done.stdout.splitlines()
    assert error.startswith(f"NotReady {tmp_path / 'index'}: Lucene could not write the index ("), error
    assert "File too large" in error
    assert "see that the disk has room" in error
    assert folder == "folder False"
    assert done.stderr == ""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "index"
    build_index(batches(many(2_000)), out, SETTINGS)
    return out


def copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize("suffix", [".doc", ".tim", ".fdt", ".nvd", ".dvd", ".fnm", ".si", "segments_1"])
@pytest.mark.parametrize("damage", ["a flipped bit", "truncated", "missing"])
def test_damage_is_found(whole: Path, tmp_path: Path, suffix: str, damage: str) -> None:
    index = copy(whole, tmp_path / "index")
    verify_index(index, 2_000)
    (file,) = (file for file in index.iterdir() if file.name.endswith(suffix))
    content = bytearray(file.read_bytes())
    if damage == "missing":
        os.remove(file)
    elif damage == "truncated":
        file.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    with pytest.raises(NotReady, match=f"{index}: .*build it again"):
        verify_index(index, 2_000)


def test_missing_passages_are_found(whole: Path) -> None:
    with pytest.raises(NotReady, match="holds 2000 passages in 1 segments, not 2001 in one"):
        verify_index(whole, 2_001)
