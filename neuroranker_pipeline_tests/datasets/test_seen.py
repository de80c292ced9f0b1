from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroranker_pipeline.datasets import seen as seen_module
from neuroranker_pipeline.datasets.seen import SeenIds


@given(st.lists(st.lists(st.sampled_from([f"p{n}" for n in range(40)] + ["", "é"]), max_size=30), max_size=8))
def test_as_a_python_set_would(batches: list[list[str]]) -> None:
    known: set[str] = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seen_module, "SLOTS", 2)  # so that the table must grow, and keys meet
        seen = SeenIds()
        for batch in batches:
            expected = []
            for identifier in batch:
                expected.append(identifier not in known)
                known.add(identifier)
            assert seen.first_time(pa.array(batch, pa.string())).tolist() == expected


def test_many_ids_in_little_memory() -> None:
    seen = SeenIds()
    for new in (True, False):
        for start in range(0, 300_000, 30_000):
            ids = pa.array([f"a rather long document id, number {n}" for n in range(start, start + 30_000)])
            assert seen.first_time(ids).tolist() == [new] * 30_000
    assert seen._table.nbytes <= 32 * 300_000


def test_the_hash_that_marks_an_empty_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen_module, "hash", lambda value: 0, raising=False)
    assert np.array_equal(SeenIds().first_time(pa.array(["a", "b"])), [True, False])
