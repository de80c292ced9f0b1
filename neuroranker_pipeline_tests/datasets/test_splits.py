from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroranker_pipeline.datasets.files import FilesSettings
from neuroranker_pipeline.datasets.held_out import SAME, TOO_NEAR
from neuroranker_pipeline.datasets.near import same_text
from neuroranker_pipeline.datasets.splits import UNJUDGED, CarveSettings, CollectionSettings, Splits, unit_hash
from neuroranker_pipeline.errors import BadInput

PLAIN = CollectionSettings(folder=".")
QIDS = [f"q{n}" for n in range(2_000)]
ALL_TRAIN = [(qid, "train") for qid in QIDS]


def split_of(judged: list[tuple[str, str]], settings: CollectionSettings = PLAIN) -> dict[str, str | None]:
    splits = Splits(judged, settings)
    return {qid: splits.of(qid) for qid in dict(judged)}


def count(found: dict[str, str | None]) -> dict[str | None, int]:
    return {split: list(found.values()).count(split) for split in set(found.values())}


def test_given_splits_stay_and_no_other_is_carved() -> None:
    judged = [("a", "train"), ("b", "dev"), ("c", "gate"), ("d", "test")]
    assert split_of(judged) == dict(judged)
    assert Splits(judged, PLAIN).of("nobody judged it") is None
    assert len(Splits([*judged, *judged], PLAIN)) == 4


@pytest.mark.parametrize(
    ("splits", "winner"),
    [(("train", "test"), "test"), (("dev", "train"), "dev"), (("gate", "dev"), "gate"), (("test", "gate"), "test")],
)
def test_a_query_judged_in_two_splits_belongs_to_the_stronger(splits: tuple[str, str], winner: str) -> None:
    others = [("a", "train"), ("b", "dev"), ("c", "gate"), ("d", "test")]
    for order in (splits, splits[::-1]):
        found = Splits([*others, *(("q", split) for split in order)], PLAIN)
        assert found.of("q") == found.given("q") == winner


def test_everything_is_carved_from_the_training_queries_where_there_is_nothing_else() -> None:
    sizes = count(split_of(ALL_TRAIN))
    assert set(sizes) == {"train", "dev", "test", "gate"}
    assert 0.86 < sizes["train"] / 2_000 < 0.94
    assert 0.03 < sizes["test"] / 2_000 < 0.07
    assert 0.01 < sizes["dev"] / 2_000 < 0.04
    assert 0.01 < sizes["gate"] / 2_000 < 0.04


def test_gate_and_test_are_carved_from_the_dev_that_is_there() -> None:
    judged = [(qid, "dev" if n % 2 else "train") for n, qid in enumerate(QIDS)]
    found = split_of(judged)
    assert {found[qid] for qid, split in judged if split == "train"} == {"train"}
    assert {found[qid] for qid, split in judged if split == "dev"} == {"dev", "test", "gate"}
    tested = split_of([*judged, ("t", "test")])
    assert {tested[qid] for qid, split in judged if split == "dev"} == {"dev", "gate"}, "test is there: none is carved"


@given(st.permutations(QIDS[:60]), st.integers(0, 60))
def test_carving_depends_on_the_qid_alone(order: list[str], keep: int) -> None:
    whole = split_of(ALL_TRAIN)
    found = split_of([(qid, "train") for qid in order[:keep]])
    assert found == {qid: whole[qid] for qid in order[:keep]}


def ended(rows: list[tuple[str, str, str]], settings: CollectionSettings = PLAIN) -> dict[str, str | None]:
    """The split in which each (qid, split, text) ends up."""
    splits = Splits([row[:2] for row in rows], settings, [(qid, text) for qid, _, text in rows])
    return {qid: splits.of(qid) for qid, _, _ in rows}


def test_all_queries_of_a_question_fall_into_one_split() -> None:
    rows = [(f"q{n}", "train", f"{'Is it' if n % 2 else 'is  it'} number {n % 400}?") for n in range(2_000)]
    found, by_question = ended(rows), dict[str, set[str | None]]()
    for qid, _, text in rows:
        by_question.setdefault(same_text(text), set()).add(found[qid])
    assert len(by_question) == 400
    assert {len(splits) for splits in by_question.values()} == {1}
    assert set(found.values()) == {"train", "dev", "gate", "test"}


def test_given_splits_stay_and_training_loses_what_they_ask() -> None:
    others = [("d", "dev", "what is bm25"), ("g", "gate", "a gate"), ("t", "test", "What is BM25?")]
    rows = [
        ("a", "train", "What is BM25 ?"),
        ("b", "train", "A gate."),
        ("c", "train", "what is bm25 then now"),
        *others,
    ]
    splits = Splits([row[:2] for row in rows], PLAIN, [(qid, text) for qid, _, text in rows])
    assert {qid: splits.of(qid) for qid, _, _ in rows} == {
        "a": None, "b": None, "c": "train", "d": "dev", "g": "gate", "t": "test",
    }  # fmt: skip
    assert [splits.left_out(qid) for qid in ("a", "unknown")] == [SAME, UNJUDGED]


WORDS = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=6).map(" ".join)


