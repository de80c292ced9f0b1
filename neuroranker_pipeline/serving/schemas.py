"""Requests and responses of the service, with the bounds that keep one request from exhausting it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationInfo,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema

# pydantic reads typing.TypedDict only from Python 3.12 on.
from typing_extensions import TypedDict

# A first stage hands over up to 1,000 candidates; a passage beyond 20,000 characters is a document to split.
MAX_TEXTS = 1000
MAX_CHARACTERS = 20_000
MAX_BODY_BYTES = 16 * 2**20
MAX_HITS = 100  # of a search: it looks at no more candidates
MAX_FIELDS = 100  # of an object whose every unknown field would be an error to report


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


# The pattern is for the document that describes the interface: pydantic would say less clearly what is wrong.
Text = Annotated[
    str, Field(max_length=MAX_CHARACTERS, json_schema_extra={"pattern": r"\S"}), AfterValidator(_not_blank)
]
Long = Annotated[
    Literal["truncate", "windows"],
    Field(description="Texts beyond the model's length: cut them, or score windows of them and take the best."),
]


Direction = Annotated[
    Literal["right"],
    BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),  # most clients write Right
    Field(description="A text is cut at its end."),
]


def _one_each(scores: list[float], info: ValidationInfo) -> list[float]:
    texts = info.data.get("texts", info.data.get("documents"))
    if texts is not None and len(scores) != len(texts):  # None: the texts are wrong, which is an error of its own
        raise ValueError(f"must hold one score for each of the {len(texts)} texts, holds {len(scores)}")
    return scores


# After the texts in a request, whose number it is held to.
FirstStageScores = Annotated[
    list[Annotated[float, Field(allow_inf_nan=False)]],
    Field(max_length=MAX_TEXTS),
    AfterValidator(_one_each),
]
FIRST_STAGE = (
    "BM25's score of each text, in their order: the answer's score is then the model's, standardized over these texts, plus "
    "the model's weight times BM25's, standardized likewise. Give all candidates of the query at once."
)


class Closed(BaseModel):
    """A request that takes no fields but its own."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_FIELDS:  # else a body of these is an answer many times as long
            raise ValueError(f"has {len(value)} fields, more than {MAX_FIELDS}")
        return value


class RerankRequest(Closed):
    """Body of ``POST /rerank``, in the shape of Hugging Face text-embeddings-inference."""

    query: Text
    texts: list[Text] = Field(min_length=1, max_length=MAX_TEXTS)
    raw_scores: bool = Field(False, description="The scores themselves (cosines) instead of their logistic function.")
    return_text: bool = Field(False, description="Give each text back beside its score.")
    truncate: bool = Field(True, description="Cut texts to the model's length; if false, refuse longer ones.")
    truncation_direction: Direction = "right"
    top_n: int | None = Field(None, ge=1, description="Give only so many of the best, as LiteLLM asks.")
    long: Long = "truncate"
    first_stage_scores: FirstStageScores | None = Field(None, description=FIRST_STAGE)


class RankedText(TypedDict):
    """One element of the answer of ``POST /rerank``."""

    index: int
    score: float
    text: NotRequired[str]
    truncated: NotRequired[bool]  # only when its end was not read: text-embeddings-inference has no such field


def _or_string(schema: dict[str, Any]) -> None:
    """Turn the schema of an object with a text into that of such an object or the bare text."""
    text, whole = schema["properties"]["text"], schema.copy()
    schema.clear()
    schema.update(title=whole.pop("title"), anyOf=[text, whole])


class Document(BaseModel):
    """A document of ``POST /v1/rerank``: a bare string or ``{text}``, whose other fields are ignored."""

    # In place of a union of the two, whose errors would name neither the document nor what is wrong with it.
    model_config = ConfigDict(strict=True, json_schema_extra=lambda schema: _or_string(schema))

    text: Text

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value


