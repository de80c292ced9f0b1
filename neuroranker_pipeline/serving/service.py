"""The BentoML service. In a Bento this file is ``service.py``, beside the folder ``model``."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import uuid
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import bentoml
from bentoml.exceptions import BentoMLConfigException
from prometheus_client import Counter, Gauge, Histogram
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from neuroranker_pipeline.errors import BadInput, NotReady
from neuroranker_pipeline.retrieval.jvm import check_java
from neuroranker_pipeline.serving import connections, http, schemas
from neuroranker_pipeline.serving.cross_encoder import open_model, open_reranker
from neuroranker_pipeline.serving.digests import check_digests
from neuroranker_pipeline.serving.engine import Engine, Ranking, Reranker
from neuroranker_pipeline.serving.http import refusal
from neuroranker_pipeline.serving.interpolation import bm25_weight
from neuroranker_pipeline.serving.onnx_model import BI_ENCODER, SETTINGS_FILE, read_json
from neuroranker_pipeline.serving.reload import Reloader
from neuroranker_pipeline.serving.search import CollectionSearch, check_collection

HERE = Path(__file__).resolve().parent
PACKAGED_MODEL = HERE / "model"
COLLECTION = HERE / "collection"
REPORT = HERE / "report"
REPORT_FILE = "report.json"

logging.getLogger("bentoml._internal.server.http_app").addFilter(http.WithoutRefusals())


def model_path() -> Path:
    """The model to serve: the environment's ``STUDENT_ONNX``, else the one packaged beside this file."""
    return Path(os.environ.get("STUDENT_ONNX") or PACKAGED_MODEL)


def has_collection() -> bool:
    """Whether there is a collection to search: its vectors are the packaged model's, and no other's."""
    return COLLECTION.is_dir() and model_path() == PACKAGED_MODEL


def settings() -> http.Settings:
    """The environment's settings; here BentoML prints one line for wrong ones and exits."""
    try:
        return http.Settings.from_environment()
    except BadInput as error:
        raise BentoMLConfigException(f"cannot serve: {error}") from None


