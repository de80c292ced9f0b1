"""Requests that other projects' clients send, recorded from them and sent again: do they find what they read?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from neuroranker_pipeline.serving.packaging import BentoInfo, serve_bento
from neuroranker_pipeline_tests.export.models import QUERY, TEXTS

KEY = "correct-horse"
DOCUMENTS = TEXTS[::-1]  # so that the best is not the first
JINA = "jina-reranker-v1-base-en"

HTTPX = {"Accept": "*/*", "Accept-Encoding": "gzip, deflate, zstd", "User-Agent": "python-httpx/0.28.1"}
JINA_HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "Content-type": "application/json"}
LITELLM = {"Accept-Encoding": "gzip, deflate, zstd", "User-Agent": "litellm/1.110.2", "accept": "application/json"}
COHERE = {
    "Accept": "*/*",
    "Accept-Encoding": "gzip, deflate",
    "User-Agent": "cohere/7.3.1",
    "X-Fern-Language": "Python",
    "X-Fern-SDK-Name": "cohere",
    "X-Fern-SDK-Version": "7.3.1",
}

Read = Callable[[Any], list[tuple[int, float]]]


def tei(answer: Any) -> list[tuple[int, float]]:
    """A bare list."""
    return [(item["index"], item["score"]) for item in answer]


def tei_with_texts(answer: Any) -> list[tuple[int, float]]:
    assert [item["text"] for item in answer] == [DOCUMENTS[item["index"]] for item in answer]
    return tei(answer)


def cohere(answer: Any) -> list[tuple[int, float]]:
    """An object of results; ``meta`` may be missing."""
    assert isinstance(answer["id"], str)
    return [(result["index"], result["relevance_score"]) for result in answer["results"]]


def cohere_with_documents(answer: Any) -> list[tuple[int, float]]:
    assert all(result["document"] == {"text": DOCUMENTS[result["index"]]} for result in answer["results"])
    return cohere(answer)


def jina(answer: Any) -> list[tuple[int, float]]:
    """Cohere's shape, with the model and what was used."""
    assert isinstance(answer["model"], str)
    assert answer["usage"]["total_tokens"] > 0
    return [(result["index"], result["relevance_score"]) for result in answer["results"]]


@dataclass(frozen=True)
class Recorded:
    """A client's request for ``QUERY`` and ``DOCUMENTS``, and how it reads the answer."""

    client: str
    path: str
    read: Read
    headers: dict[str, str]
    fields: dict[str, Any] = field(default_factory=dict)
    found: int = 2

    def body(self) -> bytes:
        texts = {"texts": DOCUMENTS} if self.path == "/rerank" else {"documents": DOCUMENTS}
        return json.dumps({"query": QUERY, **texts, **self.fields}).encode()


NAMED = [{"text": text, "title": "river", "id": str(i)} for i, text in enumerate(DOCUMENTS)]
TOP = {"top_n": 1, "return_documents": True}
RECORDED = [
    Recorded("cohere Client", "/v1/rerank", cohere, COHERE, {"model": "rerank-v3.5"}),
    Recorded("cohere Client, top_n", "/v1/rerank", cohere_with_documents, COHERE, {"model": "m", **TOP}, found=1),
    Recorded("cohere Client, large top_n", "/v1/rerank", cohere, COHERE, {"top_n": 10}),
    Recorded(
        "cohere Client, objects",
        "/v1/rerank",
        cohere_with_documents,
        COHERE,
        {"documents": NAMED, "rank_fields": ["title", "text"], "return_documents": True, "max_chunks_per_doc": 10},
    ),
    Recorded("llama-index JinaRerank", "/v1/rerank", jina, JINA_HEADERS, {"model": JINA, "top_n": 2}),
    Recorded("haystack JinaRanker", "/v1/rerank", jina, JINA_HEADERS, {"model": JINA, "top_n": None}),
    Recorded("langchain JinaRerank", "/v1/rerank", jina, JINA_HEADERS, {"model": JINA, "top_n": 1}, found=1),
    Recorded("jina-cli", "/v1/rerank", jina, HTTPX, {"model": "jina-reranker-v3"}),
    Recorded("litellm jina_ai", "/v1/rerank", cohere_with_documents, LITELLM, {"model": "m", "return_documents": True}),
    Recorded("litellm hosted_vllm", "/v1/rerank", cohere_with_documents, LITELLM, {"model": "m", **TOP}, found=1),
    Recorded("llama-index TextEmbeddingInference", "/rerank", tei, HTTPX),
    Recorded("haystack HuggingFaceTEIRanker", "/rerank", tei, HTTPX, {"raw_scores": False}),
    Recorded(
        "haystack HuggingFaceTEIRanker, direction",
        "/rerank",
        tei,
        HTTPX,
        {"raw_scores": False, "truncate": True, "truncation_direction": "Right"},
    ),
    Recorded(
        "litellm huggingface",
        "/rerank",
        tei_with_texts,
        LITELLM,
        {"raw_scores": False, "truncation_direction": "Right", "top_n": 1, "return_text": True},
        found=1,
    ),
    Recorded("cohere ClientV2", "/v2/rerank", cohere, COHERE, {"model": "rerank-v3.5"}),
    Recorded("cohere ClientV2, top_n", "/v2/rerank", cohere, COHERE, {"top_n": 1, "max_tokens_per_doc": 100}, found=1),
    Recorded("litellm cohere", "/v2/rerank", cohere_with_documents, LITELLM, {"model": "m", **TOP}, found=1),
]


@pytest.fixture(scope="module")
def url(bento: BentoInfo, home: Path) -> Iterator[str]:
    with serve_bento(bento.tag, home, {"NEURORANKER_API_KEY": KEY}) as address:
        yield address


def send(url: str, recorded: Recorded, key: str = KEY, body: bytes | None = None) -> tuple[int, Any]:
    """Status and JSON of the answer."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    headers = {name.title(): value for name, value in (headers | recorded.headers).items()}
    connection = HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.request("POST", recorded.path, body or recorded.body(), headers)
        response = connection.getresponse()
        assert response.headers["Content-Type"] == "application/json"
        assert "Content-Encoding" not in response.headers
        return response.status, json.load(response)
    finally:
        connection.close()


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded.client)
def test_a_client_finds_what_it_reads(url: str, recorded: Recorded) -> None:
    status, answer = send(url, recorded)
    assert status == 200, answer
    found = recorded.read(answer)
    assert [index for index, _ in found] == [1, 0][: recorded.found]
    assert all(0 < score < 1 for _, score in found)
    assert found == sorted(found, key=lambda pair: -pair[1])


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded.client)
@pytest.mark.parametrize(("key", "query", "expected"), [("wrong", QUERY, 401), (KEY, " ", 400)])
def test_a_client_finds_what_is_wrong(url: str, recorded: Recorded, key: str, query: str, expected: int) -> None:
    """Cohere's goes by the status, Jina's show ``detail`` where there are no results, Hugging Face's show ``error``."""
    body = json.loads(recorded.body()) | {"query": query}
    status, answer = send(url, recorded, key, json.dumps(body).encode())
    assert status == expected
    assert isinstance(answer["error"], str)
    assert answer["detail"]
    assert "results" not in answer
