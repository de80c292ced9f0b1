from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from neuroranker_pipeline.datasets.files import FilesSettings, QueryFile
from neuroranker_pipeline.datasets.held_out import SAME, TOO_NEAR
from neuroranker_pipeline.datasets.joined import OF_REPEATED, JoinedSource, check_name, collection_name, collection_of
from neuroranker_pipeline.datasets.rejects import Rejects
from neuroranker_pipeline.datasets.source import Source, open_source
from neuroranker_pipeline.datasets.tables import PASSAGES
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline_tests.datasets.raw import passages, qrels, queries, write

HEADS = ("pid\ttext\n", "qid\ttext\tsplit\n", "qid\tpid\n")
MAIN = ("1\tone\n2\ttwo\n", "10\ta\ttrain\n11\tb\tdev\n12\tc\tgate\n13\td\ttest\n", "10\t1\n11\t1\n12\t1\n13\t2\n")
OTHER = ("1\tuno\n", "10\tx\ttrain\n11\ty\tdev\n12\tz\ttest\n", "10\t1\n11\t1\n12\t1\n")


def settings(folder: Path, name: str, *tables: str) -> FilesSettings:
    contents = zip(("passages.tsv", "queries.tsv", "qrels.tsv"), HEADS, tables, strict=True)
    write(folder / name, {file: head + body for file, head, body in contents})
    return FilesSettings(folder=name, queries=QueryFile(split="split"))


@pytest.fixture
def joined(tmp_path: Path) -> Source:
    return open_source(
        settings(tmp_path, "main", *MAIN),
        tmp_path,
        {"nq": settings(tmp_path, "nq", *OTHER), "nq2": settings(tmp_path, "nq2", *OTHER)},
    )


def test_ids_of_the_others_are_prefixed_and_only_their_training_queries_are_used(joined) -> None:
    assert passages(joined) == [("1", "one"), ("2", "two"), ("nq:1", "uno"), ("nq2:1", "uno")]
    assert queries(joined) == [
        ("10", "a", "train"), ("11", "b", "dev"), ("12", "c", "gate"), ("13", "d", "test"),
        ("nq:10", "x", "train"), ("nq2:10", "x", "train"),
    ]  # fmt: skip
    assert qrels(joined) == [
        ("10", "1", 1, "train"), ("11", "1", 1, "dev"), ("12", "1", 1, "gate"), ("13", "2", 1, "test"),
        ("nq:10", "nq:1", 1, "train"), ("nq2:10", "nq2:1", 1, "train"),
    ]  # fmt: skip
    assert list(joined.candidates(Rejects())) == []
    assert joined.name == "files/main + files/nq + files/nq2"
    assert "files/nq: the user's own data" in joined.licence


def test_a_joined_question_that_the_main_collection_holds_out_is_not_learned_from(tmp_path: Path) -> None:
    asked = "1\tB!\ttrain\n2\tA\ttrain\n3\td\ttrain\n4\tfree\ttrain\n"
    other = settings(tmp_path, "nq", "1\tuno\n", asked, "1\t1\n2\t1\n3\t1\n4\t1\n")
    source, rejects = open_source(settings(tmp_path, "main", *MAIN), tmp_path, {"nq": other}), Rejects()
    assert [row for row in queries(source, rejects) if row[0].startswith("nq")] == [
        ("nq:2", "A", "train"),
        ("nq:4", "free", "train"),
    ], "b is dev's, d is test's; a is training's own"
    assert rejects.left_out == {SAME: 2}
    rejects = Rejects()
    assert [row[0] for row in qrels(source, rejects) if row[0].startswith("nq")] == ["nq:2", "nq:4"]
    assert rejects.left_out == {OF_REPEATED: 2}


