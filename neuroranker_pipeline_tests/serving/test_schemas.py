"""What the service takes, and the bounds it sets."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from neuroranker_pipeline.serving.schemas import (
    ENDPOINTS,
    ERRORS,
    MAX_CHARACTERS,
    MAX_FIELDS,
    MAX_HITS,
    MAX_TEXTS,
    RerankRequest,
    RerankV1Request,
    SearchRequest,
    describe,
)


def test_defaults() -> None:
    request = RerankRequest.model_validate({"query": "q", "texts": ["a"]})
    assert (request.raw_scores, request.return_text, request.truncate) == (False, False, True)
    assert request.long == "truncate"
    assert RerankV1Request.model_validate({"query": "q", "documents": ["a"]}).long == "truncate"


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"texts": ["a"]}, ("query",)),
        ({"query": "q"}, ("texts",)),
        ({"query": "", "texts": ["a"]}, ("query",)),
        ({"query": " \n", "texts": ["a"]}, ("query",)),
        ({"query": "q", "texts": []}, ("texts",)),
        ({"query": "q", "texts": ["a", ""]}, ("texts", 1)),
        ({"query": "q", "texts": ["a", 3]}, ("texts", 1)),
        ({"query": "q", "texts": "a"}, ("texts",)),
        ({"query": "q", "texts": ["a"] * (MAX_TEXTS + 1)}, ("texts",)),
        ({"query": "q", "texts": ["a" * (MAX_CHARACTERS + 1)]}, ("texts", 0)),
        ({"query": "q" * (MAX_CHARACTERS + 1), "texts": ["a"]}, ("query",)),
        ({"query": "q", "texts": ["a"], "raw_score": True}, ("raw_score",)),
        ({"query": "q", "texts": ["a"], "long": "cut"}, ("long",)),
        ({"query": "q", "texts": ["a", "b"], "first_stage_scores": [1.0]}, ("first_stage_scores",)),
        ({"query": "q", "texts": ["a"], "first_stage_scores": []}, ("first_stage_scores",)),
        ({"query": "q", "texts": ["a"], "first_stage_scores": 3}, ("first_stage_scores",)),
        ({"query": "q", "texts": ["a", "b"], "first_stage_scores": [1, float("nan")]}, ("first_stage_scores", 1)),
        ({"query": "q", "texts": ["a"], "first_stage_scores": [float("-inf")]}, ("first_stage_scores", 0)),
        ({"query": "q", "texts": ["a"], "first_stage_scores": ["1"]}, ("first_stage_scores", 0)),
        ({"query": "q", "texts": ["a", ""], "first_stage_scores": [1.0]}, ("texts", 1)),
    ],
)
def test_bad_requests_name_the_field(body: dict[str, Any], where: tuple[str | int, ...]) -> None:
    with pytest.raises(ValidationError) as error:
        RerankRequest.model_validate(body)
    assert error.value.errors()[0]["loc"] == where


def test_whole_numbers_are_scores_of_a_first_stage() -> None:
    request = RerankRequest.model_validate({"query": "q", "texts": ["a", "b"], "first_stage_scores": [3, 2.5]})
    assert request.first_stage_scores == [3.0, 2.5]
    assert RerankV1Request.model_validate({"query": "q", "documents": ["a"]}).first_stage_scores is None


def test_the_bounds_themselves_are_allowed() -> None:
    RerankRequest.model_validate({"query": "q" * MAX_CHARACTERS, "texts": ["a"] * MAX_TEXTS})


def test_documents_are_strings_or_objects() -> None:
    request = RerankV1Request.model_validate({"query": "q", "documents": ["a", {"text": "b", "id": 3}], "user": "u"})
    assert request.texts() == ["a", "b"]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"query": "q", "documents": ["a", {"body": "b"}]}, ("documents", 1, "text")),
        ({"query": "q", "documents": ["a", ""]}, ("documents", 1, "text")),
        ({"query": "q", "documents": ["a"], "top_n": 0}, ("top_n",)),
        ({"query": "q", "documents": ["a"], "long": "cut"}, ("long",)),
        ({"query": "q", "documents": ["a", {"text": "b"}], "first_stage_scores": [1.0]}, ("first_stage_scores",)),
        ({"query": "q", "documents": ["a", "", "b"], "first_stage_scores": [1.0]}, ("documents", 1, "text")),
    ],
)
def test_bad_v1_requests_name_the_field(body: dict[str, Any], where: tuple[str | int, ...]) -> None:
    with pytest.raises(ValidationError) as error:
        RerankV1Request.model_validate(body)
    assert error.value.errors()[0]["loc"] == where


def test_a_search_gives_ten_hits_unless_told_otherwise() -> None:
    assert SearchRequest.model_validate({"query": "q"}).k == 10
    assert SearchRequest.model_validate({"query": "q", "k": MAX_HITS}).k == MAX_HITS


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"k": 3}, ("query",)),
        ({"query": " "}, ("query",)),
        ({"query": "q" * (MAX_CHARACTERS + 1)}, ("query",)),
        ({"query": "q", "k": 0}, ("k",)),
        ({"query": "q", "k": MAX_HITS + 1}, ("k",)),
        ({"query": "q", "k": 1.5}, ("k",)),
        ({"query": "q", "top_k": 3}, ("top_k",)),
    ],
)
def test_bad_searches_name_the_field(body: dict[str, Any], where: tuple[str | int, ...]) -> None:
    with pytest.raises(ValidationError) as error:
        SearchRequest.model_validate(body)
    assert error.value.errors()[0]["loc"] == where


@pytest.mark.parametrize(
    ("model", "body", "where"),
    [
        (RerankRequest, '{"query": "q", "texts": ["a"], "raw_scores": "yes"}', ("raw_scores",)),
        (RerankV1Request, '{"query": "q", "documents": ["a"], "top_n": "3"}', ("top_n",)),
        (SearchRequest, '{"query": "q", "k": true}', ("k",)),
    ],
)
def test_a_value_of_another_type_is_not_converted(model: Any, body: str, where: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as error:
        model.model_validate_json(body)
    assert error.value.errors()[0]["loc"] == where


@pytest.mark.parametrize("model", [RerankRequest, SearchRequest])
def test_many_unknown_fields_are_one_error(model: Any) -> None:
    with pytest.raises(ValidationError) as error:
        model.model_validate({"query": "q", **{str(i): 1 for i in range(MAX_FIELDS)}})
    assert [found["type"] for found in error.value.errors()] == ["value_error"]


def test_the_interface_is_described_as_it_is() -> None:
    document = describe({"openapi": "3.0.2", "paths": {path: {"post": {}} for path in ENDPOINTS}})
    for path in ENDPOINTS:
        operation = document["paths"][path]["post"]
        assert operation["requestBody"]["required"]
        assert set(operation["responses"]) == {"200", *map(str, ERRORS)}
    schemas = document["components"]["schemas"]
    assert schemas["RerankV1Request"]["properties"]["top_n"]["nullable"]
    assert schemas["RerankRequest"]["properties"]["first_stage_scores"]["items"] == {"type": "number"}
    assert [option["type"] for option in schemas["Document"]["anyOf"]] == ["string", "object"]
    assert schemas["RerankRequest"]["properties"]["texts"]["items"]["pattern"] == r"\S"
    assert schemas["ErrorResponse"]["required"] == ["error", "detail"]
