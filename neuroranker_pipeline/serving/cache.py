"""Passage vectors by content, the least recently used dropped first."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

# What Python keeps for an entry besides the components: its key, its slot, the objects around the array.
ENTRY_BYTES = 512


@dataclass(frozen=True, slots=True)
class Entry:
    """What a text is to the ranking: one unit vector a window, the tokens read, and whether the text went on."""

    vectors: np.ndarray  # (windows, dimension) float32, owned
    tokens: int
    truncated: bool

    @property
    def nbytes(self) -> int:
        """Bytes of memory that keeping it takes, about."""
        return self.vectors.nbytes + ENTRY_BYTES


class VectorCache:
    """Entries by ``content_key``, at most ``capacity`` bytes of them (0: none). Safe to use from several threads."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.nbytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Entry]:
        """The entries that are there, by key; each key counts as one hit or miss."""
        found = {}
        with self._lock:
            for key in keys:
                if (entry := self._entries.get(key)) is None:
                    self.misses += 1
                else:
                    self._entries.move_to_end(key)
                    self.hits += 1
                    found[key] = entry
        return found

    def peek(self, keys: Iterable[bytes]) -> dict[bytes, Entry]:
        """``get`` without a trace: it counts nothing and keeps the order of use."""
        with self._lock:
            return {key: self._entries[key] for key in keys if key in self._entries}

    def put(self, entries: Mapping[bytes, Entry]) -> None:
        """Keep ``entries``, dropping the least recently used ones; one that is too large alone is not kept."""
        with self._lock:
            for key, entry in entries.items():
                if entry.nbytes > self.capacity:
                    continue
                if (old := self._entries.pop(key, None)) is not None:
                    self.nbytes -= old.nbytes
                self._entries[key] = entry
                self.nbytes += entry.nbytes
            while self.nbytes > self.capacity:
                self.nbytes -= self._entries.popitem(last=False)[1].nbytes


def content_key(text: str, kind: str) -> bytes:
    """16 bytes that stand for a text read in one way; ``kind``, at most 16 ASCII characters, names the way."""
    return hashlib.blake2b(text.encode(), digest_size=16, person=kind.encode()).digest()
