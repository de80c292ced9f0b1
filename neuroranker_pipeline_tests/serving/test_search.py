"""A collection's folder and the search over it, against the candidates, texts and vectors it was made from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from neuroranker_pipeline.datasets import trec
from neuroranker_pipeline.datasets.tables import PASSAGES, write_table
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.ranking.embeddings import Embeddings, embedding_schema, read_embeddings
from neuroranker_pipeline.ranking.interpolation import search_run
from neuroranker_pipeline.retrieval.bm25 import BM25Settings, Searcher, build_index
from neuroranker_pipeline.retrieval.settings import LANGUAGES
from neuroranker_pipeline.serving import collection as writing
from neuroranker_pipeline.serving import search as reading
from neuroranker_pipeline.serving.collection import write_collection
from neuroranker_pipeline.serving.engine import Reranker
from neuroranker_pipeline.serving.onnx_model import OnnxEncoder
from neuroranker_pipeline.serving.search import CollectionSearch, Strings
from neuroranker_pipeline_tests.export.models import QUERY, TEXTS, ragged_texts
from neuroranker_pipeline_tests.serving.conftest import BM25_WEIGHT

BM25 = BM25Settings(k1=1.1, b=0.5, heap_mb=256)
# Ids out of order, of several lengths and beyond ASCII; two equal passages, and more than a hundred that match.
PASSAGE_TEXTS = {
    **{f"p{number * 37 % 151}": text for number, text in enumerate(ragged_texts(150))},
    "z☃": "zebra",
    "A😀": TEXTS[1] + " ☃",
    "same": "zebra",
}
QUERIES = [QUERY, "search engine", "neural of the and in", "42 copper ; ?", "ranking\0 😀 ☃"]


def batches() -> Iterator[pa.RecordBatch]:
    table = pa.table({"pid": list(PASSAGE_TEXTS), "text": list(PASSAGE_TEXTS.values())}, schema=PASSAGES)
    yield from table.to_batches(max_chunksize=40)


def write_embeddings(folder: Path, vectors: np.ndarray, pids: list[str]) -> Path:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), vectors.shape[1])
    schema = embedding_schema(vectors.shape[1])
    write_table(folder, pa.table([pa.array(pids, pa.string()), column], schema=schema), schema)
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lucene") / "index"
    build_index(batches(), out, BM25)
    return out


@pytest.fixture(scope="module")
def embeddings(onnx_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two shards in another order than the passages, with a passage of another collection."""
    folder, pids = tmp_path_factory.mktemp("embeddings"), [*sorted(PASSAGE_TEXTS), "nq:d1"]
    vectors = OnnxEncoder(onnx_dir).encode([*(PASSAGE_TEXTS[pid] for pid in pids[:-1]), "elsewhere"])
    return [
        write_embeddings(folder / "0", vectors[:70], pids[:70]),
        write_embeddings(folder / "1", vectors[70:], pids[70:]),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, index: Path, embeddings: list[Path], int8_dir: Path) -> Path:
    out = tmp_path_factory.mktemp("bento") / "collection"
    assert write_collection(out, batches, embeddings, index, int8_dir, BM25) == len(PASSAGE_TEXTS)
    return out


@pytest.fixture(scope="module")
def reranker(int8_dir: Path) -> Iterator[Reranker]:
    reranker = Reranker(OnnxEncoder(int8_dir))
    yield reranker
    reranker.close()


@pytest.fixture(scope="module")
def search(folder: Path, reranker: Reranker) -> Iterator[CollectionSearch]:
    search = CollectionSearch(folder, reranker)
    yield search
    search.close()


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "collection")
    return tmp_path / "collection"


def test_rows_are_passages_by_pid(folder: Path, embeddings: list[Path]) -> None:
    pids, texts = (Strings(folder, name, len(PASSAGE_TEXTS)) for name in ("pids", "texts"))
    found = {pids[row].decode(): texts[row].decode() for row in range(len(pids))}
    assert found == PASSAGE_TEXTS
    assert list(found) == sorted(PASSAGE_TEXTS)
    vectors, expected = reading.open_vectors(folder, (len(found), 384)), read_embeddings(embeddings)
    np.testing.assert_array_equal(vectors, rows_of(expected, list(found)).astype(np.float16))


