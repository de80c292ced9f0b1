"""A built Bento over real HTTP: what it answers, what it refuses, and how it ends."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from neuroranker_pipeline.errors import BadInput, NotReady
from neuroranker_pipeline.resources.manifest import digest_files
from neuroranker_pipeline.serving.engine import Reranker
from neuroranker_pipeline.serving.onnx_model import OnnxEncoder
from neuroranker_pipeline.serving.packaging import (
    BentoInfo,
    build_bento,
    export_bento,
    serve_bento,
)
from neuroranker_pipeline.serving.store import import_bento, latest_tag, make_latest
from neuroranker_pipeline_tests.export.models import QUERY, TEXTS, ragged_texts
from neuroranker_pipeline_tests.serving.client import ask, post
from neuroranker_pipeline_tests.serving.conftest import BM25_WEIGHT


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
    expected = [(r.index, r.score) for r in Reranker(OnnxEncoder(int8_dir)).rerank(QUERY, texts).results]
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


def test_a_cut_text_is_marked_and_windows_read_all_of_it(url: str) -> None:
    texts = ["river " * 300 + TEXTS[0], "short"]
    _, cut = post(f"{url}/rerank", {"query": QUERY, "texts": texts})
    assert {item["index"]: item.get("truncated") for item in cut} == {0: True, 1: None}
    status, whole = post(f"{url}/rerank", {"query": QUERY, "texts": texts, "long": "windows", "truncate": False})
    assert status == 200, "windows cut nothing that truncate false could refuse"
    assert not any("truncated" in item for item in whole)
    best = {item["index"]: item["score"] for item in whole}[0]
    assert best > {item["index"]: item["score"] for item in cut}[0], "the end of the text answers the query"
    _, v1 = post(f"{url}/v1/rerank", {"query": QUERY, "documents": texts})
    assert {item["index"]: item.get("truncated") for item in v1["results"]} == {0: True, 1: None}


def test_info_says_what_is_served(url: str, evaluation: dict[str, Any]) -> None:
    status, text = ask(f"{url}/info")
    info = json.loads(text)
    assert status == 200
    assert (info["name"], info["version"], info["search"]) == ("ranker", "v1", None)
    assert len(info["model"].pop("source")) == 64
    expected = {"kind": "bi-encoder", "precision": "int8", "pooling": "mean", "dimension": 384, "max_length": 256}
    assert info["model"] == {**expected, "bm25_weight": BM25_WEIGHT}
    assert info["reload_failure"] is None
    assert info["data"] == evaluation["dataset"]
    assert info["measures"]["test"]["rankers"] == {"BM25": {"MRR@10": 0.5}, "student int8": {"MRR@10": 1}}
    assert info["limits"] == {
        "texts": 1000,
        "characters": 20_000,
        "body_bytes": 16 * 2**20,
        "concurrency": 64,
        "queue": 256,
        "timeout_seconds": 60,
    }


def test_metrics_count_what_was_ranked(url: str) -> None:
    def figures() -> dict[str, float]:
        lines = ask(f"{url}/metrics")[1].splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    post(f"{url}/rerank", {"query": "before", "texts": ["before"]})
    before = figures()
    texts = ["a text that no other test has", "another such text"]
    for _ in range(2):
        post(f"{url}/rerank", {"query": QUERY, "texts": texts})
    after = figures()
    grown = {name: after[name] - before[name] for name in after if name.startswith("neuroranker_")}
    assert grown["neuroranker_request_texts_sum"] == 4
    assert grown["neuroranker_request_texts_count"] == 2
    assert grown["neuroranker_request_tokens_sum"] > 20
    assert grown["neuroranker_cache_hits_total"] == 2, "the second request's texts were known"
    assert grown["neuroranker_cache_misses_total"] == 2
    assert after["neuroranker_queued"] == 0


def test_search_without_a_collection_says_so(url: str) -> None:
    status, answer = post(f"{url}/search", {"query": "q"})
    assert (status, answer["error"]) == (404, "Not Found")
    assert "no collection" in answer["detail"]


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
        ("/search", {"query": "q", "k": 101}, 400, "k: "),
        ("/search", {"query": " "}, 400, "query: "),
        ("/rerank", {"query": "q", "texts": ["a"], "long": "cut"}, 400, "long: "),
        ("/info", {}, 405, "Method Not Allowed"),
        ("/absent", {}, 404, "Not Found"),
    ],
)
def test_errors_are_json_with_detail(url: str, path: str, body: Any, status: int, error: str) -> None:
    code, answer = post(url + path, body)
    assert code == status
    assert answer["error"].startswith(error)
    assert sorted(answer) == ["detail", "error"]
    assert "Traceback" not in json.dumps(answer)


def test_the_interface_is_described(url: str) -> None:
    status, text = ask(f"{url}/docs.json")
    document = json.loads(text)
    assert status == 200
    assert {"/rerank", "/v1/rerank", "/search", "/livez", "/metrics", "/info"} <= set(document["paths"])
    assert {"200", "400", "415", "429"} <= set(document["paths"]["/rerank"]["post"]["responses"])


def test_a_path_that_is_none_leaves_nothing_behind(url: str) -> None:
    assert ask(f"{url}/absent-and-no-figure")[0] == 404
    assert ask(f"{url}/static_content/absent-and-no-figure")[0] == 404
    assert ask(f"{url}/static_content/index.css")[0] == 200
    figures = ask(f"{url}/metrics")[1]
    assert 'endpoint="/static_content/index.css"' in figures
    assert "absent-and-no-figure" not in figures


@pytest.mark.parametrize("content_type", ["application/vnd.bentoml+pickle", "multipart/form-data", "text/plain"])
def test_only_json_is_taken(url: str, content_type: str) -> None:
    request = urllib.request.Request(f"{url}/rerank", b"{}", {"Content-Type": content_type})
    with pytest.raises(urllib.error.HTTPError, match="415: Unsupported Media Type") as error:
        urllib.request.urlopen(request, timeout=30)
    with error.value as answer:
        assert json.load(answer)["error"] == "Unsupported Media Type"


def test_a_bento_moves_to_another_store_as_a_file(bento: BentoInfo, home: Path, tmp_path: Path) -> None:
    archive, other = tmp_path / "ranker.tar", tmp_path / "bentoml"
    export_bento(bento, archive, home)
    (other / ".neuroranker-killed").mkdir(parents=True)
    os.utime(other / ".neuroranker-killed", (0, 0))
    assert import_bento(archive, bento.tag, other)
    assert not import_bento(archive, bento.tag, other), "it is there already"
    assert [path.name for path in (other / "bentos" / "ranker").iterdir()] == [bento.path.name], "and nothing else"
    assert not [path for path in other.iterdir() if path.name.startswith(".neuroranker")]
    assert digest_files(other / "bentos" / bento.tag.replace(":", "/")) == digest_files(bento.path)


def test_an_older_bento_can_be_the_latest(bento: BentoInfo, home: Path, tmp_path: Path) -> None:
    """As BentoML itself sees it, which would take the newest."""
    other = tmp_path / "bentoml"
    shutil.copytree(home / "bentos" / "ranker", other / "bentos" / "ranker")
    newer = other / "bentos" / "ranker" / "newer"
    shutil.copytree(bento.path, newer)
    about = yaml.safe_load((newer / "bento.yaml").read_text())
    later = datetime.fromisoformat(about["creation_time"]) + timedelta(days=1)
    about |= {"version": "newer", "creation_time": later.isoformat()}
    (newer / "bento.yaml").write_text(yaml.safe_dump(about))
    (newer.parent / "latest").unlink()

    def resolved() -> str:
        command = [sys.executable, "-m", "bentoml", "get", "ranker:latest", "-o", "json"]
        environment = {**os.environ, "BENTOML_HOME": str(other)}
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return f"ranker:{json.loads(found.stdout)['version']}"

    assert latest_tag("ranker", other) is None
    assert resolved() == latest_tag("ranker", other) == "ranker:newer"
    make_latest(bento.tag, other)
    assert resolved() == latest_tag("ranker", other) == bento.tag
    shutil.rmtree(other / "bentos" / "ranker" / bento.path.name)
    assert latest_tag("ranker", other) is None, "it names nothing that is there"


def test_a_new_model_is_served_and_a_bad_one_is_not(
    bento: BentoInfo, home: Path, int8_dir: Path, onnx_dir: Path, tmp_path: Path
) -> None:
    for name, source in (("int8", int8_dir), ("float32", onnx_dir)):
        shutil.copytree(source, tmp_path / name)
    shutil.copytree(int8_dir, tmp_path / "cut")
    os.truncate(tmp_path / "cut" / "model.onnx", 1000)
    current = tmp_path / "current"

    def point_to(name: str) -> None:
        (tmp_path / "new").symlink_to(tmp_path / name)
        os.replace(tmp_path / "new", current)

    def info() -> Any:
        return json.loads(ask(f"{url}/info")[1])

    def wait_for(state: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not state():
            assert time.monotonic() < deadline, info()
            time.sleep(0.05)

    question = {"query": QUERY, "texts": TEXTS, "raw_scores": True}
    point_to("int8")
    with serve_bento(bento.tag, home, {"STUDENT_ONNX": str(current), "NEURORANKER_RELOAD_SECONDS": "0.1"}) as url:
        first = ask(f"{url}/rerank", question)
        point_to("cut")
        wait_for(lambda: info()["reload_failure"] is not None)
        assert "model.onnx" in info()["reload_failure"]
        assert ask(f"{url}/rerank", question) == first
        point_to("float32")
        wait_for(lambda: info()["reload_failure"] is None)
        assert info()["model"]["precision"] == "float32"
        status, text = ask(f"{url}/rerank", question)
        assert status == 200
        with closing(Reranker(OnnxEncoder(onnx_dir))) as reranker:
            expected = [(r.index, r.score) for r in reranker.rerank(QUERY, TEXTS).results]
        assert [(item["index"], item["score"]) for item in json.loads(text)] == expected
        assert "neuroranker_texts_total 6.0" in ask(f"{url}/metrics")[1]
        assert post(f"{url}/v1/rerank", {"query": QUERY, "documents": TEXTS})[1]["model"] == "current"
        status, refused = post(f"{url}/rerank", {**question, "first_stage_scores": [9.5, 3]})
        assert (status, info()["model"]["bm25_weight"]) == (400, None)
        assert refused["detail"].startswith("first_stage_scores: no weight of BM25's score was chosen for this model")


def test_environment_sets_key_concurrency_and_deadline(bento: BentoInfo, home: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("correct-horse\n")
    environment = {
        "NEURORANKER_API_KEY_FILE": str(tmp_path / "key"),
        "NEURORANKER_MAX_CONCURRENCY": "1",
        "NEURORANKER_MAX_QUEUE": "0",
        "NEURORANKER_TIMEOUT_SECONDS": "0.1",
        "NEURORANKER_CACHE_MB": "0",
    }
    long = {"query": QUERY, "texts": [f"{i} " + "word " * 250 for i in range(100)]}
    with serve_bento(bento.tag, home, environment) as address, ThreadPoolExecutor() as pool:
        assert ask(f"{address}/livez")[0] == 200
        assert [ask(f"{address}{path}")[0] for path in ("/info", "/metrics", "/schema.json")] == [401] * 3
        assert ask(f"{address}/rerank", long)[0] == 401
        assert json.loads(ask(f"{address}/info", key="correct-horse")[1])["limits"]["concurrency"] == 1
        answers = list(pool.map(lambda _: ask(f"{address}/rerank", long, "correct-horse"), range(2)))
        assert sorted(status for status, _ in answers) == [429, 504]
        assert all(sorted(json.loads(text)) == ["detail", "error"] for _, text in answers)


def test_sigterm_under_load_loses_no_request(bento: BentoInfo, home: Path) -> None:
    """Half of the clients keep their connections, and half make a new one for each request."""
    answered, ended = [], []

    def post_until_refused(address: str, thread: int) -> None:
        connection = HTTPConnection(urlsplit(address).netloc, timeout=30)
        try:
            for i in range(100_000):
                body = json.dumps({"query": f"{thread} {i}", "texts": [f"{thread} {i} {j} river" for j in range(20)]})
                connection.request("POST", "/rerank", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                answered.append((response.status, len(json.load(response))))
                if thread % 2:
                    connection.close()
        except OSError as error:
            ended.append(type(error))
        finally:
            connection.close()

    with serve_bento(bento.tag, home) as address:
        threads = [threading.Thread(target=post_until_refused, args=(address, thread)) for thread in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        os.kill(server_process(address), signal.SIGTERM)
        before = len(answered)
        for thread in threads:
            thread.join()
    assert set(answered) == {(200, 20)}
    assert len(answered) >= before >= 8
    assert set(ended) == {ConnectionRefusedError}, "a connection was accepted, and then not answered"


def server_process(address: str) -> int:
    """The process id of the ``bentoml serve`` that this process started for ``address``."""
    port = str(urlsplit(address).port)
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        command = file.read_text().split("\0")
        if "bentoml" in command and "serve" in command and port in command:
            return int(file.parent.name)
    raise AssertionError(f"no bentoml serve for {address}")


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
