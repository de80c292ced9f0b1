from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from neuroranker_pipeline.datasets.msmarco import WHOLE, MsMarcoSettings, MsMarcoSource
from neuroranker_pipeline.datasets.prepare import PreparedSource
from neuroranker_pipeline.datasets.rejects import Rejects
from neuroranker_pipeline.datasets.tables import GIVEN
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline_tests.datasets.raw import archive, passages, qrels, queries, reasons, tuples, write

COLLECTION = "0\tThe first passage.\n7\tAnother, with a\ttab.\n12\tThe last one.\n"
PASSAGES = [("0", "The first passage."), ("7", "Another, with a\ttab."), ("12", "The last one.")]
QUERIES = {
    "queries.train.tsv": "100\twhat is first\n101\tnobody judged this\n",
    "queries.dev.tsv": "".join(f"{n}\tdev {n}\n" for n in range(200, 230)),
    "queries.eval.tsv": "300\tnot judged by anyone\n",
}
QRELS = {
    "qrels.train.tsv": "100\t0\t0\t1\n",
    "qrels.dev.small.tsv": "".join(f"{n}\t0\t7\t1\n" for n in range(200, 220)),
    "qrels.dev.tsv": "".join(f"{n}\t0\t7\t1\n" for n in range(200, 230)),
}
DL19 = {
    "msmarco-test2019-queries.tsv.gz": "400\ttested\n401\tnot judged\n",
    "2019qrels-pass.txt": "400 Q0 7 3\n400 Q0 12 0\n400 Q0 99999 2\n",
}


def source(folder: Path, *tests: str, **settings) -> PreparedSource:
    return PreparedSource(MsMarcoSource(MsMarcoSettings(folder=str(folder), tests=tests, **settings)))


def tables(found: PreparedSource) -> tuple[list[tuple], ...]:
    return passages(found), queries(found), qrels(found)


def packed(files: dict[str, str], *more: str) -> list[tuple[str, bytes]]:
    return [(name, text.encode()) for name, text in files.items()] + [(name, b"?") for name in more]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return write(tmp_path / "plain", {"collection.tsv": COLLECTION} | QUERIES | QRELS)


def test_plain_files(plain: Path) -> None:
    rows, asked, judged = tables(source(plain))
    assert rows == PASSAGES
    assert ("100", "what is first", "train") in asked
    split = {qid: split for qid, _, split in asked}
    assert set(split.values()) == {"train", "dev", "gate", "test"}
    assert set(split) == {"100", *map(str, range(200, 220))}, "the small development set is preferred"
    assert sorted(judged) == sorted((qid, "0" if qid == "100" else "7", 1, split[qid]) for qid in split)


def test_every_way_the_files_are_published_gives_the_same_tables(plain: Path, tmp_path: Path) -> None:
    expected = tables(source(plain))
    gz = write(
        tmp_path / "gz",
        {f"{name}.gz": text for name, text in ({"collection.tsv": COLLECTION} | QUERIES | QRELS).items()},
    )
    tars = write(tmp_path / "tars", QRELS)
    archive(tars / "collection.tar.gz", *packed({"collection.tsv": COLLECTION}))
    archive(tars / "queries.tar.gz", *packed(QUERIES))
    whole = tmp_path / "whole"
    whole.mkdir()
    asked = {name.replace("dev.tsv", "dev.small.tsv"): text for name, text in QUERIES.items()}  # as it is published
    archive(whole / WHOLE, *packed({"collection.tsv": COLLECTION} | asked | QRELS, "._collection.tsv"))
    part = write(tmp_path / "part", {"qrels.train.tsv": QRELS["qrels.train.tsv"]})
    archive(part / WHOLE, *packed({"collection.tsv": COLLECTION} | asked, "qrels.dev.small.tsv.bak"))
    write(part, {"qrels.dev.small.tsv": QRELS["qrels.dev.small.tsv"]})
    for folder in (gz, tars, whole, part):
        assert tables(source(folder)) == expected, folder.name


def test_the_large_development_set_where_there_is_no_small_one(plain: Path) -> None:
    (plain / "qrels.dev.small.tsv").unlink()
    assert {qid for qid, _, _ in queries(source(plain))} == {"100", *map(str, range(200, 230))}