@bentoml.service(
    name="ranker",
    http={"host": "127.0.0.1"},  # whoever wants the network to reach it says so: --host 0.0.0.0
    # Our own bounds answer first, as JSON; BentoML's timeout ends what they should have.
    traffic={"timeout": settings().request_seconds + 5},
    threads=http.BOUNDS["max_concurrency"][2],  # as many as the concurrency that is let through
)
class Ranker:
    """Re-ranks passages for a query: by the cosine of their embeddings, or by a cross-encoder's logit."""

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        """Refuse to start with what cannot be served: here BentoML prints one line and exits."""
        path = model_path().absolute()  # not resolved: a link that is moved to another model is a new model
        try:
            http.api_key()
            if path == PACKAGED_MODEL:
                check_digests(PACKAGED_MODEL, required=True)
            encoder = open_model(path)
            bm25_weight(encoder.model_file.parent)
            if has_collection():
                check_digests(COLLECTION, required=True)
                check_collection(COLLECTION, encoder.model_file)
                check_java()
            reports()
        except (BadInput, NotReady) as error:
            raise BentoMLConfigException(f"cannot serve: {error}") from None
        # The workers run in another folder, where a relative path would name another file.
        if "STUDENT_ONNX" in os.environ:
            os.environ["STUDENT_ONNX"] = str(path)
        if http.KEY_FILE in os.environ:
            os.environ[http.KEY_FILE] = str(Path(os.environ[http.KEY_FILE]).resolve())

    def __init__(self) -> None:
        path, seconds = model_path(), settings().reload_seconds
        self.packaged = path == PACKAGED_MODEL
        self.metrics = metrics()
        self.collection: CollectionSearch | None = None
        self.take_over(path)
        if has_collection() and isinstance(self.reranker, Reranker):
            self.collection = CollectionSearch(COLLECTION, self.reranker)
        self.reloader = Reloader(path, self.take_over, seconds) if seconds and not self.packaged else None
        if self.reloader is not None:
            self.reloader.start()

    def take_over(self, path: Path) -> None:
        """Serve the model at ``path`` from the next request on; raises ``BadInput``, and then changes nothing."""
        reranker = open_reranker(path, settings().cache_mb * 2**20)
        if not reranker.encoder.works():
            raise BadInput(f"{path}: its answers are not finite numbers; export the model again")
        # Requests that have begun hold the one before, which ends with the last of them.
        self.reranker = reranker
        self.model = reranker.encoder.model_file.parent
        self.model_name = "ranker" if self.packaged else self.model.name

    def __is_ready__(self) -> bool:
        # Not through the queue: a service under load is ready all the same.
        return self.reranker.encoder.works()

    @bentoml.on_shutdown
    def close(self) -> None:
        """End the threads; requests that were accepted have been answered."""
        if self.reloader is not None:
            self.reloader.close()
        if self.collection is not None:
            self.collection.close()
        self.reranker.close()

    @bentoml.api(route="/rerank")
    def rerank(self, request: schemas.RerankRequest, /) -> list[schemas.RankedText]:
        """Order texts by relevance to a query, best first.

        A score is the logistic function of the cosine (of the logit, with a cross-encoder; of the interpolated score, with
        ``first_stage_scores``), as text-embeddings-inference does it, or with ``raw_scores`` that itself; both give the same
        order.
        """
        if not request.truncate and (cut := self._cut(request)):
            limit = self.reranker.encoder.max_length
            return refusal(400, f"longer than {limit} tokens with truncate false: {', '.join(cut)}")  # type: ignore[return-value]
        try:
            ranking = self._rank(request, request.texts)
        except BadInput as error:
            return refusal(400, str(error))  # type: ignore[return-value]
        answer: list[schemas.RankedText] = []
        for ranked in ranking.results[: request.top_n]:
            score = ranked.score if request.raw_scores else logistic(ranked.score)
            item: schemas.RankedText = {"index": ranked.index, "score": score}
            if request.return_text:
                item["text"] = request.texts[ranked.index]
            if ranked.truncated:
                item["truncated"] = True
            answer.append(item)
        return answer

    @bentoml.api(route="/v1/rerank")
    def rerank_v1(self, request: schemas.RerankV1Request, /) -> schemas.RerankV1Response:
        """Order documents by relevance to a query, best first; scores are as those of ``/rerank``."""
        return self._rerank_documents(request)

    @bentoml.api(route="/v2/rerank")
    def rerank_v2(self, request: schemas.RerankV1Request, /) -> schemas.RerankV1Response:
        """The same as ``/v1/rerank``, where Cohere's ``ClientV2`` asks."""
        return self._rerank_documents(request)

    def _rerank_documents(self, request: schemas.RerankV1Request) -> schemas.RerankV1Response:
        texts = request.texts()
        try:
            ranking = self._rank(request, texts)
        except BadInput as error:
            return refusal(400, str(error))  # type: ignore[return-value]
        results: list[schemas.RankedDocument] = []
        for ranked in ranking.results[: request.top_n]:
            item: schemas.RankedDocument = {"index": ranked.index, "relevance_score": logistic(ranked.score)}
            if request.return_documents:
                item["document"] = {"text": texts[ranked.index]}
            if ranked.truncated:
                item["truncated"] = True
            results.append(item)
        return {
            "id": str(uuid.uuid4()),
            "model": self.model_name,
            "results": results,
            "usage": {"total_tokens": ranking.tokens},
        }

    @bentoml.api(route="/search")
    def search(self, request: schemas.SearchRequest, /) -> schemas.SearchResponse:
        """Search the packaged collection: BM25's candidates, ordered by the final score, which is the cosine of their
        embedding and as much of BM25's score as the model's weight says."""
        if self.collection is None:
            return refusal(404, "no collection is served with this model; POST /rerank ranks your texts")  # type: ignore[return-value]
        start = time.perf_counter()
        found = self.collection.search(request.query, request.k)
        self.metrics.follow(self.reranker)
        total = (time.perf_counter() - start) * 1000
        return {
            "query": request.query,
            "hits": [asdict(hit) for hit in found.hits],  # type: ignore[misc]
            "candidates": found.candidates,
            "bm25_weight": self.collection.bm25_weight,
            "milliseconds": {**found.milliseconds, "total": total},  # type: ignore[typeddict-item]
        }

    def _rank(self, request: schemas.RerankRequest | schemas.RerankV1Request, texts: list[str]) -> Ranking:
        """Raises ``BadInput`` for scores of a first stage that the model has no weight for."""
        reranker = self.reranker
        self.metrics.follow(reranker)  # before, too: then the queue is the one that this request found
        ranking = reranker.rerank(request.query, texts, request.long, request.first_stage_scores)
        self.metrics.texts.observe(len(texts))
        self.metrics.tokens.observe(ranking.tokens)
        self.metrics.follow(reranker)
        return ranking

    def _cut(self, request: schemas.RerankRequest) -> list[str]:
        """Names of what would be cut; windows read the whole of a text, but not of the query."""
        query, texts = self.reranker.cut(request.query, request.texts, request.long)
        return [*(["query"] if query else []), *(f"texts[{i}]" for i in texts)]

    def about(self) -> dict[str, Any]:
        """The answer of ``GET /info``. The packaged report speaks of the packaged model alone."""
        bounds, encoder = settings(), self.reranker.encoder
        exported = read_json(self.model / SETTINGS_FILE)
        data, measures = reports() if self.packaged else (None, {})
        return {
            "name": self.model_name,
            "version": bentoml.server_context.bento_version,
            "model": {
                "kind": exported.get("kind", BI_ENCODER),
                **{key: exported.get(key) for key in ("source", "precision", "pooling")},
                "dimension": getattr(encoder, "dimension", None),  # a cross-encoder has no vectors
                "max_length": encoder.max_length,
                "bm25_weight": self.reranker.bm25_weight,  # of first_stage_scores and of /search; None: not chosen
            },
            "data": data,
            "measures": measures,
            "limits": {
                "texts": schemas.MAX_TEXTS,
                "characters": schemas.MAX_CHARACTERS,
                "body_bytes": schemas.MAX_BODY_BYTES,
                "concurrency": bounds.max_concurrency,
                "queue": bounds.max_queue,
                "timeout_seconds": bounds.timeout_seconds,
            },
            "search": None if self.collection is None else {"passages": self.collection.passages},
            "reload_failure": self.reloader.failure if self.reloader is not None else None,
        }


