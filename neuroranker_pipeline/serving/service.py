"""The BentoML service. In a Bento this file is ``service.py``, beside the folder ``model``."""

from __future__ import annotations

import logging
import math
import os
import uuid
from pathlib import Path

import bentoml
import numpy as np
from bentoml.exceptions import BentoMLConfigException

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.serving import schemas
from neuroranker_pipeline.serving.engine import OnnxEncoder, Reranker, find_model
from neuroranker_pipeline.serving.http import BoundedBody, JsonErrors, WithoutRefusals, refusal

PACKAGED_MODEL = Path(__file__).resolve().parent / "model"

logging.getLogger("bentoml._internal.server.http_app").addFilter(WithoutRefusals())


def model_path() -> Path:
    """The model to serve: the environment's ``STUDENT_ONNX``, else the one packaged beside this file."""
    return Path(os.environ.get("STUDENT_ONNX") or PACKAGED_MODEL)


@bentoml.service(
    name="ranker",
    http={"host": "127.0.0.1"},  # whoever wants the network to reach it says so: --host 0.0.0.0
    traffic={"timeout": 60, "max_concurrency": 64},
)
class Ranker:
    """Re-ranks passages for a query by the cosine of their embeddings."""

    @bentoml.on_deployment
    @staticmethod
    def check_model() -> None:
        """Refuse to start with a model that cannot be served: here BentoML prints one line and exits."""
        path = model_path().resolve()
        try:
            OnnxEncoder(path)
        except BadInput as error:
            raise BentoMLConfigException(f"cannot serve the model: {error}") from None
        if path != PACKAGED_MODEL:
            # The workers run in another folder, where a relative path would name another file.
            os.environ["STUDENT_ONNX"] = str(path)

    def __init__(self) -> None:
        path = model_path()
        self.reranker = Reranker(OnnxEncoder(path))
        self.model_name = "ranker" if path == PACKAGED_MODEL else find_model(path).parent.name

    def __is_ready__(self) -> bool:
        return bool(np.isfinite(self.reranker.encoder.encode(["ready"])).all())

    @bentoml.api(route="/rerank")
    def rerank(self, request: schemas.RerankRequest, /) -> list[schemas.RankedText]:
        """Order texts by relevance to a query, best first.

        A score is the logistic function of the cosine, as text-embeddings-inference does it, or with ``raw_scores``
        the cosine itself; both give the same order.
        """
        if not request.truncate and (long := self.reranker.encoder.too_long([request.query, *request.texts])):
            names = ["query" if i == 0 else f"texts[{i - 1}]" for i in long]
            limit = self.reranker.encoder.max_length
            return refusal(400, f"longer than {limit} tokens with truncate false: {', '.join(names)}")  # type: ignore[return-value]
        answer: list[schemas.RankedText] = []
        for index, cosine in self.reranker.rerank(request.query, request.texts):
            item: schemas.RankedText = {"index": index, "score": cosine if request.raw_scores else logistic(cosine)}
            if request.return_text:
                item["text"] = request.texts[index]
            answer.append(item)
        return answer

    @bentoml.api(route="/v1/rerank")
    def rerank_v1(self, request: schemas.RerankV1Request, /) -> schemas.RerankV1Response:
        """Order documents by relevance to a query, best first; scores are the logistic function of the cosine."""
        texts = request.texts()
        query_tokens, text_tokens = self.reranker.tokenize(request.query, texts)
        results: list[schemas.RankedDocument] = []
        for index, cosine in self.reranker.rerank_tokens(query_tokens, text_tokens)[: request.top_n]:
            item: schemas.RankedDocument = {"index": index, "relevance_score": logistic(cosine)}
            if request.return_documents:
                item["document"] = {"text": texts[index]}
            results.append(item)
        return {
            "id": str(uuid.uuid4()),
            "model": self.model_name,
            "results": results,
            "usage": {"total_tokens": len(query_tokens) + sum(map(len, text_tokens))},
        }


# mypy does not see that the decorator made the class a bentoml Service.
Ranker.add_asgi_middleware(JsonErrors)  # type: ignore[attr-defined]
Ranker.add_asgi_middleware(BoundedBody, max_bytes=schemas.MAX_BODY_BYTES)  # type: ignore[attr-defined]


def logistic(score: float) -> float:
    """1 / (1 + e^-score)."""
    return 1 / (1 + math.exp(-score))
