"""Questions that are the same, or nearly, in two splits, and groups of them; every one is found, none is guessed.

Two texts are near when their sets of words have a Jaccard similarity of at least a threshold. Such sets share one of their
rarest words: of a set of n words, one of the first n - ceil(t n) + 1 in an order of all words (prefix filtering,
Chaudhuri, Ganti and Kaushik 2006, Bayardo, Ma and Srikant 2007). A sparse product of these finds the candidates, and their
words are then compared in full. Thresholds are fractions and counts integers: 7 words of 10 are exactly 0.7.

``benchmarks/leaks.py`` measures the peers: SetSimilaritySearch finds the same pairs in several times the time and memory,
needs all sets in memory, and had its last release in 2022; datasketch's MinHashLSH misses some.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from neuroranker_pipeline.errors import require

if TYPE_CHECKING:  # imported where matrices are made: whoever compares two texts needs no SciPy
    from scipy.sparse import csr_array

NEAR = 0.7
BLOCK = 50_000
"""Texts compared at a time."""
ENTRIES = 4_000_000
"""Words, or candidates, that are looked at together: bounds the memory, whatever the texts."""

UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Kana and Chinese characters, for a regular expression: no spaces between words, and a character says much."""
_LETTERS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer: no spaces, a character says little
_RUN = re.compile(r"\w\S*")
_FEW = re.compile(rf"[{_LETTERS}]")
_WORD = re.compile(rf"[{UNSPACED}]|[{_LETTERS}]+|[^\s{UNSPACED}{_LETTERS}]+")


class Pairs(NamedTuple):
    """Near texts. ``held``, ``other``: their rows, int64 [pairs]; ``jaccard``: float64 [pairs]."""

    held: np.ndarray
    other: np.ndarray
    jaccard: np.ndarray


def same_text(text: str) -> str:
    """A text as far as two queries with it count as the same: letter case, punctuation and white space aside.

    So are ways to write a character (Unicode's compatibility caseless match, D146) and marks without a letter. Of a text
    of punctuation alone, the punctuation stays.
    """
    folded = text.casefold() if text.isascii() else _folded(text)
    kept = unicodedata.normalize("NFC", folded.translate(_KEPT))
    return " ".join(_RUN.findall(kept) or folded.split())


def same_texts(column: Iterable[str]) -> Iterator[str]:
    """The ``same_text`` of every text; of an Arrow column, few at a time become Python objects."""
    if isinstance(column, pa.ChunkedArray | pa.Array):
        for start in range(0, len(column), BLOCK):
            yield from map(same_text, column.slice(start, BLOCK).to_pylist())
    else:
        yield from map(same_text, column)


def near_pairs(held: Iterable[str], others: Iterable[str], threshold: float = NEAR, block: int = BLOCK) -> Pairs:
    """All pairs of texts whose word sets have a Jaccard similarity of at least ``threshold``, in the order of
    ``others``, then of ``held``.

    Raises ``ValueError`` unless 0 < threshold <= 1. A text without a word is near to none.
    """
    return _joined(list(near_blocks(list(same_texts(held)), same_texts(others), threshold, block)))


def clusters(*columns: Sequence[str], threshold: float = NEAR) -> np.ndarray:
    """The cluster of every row, int [rows]: rows that are near in one of the columns, or are linked by such rows.

    Clusters are numbered by their first row.
    """
    labels = np.arange(len(columns[0]))
    for column in columns:
        for pairs in _links(list(same_texts(column)), threshold):
            labels = _merged(labels, pairs)
    _, first, numbers = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[numbers]


def tokens(text: str) -> set[str]:
    """The distinct words of a ``same_text``. Chinese characters and kana are words; Thai and the like give three
    characters at a time, for alone they are few, and all of them in any long text."""
    if text.isascii():
        return set(text.split())
    found = set[str]()
    for word in _WORD.findall(text):
        found.update(_thirds(word) if _FEW.match(word) else (word,))
    return found


