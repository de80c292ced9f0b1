"""The cache of passage vectors: bounded in bytes, least recently used out first, safe between threads."""

from __future__ import annotations

import random
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroranker_pipeline.serving.cache import ENTRY_BYTES, Entry, VectorCache, content_key


def entry(value: float = 0.0, rows: int = 1, dimension: int = 384) -> Entry:
    return Entry(np.full((rows, dimension), value, np.float32), 10, False)


SIZE = entry().nbytes


def test_a_key_is_16_bytes_of_text_and_way_of_reading() -> None:
    keys = {content_key(text, kind) for text in ("a", "b", "é", "") for kind in ("truncate", "windows")}
    assert {len(key) for key in keys} == {16}
    assert len(keys) == 8
    assert content_key("é", "windows") == content_key("\u00e9", "windows")


def test_the_least_recently_used_goes_first() -> None:
    cache = VectorCache(3 * SIZE)
    cache.put({b"a": entry(), b"b": entry(), b"c": entry()})
    assert list(cache.get([b"a"])) == [b"a"]
    cache.put({b"d": entry()})
    assert set(cache.peek([b"a", b"b", b"c", b"d"])) == {b"a", b"c", b"d"}


def test_peek_leaves_no_trace() -> None:
    cache = VectorCache(2 * SIZE)
    cache.put({b"a": entry(), b"b": entry()})
    assert list(cache.peek([b"a", b"x"])) == [b"a"]
    cache.put({b"c": entry()})
    assert set(cache.peek([b"a", b"b", b"c"])) == {b"b", b"c"}
    assert (cache.hits, cache.misses) == (0, 0)


def test_hits_and_misses_are_counted() -> None:
    cache = VectorCache(SIZE)
    cache.put({b"a": entry(1)})
    found = cache.get([b"a", b"b", b"c"])
    assert (cache.hits, cache.misses) == (1, 2)
    assert found[b"a"].vectors[0, 0] == 1


def test_what_is_put_again_counts_once() -> None:
    cache = VectorCache(10 * SIZE)
    cache.put({b"a": entry()})
    cache.put({b"a": entry(rows=3)})
    assert (len(cache), cache.nbytes) == (1, entry(rows=3).nbytes)


def test_one_that_is_too_large_drops_nothing() -> None:
    cache = VectorCache(2 * SIZE)
    cache.put({b"a": entry()})
    cache.put({b"big": entry(rows=64)})
    assert set(cache.peek([b"a", b"big"])) == {b"a"}


def test_no_capacity_keeps_nothing() -> None:
    cache = VectorCache(0)
    cache.put({b"a": entry()})
    assert (len(cache), cache.nbytes, cache.get([b"a"])) == (0, 0, {})


@given(
    capacity=st.integers(0, 8 * SIZE),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(1, 4)), max_size=60),
)
def test_it_does_what_a_plain_list_in_order_of_use_does(capacity: int, steps: list[tuple[bool, int, int]]) -> None:
    cache, model = VectorCache(capacity), []  # (key, rows), the least recently used first
    for put, number, rows in steps:
        key = bytes([number])
        known = [item for item in model if item[0] == key]
        if put and entry(rows=rows).nbytes <= capacity:
            cache.put({key: entry(rows=rows)})
            model = [item for item in model if item[0] != key] + [(key, rows)]
            while sum(entry(rows=item[1]).nbytes for item in model) > capacity:
                del model[0]
        elif not put:
            assert set(cache.get([key])) == {item[0] for item in known}
            model = [item for item in model if item[0] != key] + known
    assert cache.nbytes == sum(entry(rows=item[1]).nbytes for item in model) <= capacity
    assert {key: len(e.vectors) for key, e in cache.peek(map(bytes, ([n] for n in range(10)))).items()} == dict(model)


@pytest.mark.parametrize(("rows", "dimension"), [(1, 384), (1, 64), (5, 384)])
def test_the_bytes_counted_are_about_those_taken(rows: int, dimension: int) -> None:
    cache = VectorCache(2**30)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(2000):
            cache.put({content_key(str(number), "windows"): entry(rows=rows, dimension=dimension)})
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.8 * taken - 2000 * ENTRY_BYTES / 4 < cache.nbytes < 1.25 * taken + 2000 * ENTRY_BYTES / 4


def test_threads_keep_the_count_right() -> None:
    cache = VectorCache(20 * SIZE)

    def work(seed: int) -> int:
        rng, looked = random.Random(seed), 0
        for _ in range(500):
            keys = {bytes([rng.randrange(60)]) for _ in range(rng.randint(1, 8))}
            found = cache.get(keys)
            assert all(e.vectors[0, 0] == key[0] for key, e in found.items())
            cache.put({key: entry(float(key[0])) for key in keys - set(found)})
            looked += len(keys)
        return looked

    with ThreadPoolExecutor(8) as pool:
        looked = sum(pool.map(work, range(8)))
    assert cache.hits + cache.misses == looked
    assert cache.nbytes == len(cache) * SIZE
    assert len(cache) == 20
