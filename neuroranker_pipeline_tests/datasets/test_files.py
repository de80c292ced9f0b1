from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neuroranker_pipeline.datasets.files import FilesSettings, FilesSource, JudgmentFile, PassageFile, QueryFile
from neuroranker_pipeline.datasets.prepare import PreparedSource
from neuroranker_pipeline.datasets.rejects import Rejects
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline_tests.datasets.raw import passages, qrels, queries, write

BASIC = {
    "passages.tsv": "pid\ttext\np1\tone\np2\ttwo\n",
    "queries.tsv": "text\tqid\tpart\na\tq1\ttrain\nb\tq2\tdev\nc\t q3 \t test\nd\tq4\tgate\ne\tq5\t\n",
    "qrels.tsv": "qid\tpid\tlabel\nq1\tp1\t2\nq2\tp1\t1\n q3\tp2\t1\nq4\tp1\t0\nq5\tp2\t1\n",
}
SPLITS = [("q1", "a", "train"), ("q2", "b", "dev"), ("q3", "c", "test"), ("q4", "d", "gate"), ("q5", "e", "train")]


def source(folder: Path, **settings) -> PreparedSource:
    return PreparedSource(FilesSource(FilesSettings(folder=str(folder), **settings)))


def test_splits_named_by_the_queries(tmp_path: Path) -> None:
    found = source(write(tmp_path, BASIC), queries=QueryFile(split="part"), qrels=JudgmentFile(grade="label"))
    assert passages(found) == [("p1", "one"), ("p2", "two")]
    assert queries(found) == SPLITS
    assert qrels(found) == [
        ("q1", "p1", 2, "train"), ("q2", "p1", 1, "dev"), ("q3", "p2", 1, "test"), ("q4", "p1", 0, "gate"),
        ("q5", "p2", 1, "train"),
    ]  # fmt: skip


def test_splits_named_by_the_judgments(tmp_path: Path) -> None:
    judged = "qid\tpid\tsplit\n" + "".join(f"{qid}\tp1\t{split}\n" for qid, _, split in SPLITS)
    found = source(write(tmp_path, BASIC | {"qrels.tsv": judged}), qrels=JudgmentFile(split="split"))
    assert queries(found) == SPLITS
    assert {grade for _, _, grade, _ in qrels(found)} == {1}, "without a grade every judged passage is relevant"


def test_splits_named_by_no_one_are_carved(tmp_path: Path) -> None:
    numbers = range(300)
    write(tmp_path, BASIC | {
        "queries.tsv": "qid\ttext\n" + "".join(f"{n}\tquery {n}\n" for n in numbers),
        "qrels.tsv": "qid\tpid\n" + "".join(f"{n}\tp1\n" for n in numbers),
    })  # fmt: skip
    found = source(tmp_path)
    split = {qid: split for qid, _, split in queries(found)}
    assert set(split.values()) == {"train", "dev", "gate", "test"}
    assert {qid: split for qid, _, _, split in qrels(found)} == split


def test_named_test_splits(tmp_path: Path) -> None:
    named = BASIC["queries.tsv"].replace(" test", "test-law").replace("gate", "test-tax")
    folder = write(tmp_path, BASIC | {"queries.tsv": named})
    found = source(folder, queries=QueryFile(split="part"), tests=("test-law", "test-tax"))
    assert {split for _, _, split in queries(found)} >= {"test-law", "test-tax"}
    with pytest.raises(BadInput, match="split 'test-law' of query q3: expected train, dev, gate, test "):
        queries(source(folder, queries=QueryFile(split="part")))


