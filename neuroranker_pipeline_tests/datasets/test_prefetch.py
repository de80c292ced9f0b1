from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroranker_pipeline.datasets.prefetch import prefetched


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@given(st.lists(st.one_of(st.none(), st.integers()), max_size=20), st.integers(1, 5))
def test_the_same_items_in_the_same_order(items: list[int | None], ahead: int) -> None:
    assert list(prefetched(iter(items), ahead)) == items
    assert threads() == []


def test_an_error_comes_where_the_item_would_have() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("line 3")

    got = []
    with pytest.raises(ValueError, match="line 3"):
        for item in prefetched(items()):
            got.append(item)
    assert got == [1, 2]
    assert threads() == []


def test_it_runs_in_another_thread_and_no_further_ahead_than_asked() -> None:
    made: list[int] = []
    makers: set[str] = set()

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            makers.add(threading.current_thread().name)
            yield number

    stream = prefetched(items(), ahead=2)
    for expected in range(5):
        assert next(stream) == expected
    stream.close()  # type: ignore[attr-defined]
    assert makers == {"prefetch"}
    assert len(made) <= 5 + 2 + 1, "at most two waiting, and one in the making"
    assert threads() == []


def test_leaving_early_closes_the_source() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    stream = prefetched(items())
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    del stream
    assert closed.wait(10)
    assert threads() == []