def reports() -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """What the packaged reports say: of the data, and {split: {queries, primary, final, rankers: {name: measures}}}.

    (None, {}) without a report; raises ``BadInput`` for a file that is none.
    """
    data, measures = None, {}
    for file in sorted(REPORT.glob(f"*/{REPORT_FILE}")):
        report = read_json(file)
        data = data or report.get("dataset")
        try:
            rankers = {row["ranker"]: row["measures"] for row in report["rankers"]}
            measures[file.parent.name] = {
                **{key: report[key] for key in ("queries", "primary", "final")},
                "rankers": rankers,
            }
        except (KeyError, TypeError) as error:
            raise BadInput(f"{file}: not an evaluation report ({error!r}); build the Bento again") from error
    return data, measures


class Metrics:
    """Figures on BentoML's ``/metrics``, which adds up its workers' files: ``PROMETHEUS_MULTIPROC_DIR`` is set there."""

    COUNTED = ("texts", "tokens", "cache_hits", "cache_misses")
    PRESENT = ("queued", "cache_entries", "cache_bytes")

    def __init__(self) -> None:
        powers = [4**power for power in range(10)]
        self.texts = Histogram("neuroranker_request_texts", "Texts of a request to rank.", buckets=powers)
        self.tokens = Histogram("neuroranker_request_tokens", "Tokens read for a request to rank.", buckets=powers)
        self._counters = {name: Counter(f"neuroranker_{name}", f"{name}, since the start.") for name in self.COUNTED}
        self._gauges = {
            name: Gauge(f"neuroranker_{name}", f"{name}, now.", multiprocess_mode="livesum") for name in self.PRESENT
        }
        self._counted: WeakKeyDictionary[Engine, dict[str, int]] = WeakKeyDictionary()  # of each model that served
        self._lock = threading.Lock()

    def follow(self, engine: Engine) -> None:
        """Take over what ``engine.stats()`` says."""
        with self._lock:  # read within the lock, so that the last to write has read last
            now, counted = engine.stats(), self._counted.setdefault(engine, dict.fromkeys(self.COUNTED, 0))
            for name, counter in self._counters.items():
                counter.inc(now[name] - counted[name])
                counted[name] = now[name]
            for name, gauge in self._gauges.items():
                gauge.set(now[name])


@cache
def metrics() -> Metrics:
    """The process's figures: Prometheus takes a name once."""
    return Metrics()


async def info(request: Request) -> JSONResponse:
    """``GET /info``: what is served, how good it was found to be, and within which limits."""
    return JSONResponse(bentoml.get_current_service().about())


async def docs(request: Request) -> JSONResponse:
    """``GET /docs.json``: the OpenAPI document, in place of BentoML's."""
    return JSONResponse(schemas.describe(Ranker.openapi_spec.asdict()))  # type: ignore[attr-defined]


def guarded(app: ASGIApp) -> ASGIApp:
    """The service behind its bounds, the outermost last."""
    bounds, key = settings(), http.api_key()
    app = http.Deadline(app, bounds.timeout_seconds)
    app = http.BoundedConcurrency(app, bounds.max_concurrency, bounds.max_queue, bounds.timeout_seconds)
    app = http.JsonBodies(app)
    app = http.BoundedBody(app, schemas.MAX_BODY_BYTES, bounds.body_seconds)
    app = http.BearerKey(app, key) if key else app
    app = connections.Drain(http.JsonErrors(app))
    return connections.BoundedConnections(app, bounds.body_seconds, bounds.request_seconds + 10, ["/docs"])


# mypy does not see that the decorator made the class a bentoml Service.
Ranker.mount_asgi_app(Starlette(routes=[Route("/info", info), Route("/docs.json", docs)]))  # type: ignore[attr-defined]
Ranker.add_asgi_middleware(guarded)  # type: ignore[attr-defined]
if has_collection():
    from neuroranker_pipeline.serving.page import SearchPage

    Ranker.add_asgi_middleware(SearchPage)  # type: ignore[attr-defined]


def logistic(score: float) -> float:
    """1 / (1 + e^-score), of any score."""
    small = math.exp(-abs(score))
    return (1 if score >= 0 else small) / (1 + small)
