from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from neuroranker_pipeline.datasets.beir import BeirSettings, BeirSource
from neuroranker_pipeline.datasets.files import FilesSettings, FilesSource, JudgmentFile, PassageFile
from neuroranker_pipeline.datasets.held_out import SAME
from neuroranker_pipeline.datasets.msmarco import MsMarcoSettings, MsMarcoSource
from neuroranker_pipeline.datasets.prepare import ELSEWHERE, PreparedSource
from neuroranker_pipeline.datasets.rejects import Rejects
from neuroranker_pipeline.datasets.rows import Rows
from neuroranker_pipeline.datasets.splits import SURPLUS, UNJUDGED, CollectionSettings
from neuroranker_pipeline.datasets.tables import GIVEN, JUDGMENTS
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline_tests.datasets.raw import passages, qrels, queries, reasons, tuples, write

Lines = list[tuple[str | None, ...]]


class Raw:
    """A source whose files are lists, handed over in blocks of two rows."""

    name, licence = "raw", "none"

    def __init__(self, passages: Lines = (), queries: Lines = (), judgments: Lines = (), run: Lines = (), **settings):
        self.settings = CollectionSettings(folder=".", **settings)
        self._tables = {"passages": passages, "queries": queries, "judgments": judgments, "run": run}

    def files(self, table: str) -> list[Path]:
        return [Path(f"{table}.tsv")]

    def passage_rows(self, rejects: Rejects) -> Iterator[Rows]:
        return self._rows("passages", "pid", "text")

    def query_rows(self, rejects: Rejects) -> Iterator[Rows]:
        return self._rows("queries", "qid", "text")

    def judgment_rows(self, rejects: Rejects) -> Iterator[Rows]:
        return self._rows("judgments", "qid", "pid", "grade", "split")

    def run_rows(self, rejects: Rejects) -> Iterator[Rows]:
        for rows in self._rows("run", "qid", "pid", "score"):
            yield rows.having(split=pa.array(["test"] * len(rows), pa.string()))

    def _rows(self, name: str, *columns: str) -> Iterator[Rows]:
        lines = self._tables[name]
        for start in range(0, len(lines), 2):
            part = lines[start : start + 2]
            taken = {
                column: pa.array(values, pa.string())
                for column, values in zip(columns, zip(*part, strict=True), strict=True)
            }
            yield Rows(f"{name}.tsv", np.arange(start, start + len(part)) + 1, taken)


def raw(**tables) -> PreparedSource:
    return PreparedSource(Raw(**tables))


FOUR = [("q1", "p1", "1", "train"), ("q2", "p1", "1", "dev"), ("q3", "p1", "1", "gate"), ("q4", "p1", "1", "test")]
ASKED = [(qid, f"text of {qid}") for qid, _, _, _ in FOUR]


def test_passages_are_trimmed_and_what_is_missing_is_rejected() -> None:
    rejects = Rejects()
    lines = [
        (" p1 ", " one\u00a0"),
        ("p2", ""),
        ("p3", None),
        ("", "x"),
        (None, "x"),
        ("p 6", "x"),
        ("p\t7", "x"),
        ("p8", "8"),
        ("p9", "\x01 \x1f"),
        ("p" * 513, "x"),
    ]
    assert passages(raw(passages=lines), rejects) == [("p1", "one"), ("p8", "8")]
    assert reasons(rejects) == [
        (2, "no text"),
        (3, "no text"),
        (4, "no pid"),
        (5, "no pid"),
        (6, "white space in the pid"),
        (7, "white space in the pid"),
        (9, "no text"),
        (10, "a pid of more than 512 bytes"),
    ]
    assert rejects.table()["id"].to_pylist() == ["p2", "p3", "", "", "p 6", "p\t7", "p9", "p" * 80]
    assert (rejects.accepted, rejects.count) == (2, 8)


def test_of_repeated_ids_the_first_stays_in_a_block_and_across_blocks() -> None:
    rejects = Rejects()
    lines = [("p1", "first"), (" p1", "in the same block"), ("p2", "two"), ("p3", "three"), ("p2", "two blocks on")]
    assert passages(raw(passages=lines), rejects) == [("p1", "first"), ("p2", "two"), ("p3", "three")]
    assert reasons(rejects) == [(2, "repeated pid"), (5, "repeated pid")]
    assert queries(raw(queries=[("q1", "a"), ("q2", "b"), ("q1", "c")], judgments=FOUR), rejects) == [
        ("q1", "a", "train"),
        ("q2", "b", "dev"),
    ]
    assert rejects.reasons == {"repeated pid": 2, "repeated qid": 1}


def test_unjudged_queries_are_left_out_and_not_held_against_the_file() -> None:
    rejects = Rejects()
    assert queries(raw(queries=[*ASKED, ("q9", "unjudged"), ("q9", "twice")], judgments=FOUR), rejects) == [
        (qid, f"text of {qid}", split) for qid, _, _, split in FOUR
    ]
    assert rejects.left_out == {UNJUDGED: 2}
    rejects.demand()


