"""A built Bento over real HTTP: what it answers, what it refuses, and when it does not start."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from neuroranker_pipeline.errors import BadInput, NotReady
from neuroranker_pipeline.serving.engine import OnnxEncoder, Reranker
from neuroranker_pipeline.serving.packaging import (
    BentoInfo,
    build_bento,
    export_bento,
    import_bento,
    serve_bento,
    served_order,
)
from neuroranker_pipeline_tests.export.models import QUERY, TEXTS, ragged_texts


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bentoml")


@pytest.fixture(scope="module")
def bento(int8_dir: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> BentoInfo:
    report = tmp_path_factory.mktemp("report")
    (report / "report.md").write_text("# Evaluation\n")
    return build_bento(int8_dir, report, version="v1", labels={"profile": "smoke"}, bentoml_home=home)


@pytest.fixture(scope="module")
def url(bento: BentoInfo, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # Another neuroranker_pipeline is on the path, and a broken one: the Bento must use the code it carries.
    decoy = tmp_path_factory.mktemp("decoy") / "neuroranker_pipeline"
    decoy.mkdir()
    (decoy / "__init__.py").write_text("raise RuntimeError('the wrong neuroranker_pipeline')")
    with serve_bento(bento.tag, home, {"PYTHONPATH": str(decoy.parent)}) as address:
        yield address


def post(url: str, body: Any) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_bento_carries_all_it_needs(bento: BentoInfo) -> None:
    assert bento.tag == "ranker:v1"
    files = {str(file.relative_to(bento.path / "src")) for file in (bento.path / "src").rglob("*") if file.is_file()}
    assert {"service.py", "model/model.onnx", "model/tokenizer.json", "report/report.md"} <= files
    assert not [name for name in files if "assets" in name or "ranking" in name]
    about = yaml.safe_load((bento.path / "bento.yaml").read_text())
    assert about["labels"] == {"profile": "smoke"}
    assert about["models"] == []
    requirements = (bento.path / "env/python/requirements.txt").read_text().split()
    assert sorted(line.split("==")[0] for line in requirements) == ["bentoml", "numpy", "onnxruntime", "tokenizers"]


def test_rerank_answers_a_bare_list_best_first(url: str) -> None:
    status, answer = post(f"{url}/rerank", {"query": QUERY, "texts": TEXTS})
    assert status == 200
    assert [sorted(item) for item in answer] == [["index", "score"]] * 2
    assert [item["index"] for item in answer] == [0, 1]
    assert answer[0]["score"] > answer[1]["score"]


def test_rerank_serves_what_the_engine_computes(url: str, int8_dir: Path) -> None:
    texts = [*ragged_texts(20), *TEXTS]
    expected = Reranker(OnnxEncoder(int8_dir)).rerank(QUERY, texts)
    body = {"query": QUERY, "texts": texts, "return_text": True}
    _, raw = post(f"{url}/rerank", {**body, "raw_scores": True})
    assert [(item["index"], item["text"]) for item in raw] == [(i, texts[i]) for i, _ in expected]
    assert [item["score"] for item in raw] == pytest.approx([score for _, score in expected], abs=1e-6)
    _, mapped = post(f"{url}/rerank", body)
    assert [item["score"] for item in mapped] == pytest.approx([1 / (1 + math.exp(-r["score"])) for r in raw])


def test_truncate_false_refuses_long_texts(url: str) -> None:
    body = {"query": QUERY, "texts": ["short", "word " * 300]}
    assert post(f"{url}/rerank", {**body, "truncate": True})[0] == 200
    status, answer = post(f"{url}/rerank", {**body, "truncate": False})
    assert status == 400
    assert answer["detail"] == "longer than 256 tokens with truncate false: texts[1]"


def test_v1_rerank(url: str) -> None:
    body = {"model": "any", "query": QUERY, "documents": [TEXTS[1], {"text": TEXTS[0]}], "top_n": 1}
    status, answer = post(f"{url}/v1/rerank", {**body, "return_documents": True})
    assert status == 200
    assert sorted(answer) == ["id", "model", "results", "usage"]
    assert answer["model"] == "ranker"
    assert answer["usage"]["total_tokens"] > 20
    (result,) = answer["results"]
    assert (result["index"], result["document"]) == (1, {"text": TEXTS[0]})
    assert 0.5 < result["relevance_score"] < 1
    _, everything = post(f"{url}/v1/rerank", {**body, "top_n": None})
    assert [sorted(item) for item in everything["results"]] == [["index", "relevance_score"]] * 2


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/rerank", {"query": "q", "texts": []}, 400, "texts: "),
        ("/rerank", {"request": {"query": "q", "texts": ["a"]}}, 400, "query: Field required"),
        ("/rerank", {"query": "q", "texts": ["a", ""]}, 400, "texts.1: "),
        ("/rerank", {"query": "q", "texts": ["a"], "raw_score": True}, 400, "raw_score: "),
        ("/rerank", b'{"query": ', 400, "body: Invalid JSON"),
        ("/v1/rerank", {"query": "q", "documents": [{"title": "a"}]}, 400, "documents.0.text: Field required"),
        ("/rerank", b" " * (17 * 2**20), 413, "Request Entity Too Large"),
        ("/absent", {}, 404, "Not Found"),
    ],
)
def test_errors_are_json_with_detail(url: str, path: str, body: Any, status: int, error: str) -> None:
    code, answer = post(url + path, body)
    assert code == status
    assert answer["error"].startswith(error)
    assert sorted(answer) == ["detail", "error"]
    assert "Traceback" not in json.dumps(answer)


def test_the_built_bento_serves_the_offline_order(bento: BentoInfo, home: Path, int8_dir: Path) -> None:
    offline = [index for index, _ in Reranker(OnnxEncoder(int8_dir)).rerank(QUERY, TEXTS)]
    assert served_order(bento.path, QUERY, TEXTS, home) == offline


def test_a_bento_moves_to_another_store_as_a_file(bento: BentoInfo, home: Path, tmp_path: Path) -> None:
    archive, other = tmp_path / "ranker.bento", tmp_path / "bentoml"
    export_bento(bento, archive, home)
    assert import_bento(archive, bento.tag, other)
    assert not import_bento(archive, bento.tag, other), "it is there already"
    assert sorted(path.name for path in (other / "bentos" / "ranker").iterdir()) == sorted(
        path.name for path in (home / "bentos" / "ranker").iterdir()
    )


def test_student_onnx_names_another_model(bento: BentoInfo, home: Path, onnx_dir: Path) -> None:
    body = {"query": QUERY, "documents": TEXTS}
    with serve_bento(bento.tag, home, {"STUDENT_ONNX": str(onnx_dir / "model.onnx")}) as address:
        assert post(f"{address}/v1/rerank", body)[1]["model"] == onnx_dir.name


@pytest.mark.parametrize("case", ["missing", "no tokenizer", "no model"])
def test_a_bad_student_onnx_is_one_line(
    bento: BentoInfo, home: Path, int8_dir: Path, tmp_path: Path, case: str
) -> None:
    model = tmp_path / "model.onnx"
    if case == "no tokenizer":
        shutil.copyfile(int8_dir / "model.onnx", model)
    if case == "no model":
        model.write_bytes(b"text")
        shutil.copyfile(int8_dir / "tokenizer.json", tmp_path / "tokenizer.json")
    with (
        pytest.raises(NotReady, match=r"ended with status 1: Error: .*cannot serve the model: .*" + str(tmp_path)),
        serve_bento(bento.tag, home, {"STUDENT_ONNX": str(model)}),
    ):
        pytest.fail("it must not start")


def test_no_model_no_bento(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"model\.onnx: no such file"):
        build_bento(tmp_path, None, bentoml_home=tmp_path)


def test_a_version_is_not_built_twice(bento: BentoInfo, int8_dir: Path, home: Path) -> None:
    with pytest.raises(NotReady, match="already exists"):
        build_bento(int8_dir, None, version="v1", bentoml_home=home)


def test_the_service_imports_little(home: Path) -> None:
    code = (
        "import sys, neuroranker_pipeline.serving.service as service;"
        "heavy = {'torch', 'transformers', 'dagster', 'pyserini', 'onnx', 'pyarrow'} & set(sys.modules);"
        "assert not heavy, heavy; assert str(service.Ranker.config['http']['host']) == '127.0.0.1'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