def test_a_trec_dl_test_set_with_its_graded_judgments(plain: Path) -> None:
    write(plain, DL19)
    found = source(plain, "dl19")
    assert [row for row in qrels(found) if row[3] == "test-dl19"] == [
        ("400", "7", 3, "test-dl19"),
        ("400", "12", 0, "test-dl19"),
        ("400", "99999", 2, "test-dl19"),
    ]
    asked = queries(found)
    assert [row for row in asked if row[2].startswith("test")] == [("400", "tested", "test-dl19")]
    assert {split for _, _, split in asked} == {"train", "dev", "gate", "test-dl19"}, "no test split is carved"
    settings = found.raw.settings
    assert settings.test_splits == ("test-dl19",)
    assert [settings.relevant_from(split) for split in ("dev", "test-dl19", "test")] == [1, 2, 1]


def test_given_runs_of_both_kinds(plain: Path) -> None:
    write(plain, DL19 | {
        "runs/bm25.trec": "400 Q0 7 1 12.5 bm25\n400 Q0 12 2 11 bm25\n400 Q0 0 3\n",
        "msmarco-passagetest2019-top1000.tsv.gz": "400\t12\ttested\tThe last one.\n400\t7\ttested\tAnother\twith\n",
    })  # fmt: skip
    rejects = Rejects()
    trec = source(plain, "dl19", runs={"dl19": "runs/bm25.trec"})
    assert [row[:3] for row in tuples(trec.candidates(rejects), GIVEN)] == [("400", "7", 12.5), ("400", "12", 11.0)]
    assert reasons(rejects) == [(3, "expected qid Q0 pid rank score tag")]
    for name in ("msmarco-passagetest2019-top1000.tsv.gz", "msmarco-passagetest2019-top1000.tsv"):
        top = source(plain, "dl19", runs={"dl19": name})
        assert [row[:3] for row in tuples(top.candidates(Rejects()), GIVEN)] == [("400", "12", 0.0), ("400", "7", -1.0)]
    assert tuples(source(plain, "dl19").candidates(Rejects()), GIVEN) == []


@pytest.mark.parametrize(
    ("gone", "wanted"),
    [
        ("collection.tsv", f"none of collection.tsv, collection.tar.gz, {WHOLE} is there"),
        ("queries.train.tsv", f"none of queries.train.tsv, queries.tar.gz, {WHOLE} is there"),
        ("qrels.train.tsv", f"none of qrels.train.tsv, {WHOLE} is there"),
        ("2019qrels-pass.txt", "none of 2019qrels-pass.txt is there"),
        ("run.trec", "none of run.trec is there"),
    ],
)
def test_one_line_says_which_file_to_put_where(plain: Path, gone: str, wanted: str) -> None:
    write(plain, DL19 | {"run.trec": "400 Q0 7 1 12.5 bm25\n"})
    (plain / gone).unlink()
    found = source(plain, "dl19", runs={"dl19": "run.trec"})
    with pytest.raises(BadInput) as caught:
        for table in ("passages", "queries", "qrels", "candidates"):
            found.digest(table)
    assert str(caught.value).startswith(f"{plain}: {wanted} (plain or .gz); put it there, or have")
    assert "\n" not in str(caught.value)


def test_an_archive_without_the_file_and_a_folder_that_is_not_there(plain: Path, tmp_path: Path) -> None:
    (plain / "queries.dev.tsv").unlink()
    archive(plain / WHOLE, ("queries.train.tsv", b"100\tother\n"))
    with pytest.raises(BadInput, match=r"tar\.gz: no queries\.dev\.small\.tsv in this archive"):
        queries(source(plain))
    with pytest.raises(BadInput, match=r"absent: none of collection\.tsv"):
        passages(source(tmp_path / "absent"))


def test_bad_lines_name_the_archive_member_and_line(tmp_path: Path) -> None:
    archive(tmp_path / "collection.tar.gz", ("collection.tsv", b"0\tone\nno tab\n\xff\xfe\n"))
    rejects = Rejects()
    assert passages(source(tmp_path), rejects) == [("0", "one")]
    with pytest.raises(
        BadInput, match=r"collection\.tar\.gz\(collection\.tsv\):2: expected pid<TAB>text \('no tab'\); 2 of 3"
    ):
        rejects.demand()


def test_a_damaged_archive_of_queries_is_named(plain: Path) -> None:
    (plain / "queries.train.tsv").unlink()
    (plain / "queries.tar.gz").write_bytes(gzip.compress(b"x" * 10_000)[:-3])
    with pytest.raises(BadInput, match=r"queries\.tar\.gz: d"):
        queries(source(plain))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tests": ("dl21",)}, "^tests must be among dl19, dl20, got 'dl21'"),
        ({"tests": ("dl19",), "runs": {"dl20": "x"}}, r"^runs must be for one of the tests \(dl19\), got 'dl20'"),
    ],
)
def test_bad_settings_name_the_field(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MsMarcoSettings(**settings)
