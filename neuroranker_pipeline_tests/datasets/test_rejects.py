from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from neuroranker_pipeline.datasets import rejects as rejects_module
from neuroranker_pipeline.datasets.rejects import REJECTED, REJECTS, Rejects
from neuroranker_pipeline.errors import BadInput


def test_the_message_names_the_first_row_the_counts_and_the_setting() -> None:
    rejects = Rejects(0.01)
    rejects.accept(197)
    rejects.add("b.tsv", 9, "no text")
    rejects.add("a.tsv", 70, "no text", "later line", "70")
    rejects.add("a.tsv", 7, "repeated pid", "p7", "p7")
    with pytest.raises(BadInput) as caught:
        rejects.demand()
    assert str(caught.value) == (
        "a.tsv:7: repeated pid ('p7'); 3 of 200 rows cannot be used (2 no text, 1 repeated pid), and "
        "data.max_reject_share allows 1.00%: mend the file, or raise the share"
    )


def test_the_share_may_be_reached_and_not_passed() -> None:
    rejects = Rejects(0.01)
    rejects.accept(99)
    rejects.demand()
    rejects.add("f", 1, "no text")
    rejects.demand()
    rejects.add("f", 2, "no text")
    with pytest.raises(BadInput, match="f:1"):
        rejects.demand()


def test_without_a_share_one_row_is_too_many_and_none_is_fine() -> None:
    rejects = Rejects()
    rejects.demand()
    rejects.accept(1_000_000)
    rejects.demand()
    rejects.add("f", 1, "no text")
    with pytest.raises(BadInput, match="1 of 1,000,001 rows"):
        rejects.demand()


def test_the_table_is_in_order_and_bounded_and_all_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejects_module, "KEPT", 3)
    rejects = Rejects()
    for line, excerpt in ((9, "x" * 500), (10, "b"), (2, "c"), (1, "d")):
        rejects.add("f", line, "no text", excerpt)
    assert rejects.count == rejects.total == 4
    assert rejects.table().schema == REJECTS
    assert rejects.table()["line"].to_pylist() == [2, 9, 10]
    assert rejects.table()["excerpt"].to_pylist() == ["c", "x" * 80, "b"]


def test_a_hopeless_source_is_given_up_and_one_that_recovers_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejects_module, "HOPELESS", 10)
    rejects = Rejects(0.4)
    for line in range(1, 10):
        rejects.add("f", line, "no text")
    rejects.accept(0)
    rejects.add("f", 10, "no text")
    with pytest.raises(BadInput, match="f:1: no text; 10 of 10 rows cannot be used"):
        rejects.accept(0)
    rejects.accept(20)
    Rejects(1.0).accept(0)


def test_written_below_the_folder_and_only_when_there_are_some(tmp_path: Path) -> None:
    rejects = Rejects()
    rejects.write(tmp_path)
    assert list(tmp_path.iterdir()) == []
    rejects.add("f", 3, "no text", "shown", "id")
    rejects.write(tmp_path)
    assert pq.read_table(tmp_path / REJECTED).to_pylist() == [
        {"file": "f", "line": 3, "id": "id", "reason": "no text", "excerpt": "shown"}
    ]
    assert list(tmp_path.glob("*.parquet")) == [], "it must not be read with the artifact's own files"
