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


SETTINGS = BM25Settings(heap_mb=256)


def batches(texts: dict[str, str], rows: int = 7) -> Iterator[pa.RecordBatch]:
    table = pa.table({"pid": list(texts), "text": list(texts.values())}, schema=PASSAGES)
    yield from table.to_batches(max_chunksize=rows)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lucene") / "index"
    reversed_texts = dict(reversed(TEXTS.items()))  # Lucene's own order must not decide ties
    assert build_index(batches(reversed_texts), out, SETTINGS) == len(TEXTS)
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
    build_index(batches({"x": "apple apple pear", "y": "pear plum", "z": "plum"}), out, SETTINGS)
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


def test_what_is_no_index_is_refused(tmp_path: Path, index: Path) -> None:
    with pytest.raises(NotReady, match="no Lucene index here"):
        Searcher(tmp_path / "absent")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "segments_1").write_bytes(b"not an index")
    with pytest.raises(NotReady, match="not a readable Lucene index"):
        Searcher(damaged)


def test_the_analyzer_of_queries_is_that_of_the_passages(tmp_path: Path) -> None:
    texts = {"p1": "the generations of cats", "p2": "a generic cat", "p3": "den Häusern"}
    expected = {
        (BM25Settings(), "generic"): {"p1", "p2"},
        (BM25Settings(), "the"): set(),
        (BM25Settings(stemmer="krovetz"), "generic"): {"p2"},
        (BM25Settings(stemmer="krovetz"), "cat"): {"p1", "p2"},
        (BM25Settings(stemmer="none"), "cat"): {"p2"},
        (BM25Settings(keep_stopwords=True), "the"): {"p1"},
        (BM25Settings(language="de"), "Haus"): {"p3"},
        (BM25Settings(language="sw"), "Häusern"): {"p3"},
        (BM25Settings(language="sw"), "häusern"): set(),
    }
    for number, ((settings, query), pids) in enumerate(expected.items()):
        build_index(batches(texts), tmp_path / str(number), settings)
        searcher = Searcher(tmp_path / str(number), settings)
        assert set(searcher.search({"q": query})["pid"].to_pylist()) == pids, (settings, query)
        searcher.close()


def test_ids_and_queries_may_hold_any_character(searcher: Searcher) -> None:
    queries = {"q 😀": "😀", "q\0": "snowman\0😀", 'q"\\': "fox"}
    table = searcher.search(queries)
    assert dict(zip(table["qid"].to_pylist(), table["pid"].to_pylist(), strict=True)).keys() == queries.keys()
    assert table["pid"].to_pylist()[:2] == ["p☃", "p☃"]


def test_many_ties_keep_the_order_of_scores(tmp_path: Path) -> None:
    # 250 equal scores, each lowered by a millionth, overtake what scores a ten-thousandth less.
    texts = {f"a{n:03d}": "fox" for n in range(250)} | {f"b{n:03d}": "fox and something longer" for n in range(250)}
    build_index(batches(texts, 500), tmp_path, SETTINGS)
    searcher = Searcher(tmp_path, BM25Settings(k1=0.001, depth=500))
    rows = searcher.search({"q": "fox"}).to_pylist()
    searcher.close()
    assert len(rows) == 500
    keys = [(-row["score"], row["pid"]) for row in rows]
    assert keys == sorted(keys)
    assert [row["rank"] for row in rows] == list(range(1, 501))


def test_a_caller_may_stop_early(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuroranker_pipeline.retrieval.bm25.HITS_A_BATCH", 100)
    searcher = Searcher(index)
    stream = searcher.search_batches({f"q{n}": "fox" for n in range(50)})
    assert next(stream)["qid"].to_pylist() == ["q0", "q0"]
    stream.close()
    assert searcher.search({"q": "snowman"}).num_rows == 1
    searcher.close()