def _thirds(word: str) -> list[str]:
    return [word[start : start + 3] for start in range(max(1, len(word) - 2))]


class _Kept(dict[int, str | None]):
    """For ``str.translate``: letters, numbers, the marks on them and ``_`` stay, characters without a look go, and others
    part words. Filled as characters are met."""

    def __missing__(self, code: int) -> str | None:
        char = chr(code)
        kind = unicodedata.category(char)
        invisible = (kind == "Cf" and char != "\u200b") or "VARIATION SELECTOR" in unicodedata.name(char, "")
        kept = char.isalnum() or kind[0] == "M" or char == "_"
        self[code] = None if invisible else char if kept else " "
        return self[code]


_KEPT = _Kept()


def _folded(text: str) -> str:
    folded = unicodedata.normalize("NFD", text)
    for _ in range(2):
        folded = unicodedata.normalize("NFKD", folded.casefold())
    return folded


class _Sets(NamedTuple):
    """Sets of words, each in the order from the rarest on.

    ``words``: csr [sets, vocabulary] of ones. ``sizes``: int64 [sets], with the words that the vocabulary lacks.
    ``rare``: those of ``words`` of which a near set has one among its own. ``last``: the last of them, -1 without any.
    ``rest``: how many words follow.
    """

    words: csr_array
    sizes: np.ndarray
    rare: csr_array
    last: np.ndarray
    rest: np.ndarray


