"""One queue of token sequences for all requests, and the threads that run them through the model."""

from __future__ import annotations

import heapq
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import NamedTuple

import numpy as np

# Tokens in one run of the graph: a core's cache holds the activations of about this many.
BATCH_TOKENS = 1024
# Shorter sequences share runs. Measured with all-MiniLM-L6-v2 in int8 on one core: a run of its own costs a sequence
# 1.9 times its part of a full batch at 8 tokens, 1.2 times at 32, 1.1 times at 64 and 1.0 times from 80 on.
SHORT = 32

Tokens = Sequence[int]
Run = Callable[[Sequence[Tokens]], np.ndarray]


class Work(NamedTuple):
    """A sequence to run; ``alone`` keeps a short one from sharing its run, for the least latency."""

    tokens: tuple[int, ...]
    alone: bool = False


def run_size(length: int) -> int:
    """Sequences of ``length`` tokens that one run takes at most: a long one runs alone."""
    return 1 if length >= SHORT else max(2, BATCH_TOKENS // max(1, length))


def run_alike(run: Run, sequences: Sequence[Tokens]) -> np.ndarray:
    """Unit vectors, (n, dimension), of n <= ``run_size`` sequences of one length: the same bits whatever n is.

    ONNX Runtime sums over tokens in another order in a batch of one than in all larger ones, so a short sequence
    without company is its own.
    """
    lonely = len(sequences) == 1 and run_size(len(sequences[0])) > 1
    return run([*sequences, *sequences])[:1] if lonely else run(sequences)


class _Item:
    """A sequence in the queue or in a run, and the promise of its vector to all who wait for it."""

    __slots__ = ("future", "taken", "work")

    def __init__(self, work: Work) -> None:
        self.work = work
        self.future: Future[np.ndarray] = Future()
        self.taken = False

    @property
    def size(self) -> int:
        return 1 if self.work.alone else run_size(len(self.work.tokens))


class Batcher:
    """Runs the sequences of all requests on ``threads`` threads, one run each at a time, so that none fights for cores.

    A request is due once as many tokens as it has itself have been run since it came, and the one due first goes
    first. Requests of one size are thus served as they come, which ends each as early as can be; a small one
    overtakes a huge one; and the huge one is overtaken only while fewer tokens than its own have been run.
    A run takes the longest sequence of that request and, when it is short, those of its length from any request.
    """

    def __init__(self, run: Run, threads: int) -> None:
        self._run = run
        self._changed = threading.Condition()
        self._requests: list[tuple[int, int, list[_Item]]] = []  # a heap: when due, arrival, items by rising length
        self._items: dict[Work, _Item] = {}  # queued or running: whoever wants the same waits for the same
        self._short: defaultdict[int, dict[_Item, None]] = defaultdict(dict)
        self._arrivals = 0
        self._tokens_taken = 0
        self._queued = 0
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"batcher-{i}", daemon=True) for i in range(max(1, threads))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def queued(self) -> int:
        """Sequences that wait for their run."""
        return self._queued

    def submit(self, works: Iterable[Work]) -> list[Future[np.ndarray]]:
        """Queue the sequences of one request; each future gives its vector, (dimension,) float32, or its run's error.

        Equal sequences have one future, across requests too while it is not done. Raises ``RuntimeError`` when closed.
        """
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            items = [self._items.get(work) or self._add(work) for work in works]
            queued = dict.fromkeys(item for item in items if not item.taken)
            mine = sorted(queued, key=lambda item: len(item.work.tokens))
            if mine:
                due = self._tokens_taken + sum(len(item.work.tokens) for item in mine)
                heapq.heappush(self._requests, (due, self._arrivals, mine))
                self._arrivals += 1
                self._changed.notify(len(mine))
        return [item.future for item in items]

    def close(self, wait: bool = True) -> None:
        """End the threads after their present run; what is still queued fails with ``RuntimeError``."""
        with self._changed:
            self._closed = True
            dropped = [item for item in self._items.values() if not item.taken]
            for item in dropped:
                self._take(item)
                del self._items[item.work]
            self._changed.notify_all()
        for item in dropped:
            item.future.set_exception(RuntimeError("the batcher was closed"))
        for thread in self._threads if wait else ():
            if thread is not threading.current_thread():
                thread.join()

    def _add(self, work: Work) -> _Item:
        item = self._items[work] = _Item(work)
        self._queued += 1
        if item.size > 1:
            self._short[len(work.tokens)][item] = None
        return item

    def _take(self, item: _Item) -> None:
        item.taken = True
        self._queued -= 1
        self._tokens_taken += len(item.work.tokens)
        if item.size > 1:
            alike = self._short[len(item.work.tokens)]
            del alike[item]
            if not alike:
                del self._short[len(item.work.tokens)]

    def _next_batch(self) -> list[_Item]:
        """Takes the next run's sequences from the queue; none when it is empty."""
        while self._requests:
            items = self._requests[0][2]
            while items and items[-1].taken:
                items.pop()
            if items:
                first = items.pop()
                self._take(first)
                company = self._short.get(len(first.work.tokens), ()) if first.size > 1 else ()
                batch = [first, *islice(company, first.size - 1)]
                for item in batch[1:]:
                    self._take(item)
                return batch
            heapq.heappop(self._requests)
        return []

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (batch := self._next_batch()):
                    if self._closed:
                        return
                    self._changed.wait()
            self._finish(batch)

    def _finish(self, batch: list[_Item]) -> None:
        """Run a batch and hand out its vectors, or its error: a worker outlives both."""
        sequences = [item.work.tokens for item in batch]
        try:
            vectors = self._run(sequences) if batch[0].work.alone else run_alike(self._run, sequences)
            if len(vectors) != len(batch):
                raise RuntimeError(f"a run of {len(batch)} sequences gave {len(vectors)} vectors")
            error = None
        except BaseException as raised:
            error = raised
        with self._changed:
            for item in batch:
                del self._items[item.work]
        for row, item in enumerate(batch):
            if error is None:
                item.future.set_result(vectors[row].copy())  # a copy, lest who keeps one keep them all
            else:
                item.future.set_exception(error)