def rows_of(embeddings: Embeddings, pids: list[str]) -> np.ndarray:
    return embeddings.vectors[embeddings.rows(pa.array(pids))]


@pytest.mark.parametrize("query", QUERIES)
def test_candidates_are_those_of_the_pipeline_to_the_digit(search: CollectionSearch, index: Path, query: str) -> None:
    searcher = Searcher(index, BM25)
    expected = searcher.search({"q": query}).to_pylist()
    searcher.close()
    found = search.search(query, 100)
    by_bm25 = sorted(found.hits, key=lambda hit: hit.bm25_rank)
    assert found.candidates == len(expected) > 0
    assert [(hit.pid, hit.bm25_rank, np.float32(hit.bm25_score)) for hit in by_bm25] == [
        (row["pid"], row["rank"], np.float32(row["score"])) for row in expected
    ]


@pytest.mark.parametrize("query", QUERIES)
def test_hits_are_ordered_by_cosine(
    search: CollectionSearch, embeddings: list[Path], reranker: Reranker, query: str
) -> None:
    found = search.search(query, 100)
    assert [hit.rank for hit in found.hits] == list(range(1, found.candidates + 1))
    keys = [(-hit.score, hit.pid) for hit in found.hits]
    assert keys == sorted(keys)
    vectors = rows_of(read_embeddings(embeddings), [hit.pid for hit in found.hits])
    np.testing.assert_allclose([hit.score for hit in found.hits], vectors @ reranker.encode_query(query), atol=1e-3)
    assert all(hit.text == PASSAGE_TEXTS[hit.pid] for hit in found.hits)
    assert search.search(query, 3).hits == found.hits[:3]
    assert list(found.milliseconds) == ["bm25", "encode", "rank"]
    assert all(took >= 0 for took in found.milliseconds.values())


def test_the_final_order_adds_bm25s_score(search: CollectionSearch, folder: Path, weighted_dir: Path) -> None:
    alone = search.search(QUERY, 100).hits
    assert [hit.final_score for hit in alone] == [hit.score for hit in alone]
    weighted = Reranker(OnnxEncoder(weighted_dir))
    other = CollectionSearch(folder, weighted)
    hits = other.search(QUERY, 100).hits
    other.close()
    weighted.close()
    cosines, bm25 = (np.array([getattr(hit, name) for hit in alone]) for name in ("score", "bm25_score"))
    final = (cosines - cosines.mean()) / cosines.std() + BM25_WEIGHT * (bm25 - bm25.mean()) / bm25.std()
    expected = sorted(zip(alone, final.tolist(), strict=True), key=lambda pair: (-np.float32(pair[1]), pair[0].pid))
    assert [hit.pid for hit in hits] == [hit.pid for hit, _ in expected] != [hit.pid for hit in alone]
    np.testing.assert_allclose(
        [hit.final_score for hit in hits], [score for _, score in expected], rtol=1e-6, atol=1e-6
    )
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    same = {hit.pid: (hit.score, hit.bm25_rank, hit.bm25_score) for hit in alone}
    assert {hit.pid: (hit.score, hit.bm25_rank, hit.bm25_score) for hit in hits} == same


@pytest.mark.parametrize("name", ["int8_dir", "weighted_dir"])
def test_a_run_made_of_tables_is_what_is_served(
    name: str, folder: Path, index: Path, embeddings: list[Path], request: pytest.FixtureRequest
) -> None:
    """All queries at once, from the embeddings' float32, against one search each: the same order and the same bits."""
    model: Path = request.getfixturevalue(name)
    queries = {f"q{number}": query for number, query in enumerate([*QUERIES, "zebra search"])}
    searcher = Searcher(index, BM25)
    candidates = searcher.search(queries)
    searcher.close()
    shuffled = candidates.take(np.random.default_rng(0).permutation(len(candidates)))
    run = trec.ranked(search_run(shuffled, queries, model, read_embeddings(embeddings)))
    with closing(Reranker(OnnxEncoder(model))) as reranker, closing(CollectionSearch(folder, reranker)) as served:
        found = {qid: served.search(query, 100).hits for qid, query in queries.items()}
    expected = [(qid, hit.pid, hit.rank, hit.final_score) for qid, hits in found.items() for hit in hits]
    assert sorted(map(tuple, (row.values() for row in run.to_pylist()))) == sorted(expected)
    # Anserini moves BM25's equal scores apart, so only the cosine alone can tie.
    ties = sum(score == other for (*_, score), (*_, other) in pairwise(expected))
    assert ties > 0 or name == "weighted_dir", "no tie: nothing is tested"