class _Limits:
    """What a threshold asks for, in integers: exact for every threshold as it is written."""

    def __init__(self, threshold: float) -> None:
        require(0 < threshold <= 1, "threshold", "above 0 and at most 1", threshold)
        self._t = Fraction(str(threshold))

    def common(self, sizes: np.ndarray) -> np.ndarray:
        """The words that two sets must share, by the sum of their sizes: t (a + b) / (1 + t), rounded up."""
        return self._times(self._t / (1 + self._t), sizes)

    def prefix(self, sizes: np.ndarray) -> np.ndarray:
        """How many of a set's rarest words hold one that a near set has among its own."""
        return sizes - self._times(self._t, sizes) + 1

    @staticmethod
    def _times(factor: Fraction, sizes: np.ndarray) -> np.ndarray:
        top = int(sizes.max(initial=0))
        return np.array([-(-n * factor.numerator // factor.denominator) for n in range(top + 1)])[sizes]


def near_blocks(
    held: Sequence[str], others: Iterable[str], threshold: float = NEAR, block: int = BLOCK
) -> Iterator[Pairs]:
    """``near_pairs`` of texts as ``same_text`` gives them, in pieces of bounded size."""
    limits, vocabulary = _Limits(threshold), _vocabulary(held)
    mine = _sets(held, vocabulary, limits)
    frequent = np.bincount(mine.rare.indices, minlength=len(vocabulary))
    rest, start = iter(others), 0
    while texts := list(islice(rest, block)):
        sets = _sets(texts, vocabulary, limits)
        sums = np.concatenate(([0], np.cumsum(frequent[sets.rare.indices])))
        for piece in _pieces(np.diff(sums[sets.rare.indptr]), ENTRIES):
            for pairs in _verified(mine, sets, *_candidates(mine, sets, piece, limits)):
                yield pairs._replace(other=pairs.other + start)
        start += len(texts)


def _candidates(mine: _Sets, sets: _Sets, piece: slice, limits: _Limits) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row in mine, row in sets, words that must be shared) of what may be near to a piece of ``sets``.

    Of the set whose rare words end first, all that are shared are rare in both. So no more can be shared than the product
    counts and the words that follow; nor more than the smaller set has.
    """
    product = sets.rare[piece] @ mine.rare.T
    product.sort_indices()
    other, held = (rows.astype(np.int64) for rows in product.nonzero())
    other += piece.start
    most = product.data + np.where(mine.last[held] < sets.last[other], mine.rest[held], sets.rest[other])
    least = limits.common(mine.sizes[held] + sets.sizes[other])
    possible = least <= np.minimum(most, np.minimum(mine.sizes[held], sets.sizes[other]))
    return held[possible], other[possible], least[possible]


def _verified(mine: _Sets, sets: _Sets, held: np.ndarray, other: np.ndarray, least: np.ndarray) -> Iterator[Pairs]:
    """The candidates that are near, with their similarity."""
    sizes = mine.sizes[held] + sets.sizes[other]
    for piece in _pieces(sizes, ENTRIES):
        a, b = held[piece], other[piece]
        common = np.asarray(mine.words[a].multiply(sets.words[b]).sum(axis=1)).astype(np.int64)
        near = common >= least[piece]
        yield Pairs(a[near], b[near], (common / np.maximum(sizes[piece] - common, 1))[near])


def _vocabulary(texts: Iterable[str]) -> dict[str, int]:
    """The words of texts, numbered from the rarest on."""
    counts = Counter(word for text in texts for word in tokens(text))
    return {word: number for number, word in enumerate(sorted(counts, key=lambda word: (counts[word], word)))}


def _sets(texts: Sequence[str], vocabulary: dict[str, int], limits: _Limits) -> _Sets:
    sizes, ends, ids = [], [0], list[int]()
    for text in texts:
        words = tokens(text)
        ids += sorted(vocabulary[word] for word in words if word in vocabulary)
        sizes.append(len(words))
        ends.append(len(ids))
    return _with_rare(
        _matrix(np.array(ids, np.int32), np.array(ends), len(vocabulary)), np.array(sizes, np.int64), limits
    )


def _with_rare(words: csr_array, sizes: np.ndarray, limits: _Limits) -> _Sets:
    """What the vocabulary lacks is rarest of all, and in no other set: it takes the first places."""
    known = np.diff(words.indptr).astype(np.int64)
    length = np.clip(limits.prefix(sizes) - (sizes - known), 0, known)
    place = np.arange(words.nnz) - np.repeat(words.indptr[:-1], known)
    ends = np.concatenate(([0], np.cumsum(length)))
    rare = _matrix(words.indices[place < np.repeat(length, known)], ends, words.shape[1])
    last = np.where(length > 0, np.append(rare.indices, -1)[ends[1:] - 1], -1)
    return _Sets(words, sizes, rare, last, known - length)


def _matrix(ids: np.ndarray, ends: np.ndarray, columns: int) -> csr_array:
    from scipy.sparse import csr_array

    return csr_array((np.ones(len(ids), np.int32), ids, ends.astype(np.int32)), (len(ends) - 1, columns))


def _pieces(costs: np.ndarray, most: int) -> Iterator[slice]:
    """Runs of rows that cost at most so much together, or are one row."""
    total, start = np.cumsum(costs), 0
    while start < len(costs):
        before = int(total[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(total, before + most, "right")))
        yield slice(start, stop)
        start = stop


def _links(texts: Sequence[str], threshold: float) -> Iterator[Pairs]:
    """Pairs of rows that connect all near ones: equal texts, however many, with the first of them alone."""
    first: dict[str, int] = {}
    same = [first.setdefault(text, row) if text else row for row, text in enumerate(texts)]
    yield Pairs(np.arange(len(texts)), np.array(same, np.int64), np.ones(len(texts)))
    rows = np.array(list(first.values()), np.int64)
    for pairs in near_blocks(list(first), first, threshold):
        yield Pairs(rows[pairs.held], rows[pairs.other], pairs.jaccard)


def _merged(labels: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Labels of components, once more pairs of rows are linked."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = (labels[pairs.held], labels[pairs.other])
    graph = coo_array((np.ones(len(ends[0]), bool), ends), (len(labels), len(labels)))
    return connected_components(graph.tocsr(), directed=False)[1][labels]


def _joined(found: Sequence[Pairs]) -> Pairs:
    if not found:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Pairs(*(np.concatenate(part) for part in zip(*found, strict=True)))
