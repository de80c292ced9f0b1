from __future__ import annotations

import math
from typing import Any

import pytest

from neuroranker_pipeline.retrieval.jvm import java_class
from neuroranker_pipeline.retrieval.settings import LANGUAGES, BM25Settings, TuneSettings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("k1", -0.1), ("k1", math.nan), ("b", 1.1), ("depth", 0), ("threads", 0), ("heap_mb", 1),
        ("stemmer", "snowball"),
    ],
)  # fmt: skip
def test_bad_settings_name_the_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be"):
        BM25Settings(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"), [("k1", ()), ("k1", (0.9, -1.0)), ("b", (1.5,)), ("queries", 0), ("measure", "map")]
)
def test_bad_grids_name_the_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be"):
        TuneSettings(**{field: value})


def test_an_unknown_language_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"^language must be one of ar, .*, en, .*, zh, got 'xx'"):
        BM25Settings(language="xx")


@pytest.mark.parametrize("settings", [{"stemmer": "none"}, {"keep_stopwords": True}])
def test_the_english_settings_are_for_english(settings: dict[str, Any]) -> None:
    BM25Settings(**settings)
    with pytest.raises(ValueError, match=f"^{next(iter(settings))} must be left out"):
        BM25Settings(language="de", **settings)


def test_the_languages_are_those_of_anserini() -> None:
    known = {str(name) for name in java_class("io.anserini.analysis.AnalyzerMap").analyzerMap.keySet().toArray()}
    assert set(LANGUAGES) == known | {"en", "sw"}