def test_grades() -> None:
    grades = ["0", "1.0", "2.", "-1", "+1", None, "", "1.5", "high", "99999999999", "nan"]
    rejects = Rejects()
    lines = [("q1", f"p{n}", grade, "train") for n, grade in enumerate(grades)]
    found = {pid: grade for _, pid, grade, _ in qrels(raw(judgments=lines), rejects)}
    assert found == {"p0": 0, "p1": 1, "p2": 2, "p3": -1, "p4": 1, "p5": 1}
    assert [(row["line"], row["id"], row["reason"], row["excerpt"]) for row in rejects.table().to_pylist()] == [
        (line, "q1", "the grade is no whole number", grades[line - 1]) for line in (7, 8, 9, 10, 11)
    ]


def test_judgments_keep_their_place() -> None:
    found = tuples(raw(judgments=FOUR).qrels(Rejects()), JUDGMENTS)
    assert [row[4:] for row in found] == [("judgments.tsv", line) for line in (1, 2, 3, 4)]


def test_a_query_judged_in_test_and_train_is_only_tested_on() -> None:
    both = [*FOUR, (" q4", "p2", "1", "train"), ("q1", "p2", "0", "train")]
    rejects = Rejects()
    assert qrels(raw(judgments=both), rejects) == [*((q, p, 1, s) for q, p, _, s in FOUR), ("q1", "p2", 0, "train")]
    assert rejects.left_out == {ELSEWHERE: 1}
    assert ("q4", "text of q4", "test") in queries(raw(queries=ASKED, judgments=both))


def test_splits_are_carved_alike_for_queries_and_judgments() -> None:
    judged = [(f"q{n}", "p1", "1", "train") for n in range(300)]
    asked = [(f"q{n}", f"text {n}") for n in range(300)]
    source = raw(queries=asked, judgments=judged)
    split = {qid: split for qid, _, split in queries(source)}
    assert set(split.values()) == {"train", "dev", "gate", "test"}
    assert {qid: split for qid, _, _, split in qrels(source)} == split
    again = raw(queries=asked[::-1], judgments=judged[::-1])
    assert {qid: split for qid, _, split in queries(again)} == split, "the order of the files says nothing"


def test_a_limit_on_training_queries_holds_for_their_judgments_too() -> None:
    judged = [(f"q{n}", pid, "1", "train") for n in range(50) for pid in ("p1", "p2")] + FOUR[1:]
    source, rejects = (
        raw(queries=[(f"q{n}", f"text {n}") for n in range(50)], judgments=judged, max_train_queries=7),
        Rejects(),
    )
    learned = {qid for qid, _, split in queries(source, rejects) if split == "train"}
    assert rejects.left_out == {SURPLUS: 40}
    assert len(learned) == 7
    assert {qid for qid, _, _, split in qrels(source) if split == "train"} == learned
    assert len([row for row in qrels(source) if row[3] == "train"]) == 14


def test_training_loses_what_other_splits_ask_and_counts_it() -> None:
    asked = [
        ("t1", "What is BM25?"),
        ("t2", "what is  bm25"),
        ("t3", "another question"),
        ("d", "What is BM25"),
        ("x", "Y"),
    ]
    judged = [(qid, "p1", "1", "train") for qid in ("t1", "t2", "t3")]
    judged += [("d", "p1", "1", "dev"), ("x", "p1", "1", "test"), ("g", "p1", "1", "gate")]
    source, rejects = raw(queries=[*asked, ("g", "Z")], judgments=judged), Rejects()
    assert queries(source, rejects) == [
        ("t3", "another question", "train"), ("d", "What is BM25", "dev"), ("x", "Y", "test"), ("g", "Z", "gate"),
    ]  # fmt: skip
    assert rejects.left_out == {SAME: 2}
    assert [row[0] for row in qrels(source)] == ["t3", "d", "x", "g"], "their judgments go with them"
    assert source.carving.splits == frozenset()


def test_a_log_that_repeats_its_questions_is_carved_by_question() -> None:
    asked = [(f"q{n}", f"question {n % 400}") for n in range(2_000)]
    source = raw(queries=asked, judgments=[(qid, "p1", "1", "train") for qid, _ in asked])
    found: dict[str, set[str]] = {}
    for _, text, split in queries(source):
        found.setdefault(text, set()).add(split)
    assert len(found) == 400
    assert all(len(splits) == 1 for splits in found.values())
    assert set.union(*found.values()) == {"train", "dev", "gate", "test"}
    assert source.carving.splits == {"dev", "gate", "test"}


def test_repair_is_a_setting() -> None:
    assert passages(raw(passages=[("p1", "it\u00e2\u20ac\u2122s")])) == [("p1", "it\u00e2\u20ac\u2122s")]
    assert passages(raw(passages=[("p1", "it\u00e2\u20ac\u2122s")], repair_encoding=True)) == [("p1", "it\u2019s")]


