from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from neuroranker_pipeline.datasets.irds import IrDatasetsSettings, IrDatasetsSource
from neuroranker_pipeline.datasets.prepare import PreparedSource
from neuroranker_pipeline.datasets.rejects import Rejects
from neuroranker_pipeline.errors import BadInput, NotReady
from neuroranker_pipeline_tests.datasets.raw import passages, qrels, queries, reasons, write


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library's own classes over small local files, and a data set whose host does not answer."""
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    import ir_datasets
    from ir_datasets.datasets.base import Dataset
    from ir_datasets.formats import TrecQrels, TsvDocs, TsvQueries
    from ir_datasets.util import Cache, LocalDownload, RequestsDownload

    write(tmp_path, {
        "docs.tsv": "d1\tone ☃\nd2\ttwo\nd3\t \n",
        "train.tsv": "q1\tfirst\nq2\tsecond\n", "train.qrels": "q1 0 d1 1\nq2 0 d2 2\n",
        "test.tsv": "t1\ttested\n", "test.qrels": "t1 0 d2 3\nt1 0 gone 1\n",
    })  # fmt: skip
    local = {path.name: LocalDownload(path) for path in tmp_path.glob("*.*")}
    docs = TsvDocs(local["docs.tsv"])
    away = Cache(RequestsDownload("http://127.0.0.1:9/docs.tsv", tries=1), tmp_path / "away.tsv")
    sets = {
        "local": Dataset(docs),
        "local/train": Dataset(docs, TsvQueries(local["train.tsv"]), TrecQrels(local["train.qrels"], {})),
        "local/test": Dataset(docs, TsvQueries(local["test.tsv"]), TrecQrels(local["test.qrels"], {})),
        "local/away": Dataset(TsvDocs(away), TsvQueries(away), TrecQrels(away, {})),
        "local/queries": Dataset(TsvQueries(local["train.tsv"])),
    }
    registered = dict(ir_datasets.registry._registered)
    for name, dataset in sets.items():
        ir_datasets.registry.register(name, dataset)
    yield
    ir_datasets.registry._registered.clear()
    ir_datasets.registry._registered.update(registered)


def source(**settings) -> PreparedSource:
    given = {"dataset": "local", "train": "local/train", **settings}
    return PreparedSource(IrDatasetsSource(IrDatasetsSettings(**given)))


@pytest.mark.usefixtures("catalogue")
def test_documents_queries_and_judgments() -> None:
    rejects = Rejects()
    found = source(tests={"own": "local/test"})
    assert passages(found, rejects) == [("d1", "one ☃"), ("d2", "two")]
    assert reasons(rejects) == [(3, "no text")]
    assert rejects.table()["file"].to_pylist() == ["ir_datasets:local/docs"]
    assert set(queries(found)) >= {("t1", "tested", "test-own")}
    assert {qid for qid, _, _ in queries(found)} == {"q1", "q2", "t1"}
    assert [row for row in qrels(found) if row[0] == "t1"] == [
        ("t1", "d2", 3, "test-own"),
        ("t1", "gone", 1, "test-own"),
    ]
    assert list(found.candidates(rejects)) == []
    assert found.raw.settings.test_splits == ("test-own",)


@pytest.mark.usefixtures("catalogue")
def test_an_unknown_id_and_one_that_lacks_a_part() -> None:
    with pytest.raises(BadInput, match=r"^ir_datasets has no data set 'locla'; see https://ir-datasets.com$"):
        passages(source(dataset="locla"))
    with pytest.raises(BadInput, match=r"^ir_datasets local: this data set has no qrels; name one that has"):
        qrels(source(train="local"))
    with pytest.raises(BadInput, match=r"^ir_datasets local/queries: this data set has no docs"):
        passages(source(dataset="local/queries"))
    with pytest.raises(BadInput, match=r"its documents have no field body; data\.text may name doc_id, text$"):
        passages(source(text=("body",)))


@pytest.mark.usefixtures("catalogue")
def test_what_cannot_be_downloaded_ends_in_one_line(tmp_path: Path) -> None:
    for read, settings in (
        (passages, {"dataset": "local/away"}),
        (qrels, {"train": "local/away"}),
        (queries, {"dev": "local/away"}),
    ):
        with pytest.raises(NotReady, match=r"^ir_datasets local/away: cannot be had here: ") as caught:
            read(source(**settings))
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("away*")), "nothing half-fetched"


def test_without_the_library_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(NotReady, match=r"^ir_datasets is not installed: run pip install"):
        passages(source())


def test_digests_follow_the_ids_that_a_table_is_made_of() -> None:
    one, other = source(), source(tests={"own": "local/test"})
    assert one.digest("passages") == other.digest("passages") != source(text=("text",)).digest("passages")
    assert one.digest("qrels") != other.digest("qrels")


def test_a_document_needs_a_field() -> None:
    with pytest.raises(ValueError, match=r"^text must be at least one field"):
        IrDatasetsSettings(dataset="local", train="local/train", text=())