def test_every_format_and_several_files_by_pattern(tmp_path: Path) -> None:
    asked = "".join(f'{{"qid": "{qid}", "text": "{text}", "part": "{split}"}}\n' for qid, text, split in SPLITS)
    write(tmp_path, BASIC | {
        "docs/b.jsonl": '{"key": "p2", "head": "Second", "body": "two"}\n{"key": "p3", "body": "three"}\n',
        "docs/c.tsv.gz": "key\tbody\thead\np4\tfour\tFourth\n",
        "queries.jsonl": asked,
        "docs/notes.txt": "not named by the pattern",
    })  # fmt: skip
    pq.write_table(pa.table({"key": ["p1"], "head": ["First"], "body": ["one"]}), tmp_path / "docs" / "a.parquet")
    pq.write_table(pa.table({"qid": ["q1"], "pid": ["p1"], "label": [2.0]}), tmp_path / "j.parquet")
    found = source(
        tmp_path,
        passages=PassageFile("docs/[abc].*", "key", ("head", "body")),
        queries=QueryFile("queries.jsonl", split="part"),
        qrels=JudgmentFile("j.parquet", grade="label"),
    )
    assert passages(found) == [("p1", "First one"), ("p2", "Second two"), ("p3", "three"), ("p4", "Fourth four")]
    assert queries(found) == SPLITS[:1]
    assert qrels(found) == [("q1", "p1", 2, "train")]


def test_ids_are_unique_across_files(tmp_path: Path) -> None:
    write(tmp_path, {"a.tsv": "pid\ttext\n1\tone\n", "b.tsv": "pid\ttext\n2\ttwo\n1\tagain\n"})
    rejects = Rejects()
    assert passages(source(tmp_path, passages=PassageFile("?.tsv")), rejects) == [("1", "one"), ("2", "two")]
    with pytest.raises(BadInput, match=r"b\.tsv:3: repeated pid \('1'\)"):
        rejects.demand()


def test_missing_files_and_columns(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r": no file passages\.tsv there; put it there, or name another in data"):
        source(tmp_path).digest("passages")
    write(tmp_path, BASIC)
    with pytest.raises(BadInput, match=r"passages\.tsv:1: no column body in the header \(pid, text\)"):
        passages(source(tmp_path, passages=PassageFile(text=("text", "body"))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tests": ("dev",)}, "^tests must be test or test-<name> of letters"),
        ({"tests": ("test-",)}, "^tests must be"),
        ({"tests": ()}, "^tests must be at least one split"),
        ({"queries": QueryFile(split="a"), "qrels": JudgmentFile(split="b")}, r"^qrels\.split must be left out"),
    ],
)
def test_bad_settings_name_the_field(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FilesSettings(**settings)


@pytest.mark.parametrize("kind", [PassageFile, QueryFile, JudgmentFile])
@pytest.mark.parametrize("file", ["", "/etc/passwd"])
def test_a_file_is_named_below_the_folder(kind: type, file: str) -> None:
    with pytest.raises(ValueError, match=r"^file must be a name or pattern below data\.folder"):
        kind(file=file)


def test_a_passage_needs_a_text_column() -> None:
    with pytest.raises(ValueError, match=r"^text must be at least one column"):
        PassageFile(text=())


def test_titles_are_the_first_of_two_text_columns(tmp_path: Path) -> None:
    both = {"passages.tsv": "pid\ttext\thead\np1\tone\tA title\np2\ttwo\t\n"}
    found = source(write(tmp_path, BASIC | both), passages=PassageFile(text=("head", "text")))
    assert [row for batch in found.titles() for row in batch.to_pylist()] == [{"pid": "p1", "text": "A title"}]
    with pytest.raises(BadInput, match=r"data\.passages\.text: titles as queries need two columns"):
        next(source(tmp_path).titles())


def test_passages_alone(tmp_path: Path) -> None:
    found = source(write(tmp_path, {"passages.tsv": BASIC["passages.tsv"]}), queries=None, qrels=None)
    assert passages(found) == [("p1", "one"), ("p2", "two")]
    assert queries(found) == qrels(found) == []
    assert found.digest("queries") != found.digest("passages")
    with pytest.raises(ValueError, match="qrels must be null where queries is null"):
        FilesSettings(folder="x", qrels=None)