def test_given_runs_with_and_without_scores() -> None:
    rejects = Rejects()
    lines = [
        ("q1", "p1", None), ("q1", "p2", None), ("q1", "p3", None), ("q2", "p1", "-1.5"), ("q2", "p2", "2e1"),
        ("q2", "p3", "high"), ("q2", "p4", ""), ("q2", "", "1"), ("q2", "p5", "nan"), ("q2", "p6", "+3."),
    ]  # fmt: skip
    found = tuples(raw(run=lines).candidates(rejects), GIVEN)
    assert [row[:3] for row in found] == [
        ("q1", "p1", 0.0), ("q1", "p2", -1.0), ("q1", "p3", -2.0), ("q2", "p1", -1.5), ("q2", "p2", 20.0), ("q2", "p6", 3.0),
    ]  # fmt: skip
    assert found[-1][3:] == ("test", "run.tsv", 10)
    assert reasons(rejects) == [
        (6, "the score is no number"),
        (7, "the score is no number"),
        (8, "no pid"),
        (9, "the score is no number"),
    ]


def test_files_without_a_row_are_named() -> None:
    with pytest.raises(BadInput, match=r"^passages\.tsv: no passages in it$"):
        passages(raw())
    with pytest.raises(BadInput, match=r"^queries\.tsv: no queries with a judgment in it$"):
        queries(raw(queries=[("q1", "unjudged")]))
    counted = Rejects()
    counted.accept(5)
    with pytest.raises(BadInput, match="no passages in it"):
        passages(raw(), counted)


MSMARCO = {
    "collection.tsv": "1\tone\n2\ttwo\n",
    "queries.train.tsv": "10\tq\n",
    "queries.dev.tsv": "11\tq\n",
    "qrels.train.tsv": "10\t0\t1\t1\n",
    "qrels.dev.small.tsv": "11\t0\t1\t1\n",
}
TABLES = ("passages", "queries", "qrels", "candidates")


def digests(folder: Path, **settings) -> dict[str, str]:
    source = PreparedSource(MsMarcoSource(MsMarcoSettings(folder=str(folder), **{"tests": (), **settings})))
    return {name: source.digest(name) for name in TABLES}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in TABLES if before[name] != after[name]}


def test_digests_are_those_of_the_content_wherever_it_lies(tmp_path: Path) -> None:
    first = write(tmp_path / "one", MSMARCO)
    second = shutil.copytree(first, tmp_path / "two")
    os.utime(second / "collection.tsv", (1, 1))
    before = digests(first)
    assert digests(second) == before
    write(second, {"collection.tsv": "1\tone\n2\tTWO\n"})
    assert changed(before, digests(second)) == {"passages"}
    write(second, {"collection.tsv": MSMARCO["collection.tsv"], "qrels.train.tsv": "10\t0\t2\t1\n"})
    assert changed(before, digests(second)) == {"queries", "qrels"}
    write(second, {"qrels.train.tsv": MSMARCO["qrels.train.tsv"], "queries.dev.tsv": "11\tother\n"})
    assert changed(before, digests(second)) == {"queries"}


def test_digests_follow_the_settings_that_change_a_table(tmp_path: Path) -> None:
    folder = write(tmp_path, MSMARCO | {
        "msmarco-test2019-queries.tsv": "20\tq\n", "2019qrels-pass.txt": "20 Q0 1 3\n", "run.trec": "20 Q0 1 1 2.0 x\n",
    })  # fmt: skip
    before = digests(folder)
    assert changed(before, digests(folder, tests=("dl19",))) == {"queries", "qrels", "candidates"}
    assert changed(before, digests(folder, max_train_queries=1)) == {"queries", "qrels", "candidates"}
    assert changed(before, digests(folder, repair_encoding=True)) == {"passages"}
    tested = digests(folder, tests=("dl19",))
    assert "candidates" in changed(tested, digests(folder, tests=("dl19",), runs={"dl19": "run.trec"}))


def test_a_users_passages_do_not_depend_on_how_the_rest_is_read(tmp_path: Path) -> None:
    write(tmp_path, {"passages.tsv": "pid\ttext\nx\tx\n", "queries.tsv": "q", "qrels.tsv": "q"})
    base = FilesSettings(folder=str(tmp_path))

    def digest(table: str, **changes) -> str:
        return PreparedSource(FilesSource(dataclasses.replace(base, **changes))).digest(table)

    assert digest("passages", qrels=JudgmentFile(grade="score")) == digest("passages")
    assert digest("qrels", qrels=JudgmentFile(grade="score")) != digest("qrels")
    assert digest("passages", passages=PassageFile(text=("body",))) != digest("passages")
    assert digest("qrels", passages=PassageFile(text=("body",))) == digest("qrels")


def test_a_beir_file_of_judgments_counts_with_its_split(tmp_path: Path) -> None:
    judged = "query-id\tcorpus-id\tscore\nq1\td1\t1\n"
    write(tmp_path / "a", {"qrels/dev.tsv": judged})
    write(tmp_path / "b", {"qrels/test.tsv": judged})
    one, two = (PreparedSource(BeirSource(BeirSettings(folder=str(tmp_path / name)))) for name in "ab")
    assert one.digest("qrels") != two.digest("qrels")
