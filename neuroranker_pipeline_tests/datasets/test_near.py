"""Near duplicates: the same pairs as comparing every text with every other, in exact arithmetic."""

from __future__ import annotations

import unicodedata
from fractions import Fraction

import networkx as nx
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroranker_pipeline.datasets import near
from neuroranker_pipeline.datasets.near import NEAR, clusters, near_pairs, same_text, tokens

# Few words, and sets of up to ten: many pairs stand at a threshold, or a word above or below it.
texts = st.lists(st.lists(st.sampled_from("abcdefghijkl"), max_size=14).map(" ".join), max_size=25)
thresholds = st.sampled_from([0.5, 0.7, 1.0, 0.55, 1 / 3, 0.01])
Found = list[tuple[int, int, float]]


def compared(held: list[str], others: list[str], threshold: float) -> Found:
    """Every text with every other, by the definition."""
    sets = [(row, set(text.split())) for row, text in enumerate(held)]
    found = []
    for other, text in enumerate(others):
        words = set(text.split())
        for row, mine in sets:
            if mine | words and Fraction(len(mine & words), len(mine | words)) >= Fraction(str(threshold)):
                found.append((row, other, len(mine & words) / len(mine | words)))
    return found


def tuples(pairs: near.Pairs) -> Found:
    return list(zip(*(part.tolist() for part in pairs), strict=True))


@given(texts, texts, thresholds)
def test_all_pairs_and_no_others_are_found(held: list[str], others: list[str], threshold: float) -> None:
    assert tuples(near_pairs(held, others, threshold)) == compared(held, others, threshold)


@given(texts, texts, st.integers(1, 9), st.integers(1, 40))
def test_blocks_and_pieces_of_any_size_give_the_same(
    held: list[str], others: list[str], block: int, entries: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "ENTRIES", entries)
        found = near_pairs(held, others, 0.5, block)
    assert tuples(found) == compared(held, others, 0.5)


@pytest.mark.parametrize(
    ("common", "union", "threshold"),
    # 0.55 * 20 and 0.07 * 100 are above 11 and 7 in floating point; seventeen digits are met by no float's neighbour
    [(7, 10, 0.7), (11, 20, 0.55), (7, 100, 0.07), (1, 1, 1.0), (1, 3, 0.3333333333333333)],
)
def test_a_threshold_is_met_exactly(common: int, union: int, threshold: float) -> None:
    words = [f"w{n}" for n in range(union)]
    less = [word for n, word in enumerate(words) if n != 0] if common > 1 else ["v"]
    held = " ".join(words)
    assert tuples(near_pairs([held], [" ".join(words[:common])], threshold)) == [(0, 0, common / union)]
    assert tuples(near_pairs([held], [" ".join(less[: common - 1] or ["v"])], threshold)) == []


def test_words_that_no_held_out_text_has_count() -> None:
    assert tuples(near_pairs(["a b c"], ["a b c x", "a b c x y", "x y z"])) == [(0, 0, 0.75)]


def test_nothing_is_near_to_nothing() -> None:
    for held, others in ([], ["a"]), (["a"], []), ([], []), ([""], ["", " ", "a"]):
        found = near_pairs(held, others)
        assert [len(part) for part in found] == [0, 0, 0]
        assert [part.dtype for part in found] == [np.int64, np.int64, np.float64]


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.1, float("nan")])
def test_a_threshold_is_above_0_and_at_most_1(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold must be above 0 and at most 1"):
        near_pairs(["a"], ["a"], threshold)


def test_arrow_columns_are_read_as_lists_are() -> None:
    held, others = ["one two three", "four"], ["Four!", "two one, three", "five"]
    expected = tuples(near_pairs(held, others))
    assert expected == [(1, 0, 1.0), (0, 1, 1.0)]
    chunked = pa.chunked_array([others[:1], others[1:]])
    assert tuples(near_pairs(pa.array(held), chunked)) == tuples(near_pairs(iter(held), iter(others))) == expected


@given(st.lists(st.lists(st.text("abcdefg", min_size=1, max_size=3), min_size=4, max_size=9), min_size=1, max_size=9))
def test_planted_variants_are_found(words: list[list[str]]) -> None:
    held = [" ".join(text) for text in words]
    variants = [text.upper() for text in held] + [f"  {text.replace(' ', ', ')}?!" for text in held]
    found = near_pairs(held, variants)
    ones = set(zip(found.held[found.jaccard == 1].tolist(), found.other[found.jaccard == 1].tolist(), strict=True))
    assert {(row, row + shift) for row in range(len(held)) for shift in (0, len(held))} <= ones
    longer = near_pairs(held, [f"{text} new" for text in held], 0.5)
    assert set(range(len(held))) <= {
        a for a, b in zip(longer.held.tolist(), longer.other.tolist(), strict=True) if a == b
    }


@given(st.data(), thresholds)
def test_clusters_are_the_components_of_the_graph(data: st.DataObject, threshold: float) -> None:
    queries = data.draw(texts)
    passages = data.draw(st.lists(st.sampled_from(["a b c", "c b a", "d e f g", "d e f", ""]), min_size=len(queries)))
    passages = passages[: len(queries)]
    graph = nx.Graph()
    graph.add_nodes_from(range(len(queries)))
    for column in queries, passages:
        graph.add_edges_from(pair[:2] for pair in compared(column, column, threshold))
    components = sorted(min(part) for part in nx.connected_components(graph))
    numbers = {row: components.index(min(part)) for part in nx.connected_components(graph) for row in part}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "ENTRIES", data.draw(st.sampled_from([1, 50, 10**6])))
        found = clusters(queries, passages, threshold=threshold)
    assert found.tolist() == [numbers[row] for row in range(len(queries))]


