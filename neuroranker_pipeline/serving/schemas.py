"""Requests and responses of the service, with the bounds that keep one request from exhausting it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

# pydantic reads typing.TypedDict only from Python 3.12 on.
from typing_extensions import TypedDict

# A first stage hands over up to 1,000 candidates; a passage beyond 20,000 characters is a document to split.
MAX_TEXTS = 1000
MAX_CHARACTERS = 20_000
MAX_BODY_BYTES = 16 * 2**20
MAX_HITS = 100  # of a search: it looks at no more candidates


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


Text = Annotated[str, Field(max_length=MAX_CHARACTERS), AfterValidator(_not_blank)]
Long = Annotated[
    Literal["truncate", "windows"],
    Field(description="Texts beyond the model's length: cut them, or score windows of them and take the best."),
]


class RerankRequest(BaseModel):
    """Body of ``POST /rerank``, in the shape of Hugging Face text-embeddings-inference."""

    model_config = ConfigDict(extra="forbid")

    query: Text
    texts: list[Text] = Field(min_length=1, max_length=MAX_TEXTS)
    raw_scores: bool = Field(False, description="Cosines instead of their logistic function.")
    return_text: bool = Field(False, description="Give each text back beside its score.")
    truncate: bool = Field(True, description="Cut texts to the model's length; if false, refuse longer ones.")
    long: Long = "truncate"


class RankedText(TypedDict):
    """One element of the answer of ``POST /rerank``."""

    index: int
    score: float
    text: NotRequired[str]
    truncated: NotRequired[bool]  # only when its end was not read: text-embeddings-inference has no such field


class Document(BaseModel):
    """A document of ``POST /v1/rerank``: a bare string or ``{text}``, whose other fields are ignored."""

    # In place of a union of the two, whose errors would name neither the document nor what is wrong with it.
    model_config = ConfigDict(json_schema_extra={"description": "A string, or an object with a text."})

    text: Text

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value


class RerankV1Request(BaseModel):
    """Body of ``POST /v1/rerank``, in the shape of Cohere and Jina; fields of theirs that we lack are ignored.

    ``model`` is taken for compatibility: the service has one model, and names it in its answer.
    """

    model: str | None = Field(None, max_length=256)
    query: Text
    documents: list[Document] = Field(min_length=1, max_length=MAX_TEXTS)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False
    long: Long = "truncate"

    def texts(self) -> list[str]:
        """The documents' texts, in order."""
        return [document.text for document in self.documents]


class ReturnedDocument(TypedDict):
    """A document given back."""

    text: str


class RankedDocument(TypedDict):
    """One result of ``POST /v1/rerank``."""

    index: int
    relevance_score: float
    document: NotRequired[ReturnedDocument]
    truncated: NotRequired[bool]  # only when its end was not read: Cohere and Jina have no such field


class Usage(TypedDict):
    """Tokens that the model read."""

    total_tokens: int


class RerankV1Response(TypedDict):
    """Answer of ``POST /v1/rerank``."""

    id: str
    model: str
    results: list[RankedDocument]
    usage: Usage


class SearchRequest(BaseModel):
    """Body of ``POST /search``."""

    model_config = ConfigDict(extra="forbid")

    query: Text
    k: int = Field(10, ge=1, le=MAX_HITS, description="Hits to give.")


class SearchHit(TypedDict):
    """A passage of the collection; ``score`` is the cosine, ranks count from 1."""

    pid: str
    text: str
    rank: int
    score: float
    bm25_rank: int
    bm25_score: float


class Milliseconds(TypedDict):
    """Wall time of the parts of a search."""

    bm25: float
    encode: float
    rank: float
    total: float


class SearchResponse(TypedDict):
    """Answer of ``POST /search``; ``candidates`` is the number of passages that BM25 found."""

    query: str
    hits: list[SearchHit]
    candidates: int
    milliseconds: Milliseconds