def test_equal_scores_are_ordered_by_pid_against_bm25(
    folder: Path, reranker: Reranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pid that comes last is BM25's first, by a score that float32 can tell apart; the cosines are equal."""
    search = CollectionSearch(folder, reranker)
    monkeypatch.setattr(search, "_bm25", lambda query: [("z☃", 2.0), ("same", 1.0)])
    hits = search.search("zebra", 2).hits
    search.close()
    assert [(hit.pid, hit.bm25_rank) for hit in hits] == [("same", 2), ("z☃", 1)]
    assert hits[0].final_score == hits[1].final_score


def test_equal_passages_are_ordered_by_pid(search: CollectionSearch) -> None:
    same = search.search("zebra search", 100).hits
    same = [hit for hit in same if hit.text == "zebra"]
    assert [hit.pid for hit in same] == ["same", "z☃"]
    assert same[0].score == same[1].score
    assert same[0].bm25_rank < same[1].bm25_rank


@pytest.mark.parametrize("query", ["the of", "zzzunknown", "!?", ""])
def test_a_query_without_matches_has_no_hits(search: CollectionSearch, query: str) -> None:
    found = search.search(query, 10)
    assert (found.hits, found.candidates) == ([], 0)


def test_threads_that_come_and_go_find_the_same(search: CollectionSearch) -> None:
    from neuroranker_pipeline.retrieval.jvm import java_class

    threads = java_class("java.lang.management.ManagementFactory").getThreadMXBean()
    expected, before = [search.search(query, 10).hits for query in QUERIES], threads.getThreadCount()
    for _ in range(5):
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda query: search.search(query, 10).hits, QUERIES * 4))
        assert found == expected * 4
    assert threads.getThreadCount() <= before + 4, "Java keeps threads that have ended"


