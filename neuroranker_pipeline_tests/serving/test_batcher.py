"""The queue that all requests share: who goes first, who shares a run, and what an error reaches."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest

from neuroranker_pipeline.serving.batcher import BATCH_TOKENS, SHORT, Batcher, Work, run_alike, run_size


class Gate:
    """A model whose runs are recorded and, after the first, wait until ``open`` is set; token 13 is an error."""

    def __init__(self) -> None:
        self.runs: list[list[tuple[int, ...]]] = []
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        self.runs.append([tuple(tokens) for tokens in sequences])
        self.entered.set()
        assert self.open.wait(10)
        if any(13 in tokens for tokens in sequences):
            raise ValueError("thirteen")
        return np.array([[sum(tokens), len(tokens)] for tokens in sequences], np.float32)


def work(length: int, token: int = 1) -> Work:
    return Work((token,) * length)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def batcher(gate: Gate) -> Iterator[Batcher]:
    """One worker, which is busy until the gate opens: what is submitted meanwhile queues up."""
    made = Batcher(gate, 1)
    made.submit([Work((5,), alone=True)])
    assert gate.entered.wait(10)
    yield made
    gate.open.set()
    made.close()


def test_each_future_gives_the_vector_of_its_sequence(gate: Gate, batcher: Batcher) -> None:
    works = [work(length, token) for token in (1, 2, 3) for length in (3, 40, 7, 3, 100)]
    futures = batcher.submit(works)
    gate.open.set()
    assert [tuple(f.result(10)) for f in futures] == [(sum(w.tokens), len(w.tokens)) for w in works]
    assert batcher.queued == 0


def test_the_longest_goes_first_and_the_short_share_runs(gate: Gate, batcher: Batcher) -> None:
    assert batcher.submit([]) == []
    one = batcher.submit([work(4, 1), work(50, 1), work(9, 1)])
    other = batcher.submit([work(60, 2), work(4, 2), Work((9,) * 4, alone=True)])
    assert batcher.queued == 6
    gate.open.set()
    wait(one + other, 10)
    lengths = [[len(tokens) for tokens in run] for run in gate.runs[1:]]
    assert lengths == [[50], [9, 9], [4, 4], [60], [4]], "a run of one short sequence is doubled, unless it is alone"


def test_a_run_is_bounded(gate: Gate, batcher: Batcher) -> None:
    futures = batcher.submit([work(20, token) for token in range(100, 200)])
    gate.open.set()
    wait(futures, 10)
    sizes = [len(run) for run in gate.runs[1:]]
    assert sizes == [BATCH_TOKENS // 20, 100 - BATCH_TOKENS // 20]


def test_a_small_request_overtakes_a_huge_one(gate: Gate, batcher: Batcher) -> None:
    huge = batcher.submit([work(60, token) for token in range(100, 200)])
    small = batcher.submit([work(50, 1), work(51, 1)])
    later = batcher.submit([work(50, 2), work(51, 2)])
    gate.open.set()
    wait(huge + small + later, 10)
    order = [(len(run[0]), run[0][0]) for run in gate.runs[1:]]
    assert order[:4] == [(51, 1), (50, 1), (51, 2), (50, 2)], "and those of one size go as they came"


def test_a_stream_of_small_requests_does_not_starve_a_huge_one() -> None:
    position, runs = None, 0
    finished = threading.Event()
    huge_size, small = 20, 40

    def run(sequences: Sequence[Sequence[int]]) -> np.ndarray:
        nonlocal position, runs
        runs += 1
        if sequences[0][0] == 7 and position is None:
            position = runs
        if runs < 200:  # with each run that ends there is a new small request
            batcher.submit([work(small, 1000 + runs)])
        else:
            finished.set()
        return np.zeros((len(sequences), 1), np.float32)

    batcher = Batcher(run, 1)
    futures = batcher.submit([work(small, 500), *(Work((7, *(i,) * 99)) for i in range(huge_size))])
    assert finished.wait(10)
    batcher.close()
    assert all(future.done() for future in futures)
    assert position is not None
    assert position <= huge_size * 100 / small + 3, "no more tokens than its own went before it"


def test_equal_sequences_run_once_while_they_wait_or_run(gate: Gate, batcher: Batcher) -> None:
    futures = batcher.submit([work(50), work(50), work(4)]) + batcher.submit([work(50), work(4)])
    running = batcher.submit([Work((5,), alone=True)])
    assert batcher.queued == 2
    gate.open.set()
    assert {tuple(future.result(10)) for future in futures} == {(50, 50), (4, 4)}
    assert tuple(running[0].result(10)) == (5, 1)
    assert len(gate.runs) == 3


def test_an_urgent_request_brings_what_it_shares_to_the_front(gate: Gate, batcher: Batcher) -> None:
    huge = batcher.submit([work(60, token) for token in range(100, 150)])
    small = batcher.submit([work(60, 100)])
    gate.open.set()
    wait(huge + small, 10)
    assert gate.runs[1][0][0] == 100
    assert len(gate.runs) == 51


def test_an_error_reaches_those_in_its_run_alone(gate: Gate, batcher: Batcher) -> None:
    bad = batcher.submit([work(4, 13), work(50, 1)])
    company = batcher.submit([work(4, 1)])
    apart = batcher.submit([work(5, 1)])
    gate.open.set()
    for future in (bad[0], company[0]):
        with pytest.raises(ValueError, match="thirteen"):
            future.result(10)
    assert tuple(bad[1].result(10)) == (50, 50)
    assert tuple(apart[0].result(10)) == (5, 5)
    assert tuple(batcher.submit([work(4, 1)])[0].result(10)) == (4, 4), "the worker is still there, the error is not"


def test_a_run_that_loses_a_vector_is_an_error() -> None:
    batcher = Batcher(lambda sequences: np.zeros((1, 2), np.float32), 1)
    first, second = batcher.submit([work(4, 1), work(4, 2)])
    for future in (first, second):
        with pytest.raises(RuntimeError, match="2 sequences gave 1 vectors"):
            future.result(10)
    batcher.close()


def test_closing_ends_the_workers_and_fails_what_is_queued(gate: Gate, batcher: Batcher) -> None:
    futures = batcher.submit([work(50), work(4)])
    batcher.close(wait=False)
    for future in futures:
        with pytest.raises(RuntimeError, match="closed"):
            future.result(10)
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit([work(4)])
    assert batcher.queued == 0
    gate.open.set()
    batcher.close()
    assert not any(thread.is_alive() for thread in batcher._threads)


def test_many_threads_lose_nothing() -> None:
    batcher = Batcher(lambda rows: np.array([[sum(row), len(row)] for row in rows], np.float32), 4)

    def client(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            works = [work(int(rng.integers(2, 45)), int(rng.integers(1, 9))) for _ in range(rng.integers(0, 20))]
            futures = batcher.submit(works)
            if [tuple(f.result(10)) for f in futures] != [(sum(w.tokens), len(w.tokens)) for w in works]:
                return False
        return True

    with ThreadPoolExecutor(8) as clients:
        assert all(clients.map(client, range(8)))
    batcher.close()
    assert (batcher._items, batcher._short, batcher.queued) == ({}, {}, 0)


@pytest.mark.parametrize("length", [0, 1, 2, SHORT - 1, SHORT, 256, 4096])
def test_a_lonely_short_sequence_is_its_own_company(length: int) -> None:
    runs: list[int] = []

    def run(sequences: Sequence[Sequence[int]]) -> np.ndarray:
        runs.append(len(sequences))
        return np.zeros((len(sequences), 3), np.float32)

    assert run_alike(run, [[1] * length]).shape == (1, 3)
    assert runs == [2 if length < SHORT else 1]
    assert run_size(length) * length <= max(BATCH_TOKENS, length)
