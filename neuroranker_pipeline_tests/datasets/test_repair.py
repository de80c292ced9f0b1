from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from neuroranker_pipeline.datasets.repair import repaired


def mend(*texts: str) -> list[str]:
    return repaired(pa.array(texts, pa.string())).to_pylist()


def test_what_was_read_as_windows_1252_is_read_again() -> None:
    wrong = ["It\u00e2\u20ac\u2122s here.", "plain", "caf\u00c3\u00a9  \u00c2\u00a35"]
    assert mend(*wrong) == ["It\u2019s here.", "plain", "caf\u00e9  \u00a35"]


def test_sound_text_stays_as_it_is() -> None:
    texts = ["caf\u00e9", "\u201cquoted\u201d \u2014 dash", "\u6f22\u5b57", "a  b\tc ", "\ufb01 ligature", "&amp; <b>"]
    assert mend(*texts) == texts
    assert mend() == []


@given(st.lists(st.text(st.characters(max_codepoint=127))))
def test_ascii_is_never_touched(texts: list[str]) -> None:
    array = pa.array(texts, pa.string())
    assert repaired(array) is array