def test_a_joined_question_near_to_a_carved_one_is_not_learned_from(tmp_path: Path) -> None:
    lines = "".join(f"{n}\tmain question number {n}\n" for n in range(200))
    write(tmp_path / "main", {"passages.tsv": HEADS[0] + "1\tone\n", "queries.tsv": "qid\ttext\n" + lines})
    write(tmp_path / "main", {"qrels.tsv": HEADS[2] + "".join(f"{n}\t1\n" for n in range(200))})
    asked = "".join(f"{n}\tmain question number {n} too\ttrain\n" for n in range(200))
    other = settings(tmp_path, "nq", "1\tuno\n", asked, "".join(f"{n}\t1\n" for n in range(200)))
    source, rejects = open_source(FilesSettings(folder="main"), tmp_path, {"nq": other}), Rejects()
    found = {qid: split for qid, _, split in queries(source, rejects)}
    held = [qid for qid, split in found.items() if split != "train"]
    assert {f"nq:{qid}" for qid in held}.isdisjoint(found)
    assert rejects.left_out.keys() == {TOO_NEAR}
    assert 10 < rejects.left_out[TOO_NEAR] <= len(held), "some are held out by the joined collection itself"
    assert source.carving.splits == {"dev", "gate", "test"}


def test_each_id_belongs_to_one_collection(joined) -> None:
    ids = pa.array([pid for pid, _ in passages(joined)])
    names = ("nq", "nq2")
    assert collection_of(ids, "main", names).to_pylist() == [True, True, False, False]
    assert collection_of(ids, "nq", names).to_pylist() == [False, False, True, False]
    assert collection_of(ids, "nq2", names).to_pylist() == [False, False, False, True]
    assert collection_of(pa.array(["a:1"]), "main", ()).to_pylist() == [True]
    assert [collection_name(pid, names) for pid in ids.to_pylist()] == ["main", "main", "nq", "nq2"]
    assert [collection_name(qid, names) for qid in ("a:1", "nq", ":", "nq:")] == ["main", "main", "main", "nq"]


def test_weights_are_no_part_of_the_data(tmp_path: Path) -> None:
    main, other = settings(tmp_path, "main", *MAIN), settings(tmp_path, "nq", *OTHER)
    plain = open_source(main, tmp_path, {"nq": other})
    weighted = open_source(replace(main, weight=2.0), tmp_path, {"nq": replace(other, weight=0.25)})
    for table in ("passages", "queries", "qrels", "candidates"):
        assert plain.digest(table) == weighted.digest(table)  # type: ignore[arg-type]


def test_titles_are_the_main_collection_s(tmp_path: Path, joined) -> None:
    with pytest.raises(BadInput, match="titles as queries need two columns"):
        next(joined.titles())


def test_a_main_id_that_looks_like_anothers_is_refused(tmp_path: Path) -> None:
    main = settings(tmp_path, "main", "nq:1\tone\n", *MAIN[1:])
    source = open_source(main, tmp_path, {"nq": settings(tmp_path, "nq", *OTHER)})
    with pytest.raises(BadInput, match=r"training_collections\.nq: ids of the main collection begin with 'nq'"):
        passages(source)


def test_digests_follow_every_collection_and_candidates_the_main_one(tmp_path: Path, joined) -> None:
    tables = ("passages", "queries", "qrels", "candidates")
    before = {table: joined.digest(table) for table in tables}
    write(tmp_path, {"nq2/passages.tsv": HEADS[0] + "1\tdue\n"})
    assert [table for table in tables if joined.digest(table) != before[table]] == ["passages"]
    write(tmp_path, {"nq2/qrels.tsv": HEADS[2] + "10\t2\n"})
    assert [table for table in tables if joined.digest(table) != before[table]] == ["passages", "queries", "qrels"]


def test_an_empty_collection_among_others_is_named(tmp_path: Path) -> None:
    empty = settings(tmp_path, "nq", "", *OTHER[1:])
    source = open_source(settings(tmp_path, "main", *MAIN), tmp_path, {"nq": empty})
    with pytest.raises(BadInput, match=r"nq/passages\.tsv: no passages in it"):
        passages(source)


def test_passages_are_streamed() -> None:
    read: list[str] = []

    class Endless:
        name = licence = "endless"

        def passages(self, rejects: Rejects) -> Iterator[pa.RecordBatch]:
            while True:
                read.append("batch")
                yield pa.record_batch([["1"], ["text"]], schema=PASSAGES)

    stream = JoinedSource(Endless(), {"nq": Endless()}).passages(Rejects())  # type: ignore[arg-type, dict-item]
    next(stream)
    assert read == ["batch"]


@pytest.mark.parametrize("name", ["main", "NQ", "a:b", "", "-a", "a/b", "é"])
def test_names_that_cannot_open_an_id(name: str) -> None:
    check_name("nq-2_x")
    with pytest.raises(ValueError, match=r"^training_collections\..* must be lower-case letters"):
        check_name(name)
