"""What of the held-out splits stands in training, against the definition, and as it is shown."""

from __future__ import annotations

import json
from itertools import islice

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from neuroranker_pipeline.datasets.leaks import Leak, Leaks, SplitLeaks, find_leaks, leaks_between
from neuroranker_pipeline.datasets.near import same_text
from neuroranker_pipeline.datasets.tables import QUERIES

Row = tuple[str, str, str]
SPLITS = ["train", "dev", "gate", "test", "test-dl19", "unjudged-00"]
rows = st.lists(
    st.tuples(st.lists(st.sampled_from(["a", "b", "c", "A", "d?"]), max_size=5).map(" ".join), st.sampled_from(SPLITS)),
    max_size=40,
).map(lambda found: [(f"q{97 * n % 41}", text, split) for n, (text, split) in enumerate(found)])


def table(*found: Row) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(QUERIES.names, row, strict=True)) for row in found], schema=QUERIES)


def jaccard(one: str, other: str) -> float:
    mine, others = set(same_text(one).split()), set(same_text(other).split())
    return len(mine & others) / len(mine | others) if mine | others else 0.0


def defined(found: list[Row], split: str, threshold: float) -> tuple[SplitLeaks, list[Leak]]:
    """The counts and all pairs of a split, from every pair of queries."""
    held = [row for row in found if row[2] == split]
    training = [row for row in found if row[2] == "train"]
    same = {q for q, text, _ in held for _, other, _ in training if same_text(text) == same_text(other)}
    leaks = [
        Leak(split, q, text, t, other, jaccard(text, other), same_text(text) == same_text(other))
        for q, text, _ in held
        for t, other, _ in training
        if jaccard(text, other) >= threshold
    ]
    near = {leak.qid for leak in leaks} - same
    counts = SplitLeaks(split, len(held), len(same), len(near), len({leak.training_qid for leak in leaks}))
    return counts, sorted(leaks, key=lambda leak: (-leak.jaccard, leak.qid, leak.training_qid))


@given(rows, st.sampled_from([0.7, 0.5, 1.0]), st.integers(0, 4))
def test_counts_and_closest_pairs_are_those_of_comparing_all(found: list[Row], threshold: float, shown: int) -> None:
    leaks = find_leaks(table(*found), threshold, shown)
    present = {split for _, _, split in found}
    expected = [defined(found, split, threshold) for split in SPLITS[1:-1] if split in present]
    assert leaks.splits == tuple(counts for counts, _ in expected)
    assert leaks.leaks == tuple(leak for _, all_of_it in expected for leak in islice(all_of_it, shown))
    assert Leaks.from_dict(json.loads(json.dumps(leaks.to_dict()))) == leaks


def test_a_query_with_the_same_text_is_not_counted_as_near_too() -> None:
    leaks = find_leaks(
        table(
            ("1", "What is a dog?", "test"),
            ("2", "is a dog what", "test"),
            ("3", "cat", "dev"),
            ("t1", "what is a DOG", "train"),
            ("t2", "what is a dog then", "train"),
        )
    )
    assert leaks.splits == (SplitLeaks("dev", 1, 0, 0, 0), SplitLeaks("test", 2, 1, 1, 2))
    assert (leaks.same, leaks.near) == (1, 1)
    assert [(leak.qid, leak.training_qid, leak.jaccard, leak.same) for leak in leaks.leaks] == [
        ("1", "t1", 1.0, True),
        ("2", "t1", 1.0, False),
        ("1", "t2", 0.8, False),
        ("2", "t2", 0.8, False),
    ]


def test_texts_without_a_word_are_compared_as_they_are() -> None:
    leaks = find_leaks(table(("1", "?!", "dev"), ("2", "!", "dev"), ("t", " ?! ", "train")))
    assert leaks.splits == (SplitLeaks("dev", 2, 1, 0, 1),)


def test_without_training_or_without_held_out_queries_there_is_no_leak() -> None:
    assert find_leaks(table()) == Leaks(0.7, (), ())
    assert find_leaks(table(("t", "a", "train"))).splits == ()
    assert find_leaks(table(("1", "a", "gate"))).splits == (SplitLeaks("gate", 1, 0, 0, 0),)


def test_the_tables_show_texts_literally() -> None:
    query = "<img src=x> | [a](b) `c`"
    shown = find_leaks(table(("1", query, "test"), ("t|", query.upper(), "train"))).markdown()
    counts, pairs = shown.split("\n\n")
    assert counts.splitlines()[-1] == "| test | 1 | 1 | 0 | 1 |"
    assert r"| 1 | \<img src=x\> \| \[a\](b) \`c\` | t\| |" in pairs
    assert "Jaccard" not in find_leaks(table(("1", "a", "dev"))).markdown().replace("(Jaccard", "")


def test_queries_without_judgments_are_held_against_the_held_out_ones_alone() -> None:
    judged = table(("d", "red fox", "dev"), ("t", "grey owl", "train"))
    asked = table(("1", "Red fox?", "unjudged-00"), ("2", "grey owl", "unjudged-01"))
    (leak,) = leaks_between(asked, judged).leaks
    assert (leak.qid, leak.training_qid, leak.same) == ("d", "1", True)
    assert leaks_between(asked.slice(0, 0), judged).splits == (SplitLeaks("dev", 1, 0, 0, 0),)
    assert leaks_between(asked, judged.slice(0, 0)).splits == ()
