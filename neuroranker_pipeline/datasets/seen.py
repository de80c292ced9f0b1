"""Which ids occurred before, in a stream of any length."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

SLOTS = 1 << 16
SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio (Knuth, TAOCP 6.4): spreads keys over the table's slots."""


class SeenIds:
    """A set of 64-bit hashes in a table with open addressing: 16 to 32 bytes an id, however long, and no Python object.

    Among ten million ids two share a hash with a chance of 3 in a million; ``first_time`` then takes the second for a
    repetition.
    """

    def __init__(self) -> None:
        self._table = np.zeros(SLOTS, np.uint64)
        self._count = 0

    def first_time(self, ids: pa.Array) -> np.ndarray:
        """For each id, true when it did not occur before, neither earlier nor in this array."""
        hashes = np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids)).view(np.uint64)
        hashes[hashes == 0] = 1  # 0 marks an empty slot
        distinct, first = np.unique(hashes, return_index=True)
        self._make_room(len(distinct))
        fresh = np.zeros(len(ids), bool)
        fresh[first] = self._insert(distinct)
        return fresh

    def _insert(self, keys: np.ndarray) -> np.ndarray:
        """Put distinct keys into the table; true for those that were not there."""
        table, mask = self._table, np.uint64(len(self._table) - 1)
        slots = (keys * SPREAD >> np.uint64(32)) & mask
        new = np.zeros(len(keys), bool)
        waiting = np.arange(len(keys))
        while len(waiting):
            wanted, places = keys[waiting], slots[waiting]
            empty = table[places] == 0
            table[places[empty]] = wanted[empty]  # of several keys for one slot, the last stays
            placed = table[places] == wanted
            new[waiting[empty & placed]] = True
            waiting = waiting[~placed]
            slots[waiting] = (slots[waiting] + np.uint64(1)) & mask
        self._count += int(new.sum())
        return new

    def _make_room(self, more: int) -> None:
        size = len(self._table)
        while 2 * (self._count + more) > size:
            size *= 2
        if size > len(self._table):
            keys = self._table[self._table != 0]
            self._table, self._count = np.zeros(size, np.uint64), 0
            self._insert(keys)