@given(
    st.lists(st.tuples(WORDS, st.sampled_from(["train", "train", "test"])), max_size=60), st.sampled_from([0.5, 0.7, 1])
)
def test_nothing_carved_is_learned_from(rows: list[tuple[str, str]], near: float) -> None:
    """Whatever is asked: neither a question that is held out, nor one that is near to a carved one."""
    named = [(f"q{n}", split, text) for n, (text, split) in enumerate(rows)]
    settings = CollectionSettings(folder=".", carve=CarveSettings(dev=0.5, near=near))
    splits = Splits([row[:2] for row in named], settings, [(qid, text) for qid, _, text in named])
    words = {qid: set(text.split()) for qid, _, text in named}
    same = {qid: same_text(text) for qid, _, text in named}
    learned = [qid for qid, _, _ in named if splits.of(qid) == "train"]
    for qid, before, _ in named:
        split = splits.of(qid)
        assert split == before or before == "train", "only training loses queries"
        if split not in ("train", None):
            assert same[qid] not in {same[other] for other in learned}
            if split in splits.carving.splits:
                shares = [len(words[qid] & words[o]) / len(words[qid] | words[o]) for o in learned]
                assert max(shares, default=0) < near
    lost = [qid for qid, _, _ in named if splits.of(qid) is None]
    assert {splits.left_out(qid) for qid in lost} <= {SAME, TOO_NEAR}


def test_a_near_question_stays_where_the_splits_were_given() -> None:
    rows = [
        ("a", "train", "one two three four"),
        ("d", "dev", "one two three four five"),
        ("t", "test", "x"),
        ("g", "gate", "y"),
    ]
    assert ended(rows)["a"] == "train"


@given(st.lists(st.tuples(WORDS, st.just("train")), min_size=1, max_size=40, unique=True))
def test_where_a_question_goes_depends_on_its_text_alone(rows: list[tuple[str, str]]) -> None:
    wide = CollectionSettings(folder=".", carve=CarveSettings(near=1.0))
    one = ended([(f"q{n}", split, text) for n, (text, split) in enumerate(rows)], wide)
    other = ended([(f"z{len(rows) - n}", split, text.upper()) for n, (text, split) in enumerate(rows)], wide)
    for n in range(len(rows)):
        if one[f"q{n}"] is not None:
            assert other[f"z{len(rows) - n}"] in (one[f"q{n}"], None)


def test_shares_are_settings() -> None:
    most = CollectionSettings(folder=".", carve=CarveSettings(dev=0.9, test=0.1, gate=0.1))
    sizes = count(split_of(ALL_TRAIN, most))
    assert sizes["dev"] > 1_300
    assert sizes["train"] < 300


def test_the_limit_on_training_queries_moves_no_other_and_keeps_the_same_ones() -> None:
    whole = split_of(ALL_TRAIN)
    few = split_of(ALL_TRAIN, CollectionSettings(folder=".", max_train_queries=100))
    more = split_of(ALL_TRAIN, CollectionSettings(folder=".", max_train_queries=200))
    assert count(few)["train"] == 100
    assert count(more)["train"] == 200
    assert {qid for qid in QIDS if few[qid] == "train"} < {qid for qid in QIDS if more[qid] == "train"}
    assert all(few[qid] == whole[qid] for qid in QIDS if whole[qid] != "train")
    assert split_of(ALL_TRAIN, CollectionSettings(folder=".", max_train_queries=10_000)) == whole


def test_an_unknown_or_missing_split_is_named() -> None:
    with pytest.raises(BadInput, match=r"^split 'valid' of query q7: expected train, dev, gate, test "):
        Splits([("q7", "valid")], PLAIN)
    with pytest.raises(BadInput, match=r"^no query is judged in split test-b, which data.tests names$"):
        Splits([("a", "train"), ("b", "test-a")], FilesSettings(tests=("test-a", "test-b")))


@given(st.text())
def test_a_hash_is_a_share(qid: str) -> None:
    assert 0 <= unit_hash(qid, "dev") < 1
    assert unit_hash(qid, "dev") == unit_hash(qid, "dev") != unit_hash(qid, "gate")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("folder", ""),
        ("max_reject_share", 1.0),
        ("max_reject_share", -0.1),
        ("max_train_queries", 0),
        ("relevance_level", 0),
        ("relevance_level", {"train": 0}),
        ("relevance_level", {"valid": 1}),
    ],
)
def test_bad_settings_name_the_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be"):
        CollectionSettings(**{"folder": ".", field: value})


def test_the_relevance_level_is_one_or_by_split() -> None:
    def levels(**given: Any) -> list[int]:
        settings = FilesSettings(tests=("test", "test-b"), **given)
        return [settings.relevant_from(split) for split in ("train", "train-03", "dev", "gate", "test", "test-b")]

    assert levels() == [1] * 6
    assert levels(relevance_level=2) == [2] * 6
    assert levels(relevance_level={"train": 3, "test-b": 2}) == [3, 3, 1, 1, 1, 2]


@pytest.mark.parametrize("field", ["dev", "test", "gate"])
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_bad_shares_name_the_field(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be between 0 and 1"):
        CarveSettings(**{field: value})