def test_files_are_mapped_and_only_read_where_asked(tmp_path: Path) -> None:
    """A sparse gigabyte of texts and another of vectors, of which a row each is read."""
    rows = 2**20
    with (tmp_path / "texts.bin").open("wb") as file:
        file.truncate(2**30)
    np.save(tmp_path / "texts_offsets.npy", np.arange(0, 2**30 + 1, 2**10))
    np.lib.format.open_memmap(tmp_path / "vectors.npy", "w+", np.float16, (rows, 512)).flush()
    texts, vectors = Strings(tmp_path, "texts", rows), reading.open_vectors(tmp_path, (rows, 512))
    assert len(texts[rows // 2]) == 2**10
    assert vectors[[5, rows - 1]].sum() == 0
    maps = Path("/proc/self/smaps").read_text().split("VmFlags")
    for name in ("texts.bin", "vectors.npy"):
        (mapped,) = (entry for entry in maps if str(tmp_path / name) in entry)
        size, resident = (int(mapped.split(f"\n{field}:")[1].split()[0]) for field in ("Size", "Rss"))
        assert size >= 2**20 - 1  # kB
        assert resident < 2**12


def rewrite(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        about = json.loads((folder / name).read_text())
        change(about)
        (folder / name).write_text(json.dumps(about))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "collection.json").unlink(), r"collection\.json: missing"),
        (lambda f: (f / "collection.json").write_text("{"), r"collection\.json: not JSON"),
        (rewrite("collection.json", lambda a: a.pop("bm25")), r"collection\.json: not a description"),
        (rewrite("collection.json", lambda a: a.update(passages="9")), r"collection\.json: not a description"),
        (rewrite("collection.json", lambda a: a["bm25"].update(b=2)), r"not a description.*b must be from 0 to 1"),
        (rewrite("collection.json", lambda a: a.update(model="0" * 64)), "vectors are of another model"),
        (rewrite("collection.json", lambda a: a.update(passages=5)), r"pids_offsets\.npy: int64 of shape"),
        (lambda f: (f / "vectors.npy").unlink(), r"vectors\.npy: cannot be mapped"),
        (lambda f: np.save(f / "vectors.npy", np.zeros((5, 384), np.float16)), r"vectors\.npy: float16 of shape \(5"),
        (lambda f: np.save(f / "vectors.npy", np.array([{}], object)), r"vectors\.npy: cannot be mapped"),
        (lambda f: (f / "texts.bin").write_bytes(b"short"), r"texts\.bin: is 5 bytes"),
        (lambda f: (f / "pids.bin").write_bytes(b""), r"pids\.bin: cannot be mapped"),
        (lambda f: (f / "anserini.jar").unlink(), r"anserini\.jar: missing"),
        (lambda f: shutil.rmtree(f / "index"), "index: no Lucene index here"),
    ],
)
def test_a_spoilt_collection_is_one_clear_error(
    copy: Path, reranker: Reranker, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(copy)
    with pytest.raises(BadInput, match=message):
        CollectionSearch(copy, reranker)


def test_an_index_of_other_passages_is_refused(copy: Path, reranker: Reranker, tmp_path: Path) -> None:
    shutil.rmtree(copy / "index")
    build_index(pa.table({"pid": ["x"], "text": ["y"]}, schema=PASSAGES).to_batches(), copy / "index", BM25)
    with pytest.raises(BadInput, match=f"index: 1 passages, should be {len(PASSAGE_TEXTS)}"):
        CollectionSearch(copy, reranker)


def test_embeddings_that_do_not_fit_are_refused(
    embeddings: list[Path], index: Path, int8_dir: Path, tmp_path: Path
) -> None:
    def write(folders: list[Path], name: str) -> None:
        write_collection(tmp_path / name, batches, folders, index, int8_dir, BM25)

    with pytest.raises(BadInput, match=r"passage '.*' has no embedding"):
        write(embeddings[:1], "incomplete")
    pids = list(PASSAGE_TEXTS)
    narrow = write_embeddings(tmp_path / "narrow", np.ones((len(pids), 8), np.float32), pids)
    with pytest.raises(BadInput, match=r"embeddings have 8 components, and the model's 384"):
        write([narrow], "of-8")
    random = np.random.default_rng(0).normal(size=(len(pids), 384)).astype(np.float32)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    with pytest.raises(BadInput, match="embeddings are of another model"):
        write([write_embeddings(tmp_path / "random", random, pids)], "of-another")


def test_passages_that_cannot_be_told_apart_are_refused(
    embeddings: list[Path], index: Path, int8_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="two passages have the id 'A😀'"):
        write_collection(tmp_path / "twice", lambda: [*batches(), *batches()], embeddings, index, int8_dir, BM25)
    with pytest.raises(BadInput, match="no passage to search"):
        write_collection(tmp_path / "none", lambda: [], embeddings, index, int8_dir, BM25)


BARE = """
import sys
from pathlib import Path
sys.modules.update(dict.fromkeys(("pyarrow", "pyserini", "torch", "transformers"), None))
from neuroranker_pipeline.retrieval.jvm import java_class
from neuroranker_pipeline.retrieval.lucene import analyzer
from neuroranker_pipeline.retrieval.settings import BM25Settings
from neuroranker_pipeline.serving.engine import Reranker
from neuroranker_pipeline.serving.onnx_model import OnnxEncoder
from neuroranker_pipeline.serving.search import CollectionSearch
reranker = Reranker(OnnxEncoder(sys.argv[2]))
search = CollectionSearch(Path(sys.argv[1]), reranker)
print([(hit.pid, hit.bm25_score) for hit in search.search(sys.argv[3], 5).hits])
print(java_class("java.lang.System").getProperty("java.class.path"))
for language in sys.argv[4:]:
    analyzer(BM25Settings(language=language))
for stemmer in ("krovetz", "none"):
    analyzer(BM25Settings(stemmer=stemmer))
search.close()
reranker.close()
"""


def test_a_process_with_what_the_bento_carries_finds_the_same(
    search: CollectionSearch, folder: Path, int8_dir: Path
) -> None:
    command = [sys.executable, "-W", "error", "-c", BARE, str(folder), str(int8_dir), QUERY, *LANGUAGES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr == ""
    hits, path = done.stdout.splitlines()
    assert hits == str([(hit.pid, hit.bm25_score) for hit in search.search(QUERY, 5).hits])
    assert str(folder / "anserini.jar") in path
    assert "fatjar" not in path


def test_the_jar_is_a_small_part_of_pyserinis(folder: Path) -> None:
    assert (folder / "anserini.jar").stat().st_size < writing.pyserini_jar().stat().st_size / 4