def test_a_cluster_s_links_may_be_in_different_columns() -> None:
    queries = ["one two three", "three two one", "four", "five"]
    assert clusters(queries, ["a", "b", "c", "c d"]).tolist() == [0, 0, 1, 2]
    assert clusters(queries, ["a", "b", "b", "c d"]).tolist() == [0, 0, 0, 1]
    assert clusters([]).tolist() == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is a Dog?", " what\tis -- a dog "),
        ("caf\u00e9 au lait", "cafe\u0301 au lait"),
        ("\uff37\uff48\uff41\uff54\u3000\uff49\uff53\uff1f", "what is"),  # full width
        ("\uff76\uff9e", "\u30ac"),  # half-width katakana, voiced
        ("STRASSE", "stra\u00dfe"),
        ("\u1fb3 \u03a3\u03c2", "\u0391\u0399 \u03c3\u03c3"),  # iota subscript, final sigma
        ("\ufb01ne", "fine"),
        ("co\u00adope\u200drate", "cooperate"),
        ("hello \u2764\ufe0f", "hello"),
        ("rock\u00b4n roll", "rock'n roll"),
        ("e\u200c\u0301", "\u00e9"),  # joined once what stands between is gone
        ("\u2047", "??"),
    ],
)
def test_the_same_text_written_otherwise(one: str, other: str) -> None:
    assert same_text(one) == same_text(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # Hindi: 'day' and 'gift, poor'; 'mother-in-law of' and 'breath of': the same consonants, other vowel signs
        ("\u0926\u093f\u0928", "\u0926\u0940\u0928"),
        ("\u0938\u093e\u0938 \u0915\u0940", "\u0938\u093e\u0938 \u0915\u0947"),
        ("\u0995\u09bf", "\u0995\u09c0"),  # Bengali
        ("\u0e01\u0e34\u0e19", "\u0e01\u0e31\u0e19"),  # Thai: eat, each other
        ("\u0e1b\u0e48\u0e32", "\u0e1b\u0e49\u0e32"),  # Thai: forest, aunt: tone marks
        ("\u05d1\u05bc", "\u05d1"),
        ("resume", "r\u00e9sum\u00e9"),
        ("snake_case", "snake case"),
        ("?", "!"),
        ("\U0001f436?", "\U0001f431?"),  # a dog, a cat, and nothing else
        ("1 2", "12"),
    ],
)
def test_other_texts_stay_apart(one: str, other: str) -> None:
    assert same_text(one) != same_text(other)


@given(st.text())
def test_a_same_text_is_its_own_however_it_was_composed(text: str) -> None:
    same = same_text(text)
    assert same_text(same) == same
    assert bool(same) == bool("".join(text.split()))
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert same_text(unicodedata.normalize(form, text)) == same
    assert bool(tokens(same)) == bool(same)


def test_scripts_without_spaces_have_near_duplicates_and_no_false_ones() -> None:
    chinese = "\u4e2d\u56fd\u6700\u957f\u7684\u6cb3\u662f\u54ea\u4e00\u6761"  # which river of China is the longest
    assert len(near_pairs([chinese], [f"\u8bf7\u95ee{chinese}\uff1f"]).held) == 1
    assert len(near_pairs([chinese], ["\u4e2d\u56fd\u6700\u9ad8\u7684\u5c71\u662f\u54ea\u4e00\u5ea7"]).held) == 0
    thai = "\u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e\u0e2d\u0e22\u0e39\u0e48\u0e17\u0e35\u0e48\u0e44\u0e2b\u0e19"
    other = "".join(sorted(thai))  # the same letters, and another text
    assert len(near_pairs([thai], [f"{thai}\u0e04\u0e30"]).held) == 1
    assert len(near_pairs([thai], [other]).held) == 0


def test_defaults_and_forms() -> None:
    assert NEAR == 0.7
    assert same_text("CAFE\u0301") == "caf\u00e9"  # composed, as most texts are
