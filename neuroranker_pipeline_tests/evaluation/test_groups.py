import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroranker_pipeline.evaluation.groups import break_down, length_bins, query_groups, query_type


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("what is a neural ranking model", "question"),
        ("Is it safe to eat", "question"),
        ("weather in Seattle?", "question"),
        ("how to use pd.read_csv", "identifier"),  # the first rule that holds
        ("numpy.linalg.norm axis", "identifier"),
        ("parse_args", "identifier"),
        ("what does open() return", "identifier"),
        ("parseInt radix", "identifier"),
        ("std::vector growth", "identifier"),
        ("amazon.com refund", "keywords"),
        ("U.S. population 1990", "keywords"),
        ("cumulative sum", "keywords"),
        ("iPhone battery", "keywords"),
        ("3.5 mm jack", "keywords"),
        ("Return the sum of an array.", "phrase"),
        ("e.g. this one", "phrase"),
        ("whatever happens in here", "phrase"),  # begins with letters of a question word, not with the word
        ("", "keywords"),
    ],
)
def test_the_type_of_a_query(text, kind):
    assert query_type(text) == kind


@given(st.text())
def test_every_text_has_a_type(text):
    assert query_type(text) in {"identifier", "question", "keywords", "phrase"}


@given(st.lists(st.integers(0, 60), min_size=1, max_size=80))
def test_length_bins_hold_every_count_once_without_gaps(counts):
    bins = length_bins(counts)
    assert (bins[0][0], bins[-1][1]) == (min(counts), max(counts))
    assert all(fewest <= most for fewest, most in bins)
    assert all(after[0] == before[1] + 1 for before, after in itertools.pairwise(bins))
    assert len(bins) <= 3


def test_length_bins_are_thirds():
    assert length_bins([9, 8, 7, 6, 5, 4, 3, 2, 1]) == [(1, 3), (4, 6), (7, 9)]
    assert length_bins([4] * 10) == [(4, 4)]
    assert length_bins([]) == []


def test_groups_are_named_by_their_words():
    groups = query_groups({"a": "one", "b": "one two", "c": "what is it all about then"})
    assert groups["type"] == {"a": "keywords", "b": "keywords", "c": "question"}
    assert groups["length"] == {"a": "1 word", "b": "2 words", "c": "3 to 6 words"}
    assert query_groups({}) == {"type": {}, "length": {}}


def test_a_query_without_a_group_is_left_out():
    import numpy as np

    (row,) = break_down({"type": {"a": "x", "b": "x"}}, ["a", "b", "c"], {"mine": np.array([1.0, 0.0, 1.0])})
    assert (row.by, row.group, row.queries, row.means) == ("type", "x", 2, {"mine": 0.5})
