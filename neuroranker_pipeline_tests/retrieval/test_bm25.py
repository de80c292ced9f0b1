from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from neuroranker_pipeline.datasets.tables import CANDIDATES, PASSAGES
from neuroranker_pipeline.errors import BadInput, NotReady
from neuroranker_pipeline.retrieval.bm25 import BM25Settings, Searcher, build_index

TEXTS = {
    "p1": "the quick brown fox jumps over the lazy dog",
    "p2": "a quick search engine ranks passages quickly",
    "p3": "dogs and foxes are animals",
    "p☃": "snowman 😀 passage",
    **{f"tie{number:02d}": "identical content everywhere" for number in range(30)},
}


def batches(texts: dict[str, str], rows: int = 7) -> Iterator[pa.RecordBatch]:
    table = pa.table({"pid": list(texts), "text": list(texts.values())}, schema=PASSAGES)
    yield from table.to_batches(max_chunksize=rows)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lucene") / "index"
    reversed_texts = dict(reversed(TEXTS.items()))  # Lucene's own order must not decide ties
    assert build_index(batches(reversed_texts), out, heap_mb=256) == len(TEXTS)
    return out


@pytest.fixture
def searcher(index: Path) -> Iterator[Searcher]:
    searcher = Searcher(index)
    yield searcher
    searcher.close()


def test_candidates_are_ranked_and_typed(searcher: Searcher) -> None:
    table = searcher.search({"b": "quick fox", "a": "snowman"})
    assert table.schema == CANDIDATES
    assert searcher.num_docs == len(TEXTS)
    rows = table.to_pylist()
    assert [(row["qid"], row["pid"], row["rank"]) for row in rows] == [
        ("b", "p1", 1), ("b", "p3", 2), ("b", "p2", 3), ("a", "p☃", 1)
    ]  # fmt: skip
    assert rows[0]["score"] > rows[1]["score"] > rows[2]["score"] > 0


def test_scores_follow_the_bm25_formula(tmp_path: Path) -> None:
    out = tmp_path / "index"
    build_index(batches({"x": "apple apple pear", "y": "pear plum", "z": "plum"}), out)
    searcher = Searcher(out, BM25Settings(k1=1.2, b=0.75))
    (row,) = searcher.search({"q": "apple"}).to_pylist()
    searcher.close()
    idf = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    tf = 2 / (2 + 1.2 * (1 - 0.75 + 0.75 * 3 / 2))
    assert row["score"] == pytest.approx(idf * tf, abs=1e-4)  # Anserini rounds to four decimals


@pytest.mark.parametrize("depth", [1, 10, 100])
def test_ties_are_broken_by_pid_at_the_cut_off_too(index: Path, depth: int) -> None:
    searcher = Searcher(index, BM25Settings(depth=depth))
    table = searcher.search({"q": "identical content"})
    searcher.close()
    assert table["pid"].to_pylist() == [f"tie{number:02d}" for number in range(30)][:depth]
    assert table["rank"].to_pylist() == list(range(1, table.num_rows + 1))


@pytest.mark.parametrize("text", ["", "  ", "!!! ??? --", "the of and", "zzzunknown", '"', "(", "AND", "\0"])
def test_queries_that_match_nothing_have_no_rows(searcher: Searcher, text: str) -> None:
    assert searcher.search({"q": text}).num_rows == 0


@pytest.mark.parametrize("text", ["fox AND (", "fox^2~ +[", "NOT fox: *", "fox\0\n\tdog"])
def test_operators_mean_nothing(searcher: Searcher, text: str) -> None:
    assert "p1" in searcher.search({"q": text})["pid"].to_pylist()


def test_long_queries_work_up_to_a_bound(searcher: Searcher) -> None:
    assert searcher.search({"q": "fox " + " ".join(f"word{n}" for n in range(5_000))}).num_rows == 2
    with pytest.raises(BadInput, match="BM25 failed on a query"):
        searcher.search({"q": " ".join(f"word{n}" for n in range(70_000))})


def test_results_do_not_depend_on_batches_or_threads(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = {f"q{n}": text for n, text in enumerate([*TEXTS.values()] * 3)}
    one = Searcher(index, BM25Settings(threads=1))
    many = Searcher(index, BM25Settings(threads=4))
    expected = one.search(queries)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr("neuroranker_pipeline.retrieval.bm25.HITS_A_BATCH", 700)
    assert many.search(queries, lambda label, done, total: seen.append((done, total))).equals(expected)
    assert seen[0] == (7, len(queries))
    assert seen[-1] == (len(queries), len(queries))
    one.close()
    many.close()


def test_no_queries(searcher: Searcher) -> None:
    assert searcher.search({}).equals(CANDIDATES.empty_table())


def test_scores_equal_those_of_pyserini(index: Path, searcher: Searcher) -> None:
    queries = {"a": "quick passages", "b": "identical content", "c": "dogs", "d": "snowman passage"}
    code = """
import json, os, sys
from pathlib import Path
from neuroranker_pipeline.retrieval.jvm import start_jvm
start_jvm(256)
os.environ["OPENAI_API_KEY"] = "placeholder"  # Pyserini builds a client when it is imported
from pyserini.search.lucene import LuceneSearcher
searcher = LuceneSearcher(sys.argv[1])
searcher.set_bm25(0.9, 0.4)
queries = json.loads(sys.argv[2])
hits = searcher.batch_search(list(queries.values()), list(queries), k=100, threads=2)
print(json.dumps({qid: [[hit.docid, hit.score] for hit in hits[qid]] for qid in queries}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(index), json.dumps(queries)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    ours: dict[str, list[list[Any]]] = {qid: [] for qid in queries}
    for row in searcher.search(queries).to_pylist():
        ours[row["qid"]].append([row["pid"], row["score"]])
    assert ours == json.loads(done.stdout.splitlines()[-1])


def test_an_index_is_only_built_in_a_new_folder(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(BadInput, match="not empty"):
        build_index(batches(TEXTS), tmp_path)
    assert (tmp_path / "keep.txt").read_text() == "mine"


def test_a_passage_that_cannot_be_indexed_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="1 passages between a and b have no text"):
        build_index(batches({"a": "text", "b": "  "}), tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_a_failing_source_leaves_no_folder(tmp_path: Path) -> None:
    def failing() -> Iterator[pa.RecordBatch]:
        yield from batches(TEXTS)
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        build_index(failing(), tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_what_is_no_index_is_refused(tmp_path: Path, index: Path) -> None:
    with pytest.raises(NotReady, match="no Lucene index here"):
        Searcher(tmp_path / "absent")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "segments_1").write_bytes(b"not an index")
    with pytest.raises(NotReady, match="not a readable Lucene index"):
        Searcher(damaged)


@pytest.mark.parametrize(
    ("field", "value"), [("k1", -0.1), ("k1", math.nan), ("b", 1.1), ("depth", 0), ("threads", 0), ("heap_mb", 1)]
)
def test_bad_settings_name_the_field(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be"):
        BM25Settings(**{field: value})  # type: ignore[arg-type]
