from __future__ import annotations

import json
from pathlib import Path

import pytest

from neuroranker_pipeline.datasets.beir import BeirSettings, BeirSource
from neuroranker_pipeline.datasets.prepare import PreparedSource
from neuroranker_pipeline.datasets.rejects import Rejects
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline_tests.datasets.raw import passages, qrels, queries, reasons, write

DOCUMENTS = [
    {"_id": "d1", "title": "A title", "text": "A text.", "metadata": {}},
    {"_id": "d2", "title": "", "text": "No title."},
    {"_id": "d3", "text": "Not even an empty one."},
    {"_id": 4, "title": "Only a title", "text": ""},
    {"_id": "d5", "title": "", "text": ""},
]
ASKED = [{"_id": qid, "text": f"text of {qid}", "metadata": {}} for qid in ("q1", "q2", "q3", "q9")]
HEAD = "query-id\tcorpus-id\tscore\n"


def jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(
        tmp_path / "small",
        {
            "corpus.jsonl": jsonl(DOCUMENTS),
            "queries.jsonl": jsonl(ASKED),
            "qrels/train.tsv": HEAD + "q1\td1\t1\n",
            "qrels/dev.tsv": HEAD + "q2\td2\t2\nq2\td3\t0\n",
            "qrels/test.tsv": HEAD + "q3\t4\t1\nq1\td2\t1\n",
        },
    )


def source(folder: Path, **settings) -> PreparedSource:
    return PreparedSource(BeirSource(BeirSettings(folder=str(folder), **settings)))


def test_titles_open_the_text_unless_left_out(folder: Path) -> None:
    rejects = Rejects()
    assert passages(source(folder), rejects) == [
        ("d1", "A title A text."), ("d2", "No title."), ("d3", "Not even an empty one."), ("4", "Only a title"),
    ]  # fmt: skip
    assert reasons(rejects) == [(5, "no text")]
    assert passages(source(folder, titles=False))[0] == ("d1", "A text.")
    assert [pid for pid, _ in passages(source(folder, titles=False))] == ["d1", "d2", "d3"]


def test_judgments_by_file_and_their_queries(folder: Path) -> None:
    found = source(folder)
    assert found.name == "beir/small"
    assert queries(found) == [("q1", "text of q1", "test"), ("q2", "text of q2", "dev"), ("q3", "text of q3", "test")]
    assert qrels(found) == [
        ("q2", "d2", 2, "dev"),
        ("q2", "d3", 0, "dev"),
        ("q3", "4", 1, "test"),
        ("q1", "d2", 1, "test"),
    ]
    assert list(found.candidates(Rejects())) == []


def test_packed_files_are_the_same(folder: Path, tmp_path: Path) -> None:
    packed = write(
        tmp_path / "packed" / "small",
        {f"{path.relative_to(folder)}.gz": path.read_bytes() for path in folder.rglob("*.*") if path.is_file()},
    )
    for read in (queries, qrels, passages):
        assert read(source(packed)) == read(source(folder))


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("corpus.jsonl", r"small: no corpus\.jsonl \(or corpus\.jsonl\.gz\) there; is this a BEIR folder\?"),
        ("queries.jsonl", r"small: no queries\.jsonl"),
        ("qrels/*.tsv", r"small/qrels: no train\.tsv, dev\.tsv or test\.tsv there"),
    ],
)
def test_one_line_says_what_is_missing(folder: Path, gone: str, message: str) -> None:
    for path in folder.glob(gone):
        path.unlink()
    with pytest.raises(BadInput, match=message):
        for table in ("passages", "queries", "qrels"):
            source(folder).digest(table)


def test_a_judgment_file_with_another_header(folder: Path) -> None:
    write(folder, {"qrels/train.tsv": "q1\t0\td1\t1\n"})
    with pytest.raises(BadInput, match=r"train\.tsv:1: no column query-id, corpus-id, score in the header"):
        qrels(source(folder))


def test_titles(folder: Path) -> None:
    found = PreparedSource(BeirSource(BeirSettings(folder=str(folder))))
    titles = {row["pid"]: row["text"] for batch in found.titles() for row in batch.to_pylist()}
    assert titles == {"d1": "A title", "4": "Only a title"}


def test_titles_are_repaired_and_counted_once_as_their_passages_are(folder: Path) -> None:
    rows = [
        {"_id": "d1", "title": "La mar\u00c3\u00a9e haute", "text": "monte."},
        {"_id": "d1", "title": "B", "text": "b"},
    ]
    (folder / "corpus.jsonl").write_text(jsonl(rows))
    found = source(folder, repair_encoding=True, max_reject_share=0.9)
    assert passages(found, Rejects(0.9)) == [("d1", "La mar\u00e9e haute monte.")]
    titles = [row for batch in found.titles() for row in batch.to_pylist()]
    assert titles == [{"pid": "d1", "text": "La mar\u00e9e haute"}]
