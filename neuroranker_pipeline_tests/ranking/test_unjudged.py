"""Queries without judgments: how they are made, read and chosen, and what stands for their positive."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroranker_pipeline.datasets.held_out import SAME, TOO_NEAR, Carving
from neuroranker_pipeline.datasets.own import without_own
from neuroranker_pipeline.datasets.rejects import Rejects
from neuroranker_pipeline.datasets.tables import CANDIDATES, PASSAGES, QRELS, QUERIES, SCORES
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.ranking.settings import UnjudgedSettings
from neuroranker_pipeline.ranking.unjudged import (
    LEARNED,
    OWN,
    best_as_positive,
    in_shards,
    logged_queries,
    made_queries,
    own_as_positive,
    sentence_as_query,
    sentences,
    title_as_query,
    without_known,
)
from neuroranker_pipeline_tests.datasets.raw import reasons, table, tuples

SETTINGS = UnjudgedSettings(source="sentences", min_words=3, max_words=8)
WORDS = st.lists(st.sampled_from(["red", "owls", "fly", "at", "night", "e.g.", "Mr.", "3.5"]), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One is. Two are! Three? Four", ["One is.", "Two are!", "Three?", "Four"]),
        ("Dr. Who met e.g. J. Smith. He left.", ["Dr. Who met e.g. J. Smith.", "He left."]),
        ("json.dumps writes 3.5 to a file. Done.", ["json.dumps writes 3.5 to a file.", "Done."]),
        ("A head\n\nThe body follows. ", ["A head", "The body follows."]),
        ("\u4e00\u4e8c\u3002\u4e09\u56db\u3002", ["\u4e00\u4e8c\u3002", "\u4e09\u56db\u3002"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences_end_where_a_reader_would_say(text: str, found: list[str]) -> None:
    assert [text[start:end].strip() for start, end in sentences(text)] == found


@given(st.lists(WORDS, max_size=8))
def test_sentences_cover_the_text(parts: list[list[str]]) -> None:
    text = ". ".join(" ".join(part) for part in parts)
    assert "".join("".join(text[start:end].split()) for start, end in sentences(text)) == "".join(text.split())


@given(st.lists(WORDS, max_size=8), st.text(max_size=5))
def test_a_sentence_and_the_rest_are_the_whole_passage(parts: list[list[str]], pid: str) -> None:
    text = ". ".join(" ".join(part) for part in parts)
    made = sentence_as_query(pid, text, SETTINGS)
    if made is not None:
        query, rest = made
        assert 3 <= len(query.split()) <= 8
        assert len(rest.split()) >= len(query.split())
        assert Counter(query.split()) + Counter(rest.split()) == Counter(text.split())


def test_the_sentence_is_gone_from_the_rest_and_differs_from_passage_to_passage() -> None:
    text = "The owl hunts at night. The fox hunts at dawn. The cat hunts by day."
    made = [sentence_as_query(f"p{n}", text, SETTINGS) for n in range(30)]
    assert made == [sentence_as_query(f"p{n}", text, SETTINGS) for n in range(30)]
    assert all(found is not None and found[0] not in found[1] for found in made)
    assert len({query for query, _ in filter(None, made)}) == 3
    assert sentence_as_query("p", "Too short. It is.", SETTINGS) is None
    assert sentence_as_query("p", "The only sentence of this passage.", SETTINGS) is None


def test_words_without_spaces_are_counted_by_the_character() -> None:
    cat, dog, bird = (
        "\u732b\u306f\u5bdd\u308b\u3002",
        "\u72ac\u306f\u8d70\u308b\u3002",
        "\u9ce5\u306f\u98db\u3076\u3002",
    )
    made = sentence_as_query("p", cat + dog + bird, SETTINGS)
    assert made is not None
    query, rest = made
    assert query in (cat, dog, bird)
    assert Counter(query + rest.replace(" ", "")) == Counter(cat + dog + bird)
    assert sentence_as_query("p", cat * 3, UnjudgedSettings(source="sentences", min_words=6)) is None


def test_a_title_is_taken_off_its_passage() -> None:
    assert title_as_query("The snowy owl", "The snowy owl It is white.", SETTINGS) == ("The snowy owl", "It is white.")
    assert title_as_query("The snowy owl", "It is white.", SETTINGS) == ("The snowy owl", "It is white.")
    assert title_as_query("The snowy owl", "The snowy owl", SETTINGS) is None
    assert title_as_query("Owl", "Owl It is white.", SETTINGS) is None


def passages(count: int) -> list[pa.RecordBatch]:
    rows = [{"pid": f"p{n}", "text": f"Passage {n} begins here. It goes on for some words."} for n in range(count)]
    return pa.Table.from_pylist(rows, PASSAGES).to_batches(max_chunksize=7)


@pytest.mark.parametrize("count", [None, 1, 10, 50, 80])
def test_made_queries_are_chosen_by_the_pid_alone(count: int | None) -> None:
    def make(row: dict[str, str]) -> tuple[str, str]:
        return row["text"], f"rest of {row['pid']}"

    asked, own = made_queries(passages(50), make, count)
    backwards, _ = made_queries(reversed(passages(50)), make, count)
    assert asked.equals(backwards)
    assert asked.schema == QUERIES
    assert asked.num_rows == own.num_rows == min(50, count or 50)
    for query, rest in zip(asked.to_pylist(), own.to_pylist(), strict=True):
        assert query["qid"] == rest["qid"] == f"{rest['source_pid']}#query"
        assert rest["pid"] == f"{rest['source_pid']}#rest"
        assert rest["text"] == f"rest of {rest['source_pid']}"
    if count == 10:
        fewer, _ = made_queries(passages(50), make, 5)
        assert set(fewer["qid"].to_pylist()) < set(asked["qid"].to_pylist())


def test_passages_without_a_fitting_sentence_make_room_for_others() -> None:
    asked, _ = made_queries(passages(50), lambda row: ("q", "r") if row["pid"] < "p2" else None, 5)
    assert asked.num_rows == 5
    assert made_queries(passages(5), lambda _: None, None)[0].num_rows == 0


LOG = UnjudgedSettings(source="file", file="x", min_words=2)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("log.tsv", "1\twhere do owls sleep\n2\tred fox\n3\tWhere do owls sleep?\n4\tone\n"),
        ("log.tsv", "text\tqid\twhen\nwhere do owls sleep\t1\tx\nred fox\t2\tx\none\t4\tx\n"),
        ("log.jsonl", '{"qid": 1, "text": "where do owls sleep"}\n{"qid": 2, "text": "red fox"}\n'),
        ("log.txt", "where do owls sleep\nred fox\none\n"),
        ("log.txt.gz", "where do owls sleep\nred fox\n"),
    ],
)
def test_a_log_is_read_in_whatever_form(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    asked = logged_queries(path, LOG, Rejects())
    assert tuples(asked, QUERIES) == [
        ("1#query", "where do owls sleep", "unjudged"),
        ("2#query", "red fox", "unjudged"),
    ]


def test_a_log_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("1,a b\n")
    with pytest.raises(BadInput, match=r"log\.csv: expected a \.tsv, \.jsonl or \.parquet file"):
        logged_queries(tmp_path / "log.csv", LOG, Rejects())
    (tmp_path / "log.tsv").write_text("1\tgood query\nno tab here\n")
    rejects = Rejects(1.0)
    assert logged_queries(tmp_path / "log.tsv", LOG, rejects).num_rows == 1
    assert rejects.total == 2


def test_rows_of_a_log_that_cannot_be_told_apart_are_rejected(tmp_path: Path) -> None:
    rows = [("1", "where do owls sleep"), ("1", "red fox"), ("a b", "grey fox"), ("", "bees hum"), ("2", " ")]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps({"qid": q, "text": t}) + "\n" for q, t in rows))
    rejects = Rejects(1.0)
    assert logged_queries(tmp_path / "log.jsonl", LOG, rejects)["qid"].to_pylist() == ["1#query"]
    assert reasons(rejects) == [(2, "repeated qid"), (3, "white space in the qid"), (4, "no qid"), (5, "no text")]


def test_a_log_s_queries_are_chosen_by_their_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"qid": n, "text": f"red {n}"}) + "\n" for n in range(30)))
    lines = [json.dumps({"qid": n, "text": f"red {29 - n}"}) + "\n" for n in range(30)]
    (tmp_path / "b.jsonl").write_text("".join(lines))
    settings = UnjudgedSettings(source="file", file="x", min_words=2, count=7)
    first, second = (logged_queries(tmp_path / name, settings, Rejects())["text"] for name in ("a.jsonl", "b.jsonl"))
    assert len(first) == 7
    assert set(first.to_pylist()) == set(second.to_pylist())


def test_judged_queries_are_left_out_however_they_are_written() -> None:
    asked = table(
        QUERIES, ("1", "Red  FOX?", "unjudged"), ("2", "grey fox", "unjudged"), ("3", "???", "unjudged"),
        ("4", "Owls!", "unjudged"), ("5", "the very red fox runs", "unjudged"),
    )  # fmt: skip
    judged = table(QUERIES, ("a", "red fox", "test"), ("b", "owls", "train"), ("c", "the red fox runs", "dev"))
    rejects = Rejects()
    assert without_known(asked, judged, Carving(), rejects)["qid"].to_pylist() == ["2", "3", "5"]
    assert rejects.left_out == {SAME: 1, LEARNED: 1}
    rejects = Rejects()
    carved = Carving(frozenset({"dev"}))
    assert without_known(asked, judged, carved, rejects)["qid"].to_pylist() == ["2", "3"]
    assert rejects.left_out == {SAME: 1, LEARNED: 1, TOO_NEAR: 1}


def test_a_query_s_split_is_its_shard() -> None:
    asked = table(QUERIES, *((f"q{n}", "text", "unjudged") for n in range(40)))
    shards = Counter(in_shards(asked, 3)["split"].to_pylist())
    assert shards.keys() == {"unjudged-00", "unjudged-01", "unjudged-02"}
    assert in_shards(asked.slice(5, 1), 3).to_pylist() == in_shards(asked, 3).slice(5, 1).to_pylist()


def test_the_own_passage_is_no_candidate_and_its_rest_is_the_positive() -> None:
    own = table(OWN, ("q1", "b#rest", "rest", "b"), ("q2", "a#rest", "rest", "a"))
    found = table(CANDIDATES, ("q1", "a", 1, 3.0), ("q1", "b", 2, 2.0), ("q1", "c", 3, 1.0), ("q2", "b", 1, 1.0))
    sources = own.select(["qid", "source_pid"]).rename_columns(["qid", "pid"])
    assert tuples(without_own(found, sources), CANDIDATES) == [
        ("q1", "a", 1, 3.0),
        ("q1", "c", 2, 1.0),
        ("q2", "b", 1, 1.0),
    ]
    assert tuples(own_as_positive(own), QRELS) == [("q1", "b#rest", 1, "unjudged"), ("q2", "a#rest", 1, "unjudged")]
    assert own_as_positive(OWN.empty_table()).num_rows == 0


def test_the_teacher_s_best_is_the_positive_ties_by_pid() -> None:
    scores = table(SCORES, ("q2", "b", 1.0), ("q2", "a", 1.0), ("q1", "c", -3.0), ("q1", "d", -1.0))
    assert tuples(best_as_positive(scores), QRELS) == [("q2", "a", 1, "unjudged"), ("q1", "d", 1, "unjudged")]
    assert best_as_positive(scores.slice(0, 0)).num_rows == 0
