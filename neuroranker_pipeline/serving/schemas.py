"""Requests and responses of the service, with the bounds that keep one request from exhausting it."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# pydantic reads typing.TypedDict only from Python 3.12 on.
from typing_extensions import NotRequired, TypedDict

# A first stage hands over up to 1,000 candidates; a passage beyond 20,000 characters is a document to split.
MAX_TEXTS = 1000
MAX_CHARACTERS = 20_000
MAX_BODY_BYTES = 16 * 2**20


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


Text = Annotated[str, Field(max_length=MAX_CHARACTERS), AfterValidator(_not_blank)]


class RerankRequest(BaseModel):
    """Body of ``POST /rerank``, in the shape of Hugging Face text-embeddings-inference."""

    model_config = ConfigDict(extra="forbid")

    query: Text
    texts: list[Text] = Field(min_length=1, max_length=MAX_TEXTS)
    raw_scores: bool = Field(False, description="Cosines instead of their logistic function.")
    return_text: bool = Field(False, description="Give each text back beside its score.")
    truncate: bool = Field(True, description="Cut texts to the model's length; if false, refuse longer ones.")


class RankedText(TypedDict):
    """One element of the answer of ``POST /rerank``."""

    index: int
    score: float
    text: NotRequired[str]


class Document(BaseModel):
    """A document of ``POST /v1/rerank`` that is not a bare string; other fields are ignored."""

    text: Text


class RerankV1Request(BaseModel):
    """Body of ``POST /v1/rerank``, in the shape of Cohere and Jina; fields of theirs that we lack are ignored.

    ``model`` is taken for compatibility: the service has one model, and names it in its answer.
    """

    model: str | None = Field(None, max_length=256)
    query: Text
    documents: list[Text | Document] = Field(min_length=1, max_length=MAX_TEXTS)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False

    def texts(self) -> list[str]:
        """The documents' texts, in order."""
        return [item.text if isinstance(item, Document) else item for item in self.documents]


class ReturnedDocument(TypedDict):
    """A document given back."""

    text: str


class RankedDocument(TypedDict):
    """One result of ``POST /v1/rerank``."""

    index: int
    relevance_score: float
    document: NotRequired[ReturnedDocument]


class Usage(TypedDict):
    """Tokens that the model read."""

    total_tokens: int


class RerankV1Response(TypedDict):
    """Answer of ``POST /v1/rerank``."""

    id: str
    model: str
    results: list[RankedDocument]
    usage: Usage