class RerankV1Request(BaseModel):
    """Body of ``POST /v1/rerank`` and ``/v2/rerank``, in the shape of Cohere and Jina.

    Fields of theirs that we lack are ignored. ``model`` is taken for compatibility: the service has one model, and names
    it in its answer.
    """

    model_config = ConfigDict(strict=True)

    model: str | None = Field(None, max_length=256)
    query: Text
    documents: list[Document] = Field(min_length=1, max_length=MAX_TEXTS)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False
    long: Long = "truncate"
    first_stage_scores: FirstStageScores | None = Field(None, description=FIRST_STAGE)

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


class SearchRequest(Closed):
    """Body of ``POST /search``."""

    query: Text
    k: int = Field(10, ge=1, le=MAX_HITS, description="Hits to give.")


class SearchHit(TypedDict):
    """A passage of the collection. ``rank`` is the order by ``final_score``, ``score`` is the cosine; ranks count from 1."""

    pid: str
    text: str
    rank: int
    final_score: float
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
    """Answer of ``POST /search``; ``candidates`` is the number of passages that BM25 found.

    With a ``bm25_weight`` of 0 a hit's ``final_score`` is the cosine, else the cosine plus the weight times BM25's score,
    each standardized over the candidates.
    """

    query: str
    hits: list[SearchHit]
    candidates: int
    bm25_weight: float
    milliseconds: Milliseconds


class ErrorResponse(TypedDict):
    """Every answer of status 400 and above."""

    error: str
    detail: Any


ENDPOINTS: dict[str, tuple[Any, Any]] = {
    "/rerank": (RerankRequest, list[RankedText]),
    "/v1/rerank": (RerankV1Request, RerankV1Response),
    "/v2/rerank": (RerankV1Request, RerankV1Response),
    "/search": (SearchRequest, SearchResponse),
}
ERRORS = {
    400: "The request is wrong; the error names the field.",
    401: "The key is missing or wrong.",
    404: "There is nothing here: /search needs a collection.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "Too many requests are being worked on; Retry-After says when to try again.",
    500: "An unexpected error, which the server's log explains.",
    503: "Too much is being received, or the service is stopping; Retry-After says when to try again.",
    504: "No answer in time; Retry-After says when to try again.",
}


class _OpenApi30(GenerateJsonSchema):
    """JSON Schema as OpenAPI 3.0 has it, the version of BentoML's document."""

    def nullable_schema(self, schema: Any) -> dict[str, Any]:
        return {**self.generate_inner(schema["schema"]), "nullable": True}


def describe(document: dict[str, Any]) -> dict[str, Any]:
    """BentoML's OpenAPI document with what it leaves out: null, bare strings as documents, and our errors."""
    adapters: list[Any] = [("error", "serialization", TypeAdapter(ErrorResponse))]
    for path, (request, response) in ENDPOINTS.items():
        adapters += [(path, "validation", TypeAdapter(request)), (path, "serialization", TypeAdapter(response))]
    template = "#/components/schemas/{model}"
    schemas, definitions = TypeAdapter.json_schemas(adapters, ref_template=template, schema_generator=_OpenApi30)

    def content(name: str, mode: Any) -> dict[str, Any]:
        return {"content": {"application/json": {"schema": schemas[name, mode]}}}

    error = content("error", "serialization")
    errors = {str(status): {"description": text, **error} for status, text in ERRORS.items()}
    for path in ENDPOINTS:
        operation = document["paths"][path]["post"]
        operation["requestBody"] = {"required": True, **content(path, "validation")}
        operation["responses"] = {"200": {"description": "The answer.", **content(path, "serialization")}, **errors}
    anything = {
        "200": {"description": "What is served.", "content": {"application/json": {"schema": {"type": "object"}}}}
    }
    document["paths"]["/info"] = {"get": {"responses": {**anything, "401": errors["401"]}}}
    return {**document, "components": {"schemas": definitions["$defs"]}}
