"""Whether two rankers differ on the same queries: paired tests, intervals, and the price of asking often."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

SIGN_PATTERNS = 9_999
LONGER = 10  # times as many sign patterns are tried where none of the first was as extreme
FLOOR = 1 / (LONGER * (SIGN_PATTERNS + 1))
"""The least p of random sign patterns: none was as extreme, so p is below it rather than at it."""
BOOTSTRAP_SAMPLES = 2_000  # enough for the ends of a 95% interval
ELEMENTS_PER_BATCH = 2_000_000  # bounds the memory of one batch of resamples to 16 MB of float64


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The mean ``difference`` of two rankers' values, paired by query. ``low`` and ``high``: its 95% percentile bootstrap
    interval. ``p``: of the paired randomization test; ``p_holm``: adjusted over all of its family."""

    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    wins: int
    losses: int
    ties: int


def compare_pairs(pairs: Sequence[tuple[np.ndarray, np.ndarray]], seed: int = 0) -> list[Paired]:
    """The first of each pair minus the second; the tests of all pairs are one family for Holm's correction."""
    p_values = [paired_randomization(a, b, seed) for a, b in pairs]
    found = []
    for (a, b), p, p_holm in zip(pairs, p_values, holm(p_values), strict=True):
        low, high = bootstrap_interval(a - b, seed)
        wins, losses, ties = wins_losses_ties(a, b)
        found.append(
            Paired(
                difference=float((a - b).mean()),
                low=low,
                high=high,
                p=p,
                p_holm=p_holm,
                wins=wins,
                losses=losses,
                ties=ties,
            )
        )
    return found


def paired_randomization(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    seed: int = 0,
    resamples: int = SIGN_PATTERNS,
) -> float:
    """Two-sided p of Fisher's paired randomization (sign-flip) test that the mean of ``a - b`` is 0.

    ``a`` and ``b`` hold one value a query, in the same order. Every sign pattern is tried when there are at
    most ``resamples`` of them; otherwise ``resamples`` random ones, where p = (hits + 1) / (resamples + 1)
    can never be 0 (Phipson and Smyth 2010). Where none is a hit, ten times as many are tried, and p may still be ``FLOOR``.
    That is no test twice: without a hit the first p is the least there is, and the second is no larger than with the many
    patterns from the start. The test that Smucker, Allan and Carterette (CIKM 2007) recommend for comparing runs.
    """
    differences = _differences(a, b)
    differences = differences[differences != 0]  # flipping a zero changes nothing: the null distribution is the same
    if differences.size < 2:  # one difference, flipped, is as large
        return 1.0
    if differences.size <= math.log2(resamples):
        exact = stats.permutation_test(
            (differences,), np.mean, permutation_type="samples", vectorized=True, n_resamples=np.inf
        )
        return float(exact.pvalue)
    rng = np.random.default_rng(seed)
    hits, tried = _hits(differences, resamples, rng), resamples
    if not hits:
        tried = LONGER * (resamples + 1) - 1
        hits = _hits(differences, tried - resamples, rng)
    return (hits + 1) / (tried + 1)


def _hits(differences: np.ndarray, patterns: int, rng: np.random.Generator) -> int:
    """How many random sign patterns give a sum that is as far from 0 as the observed one."""
    sizes = np.pad(np.abs(differences), (0, -differences.size % 8))
    # scipy shuffles pairs by sorting: 6 s for 5,000 queries. Here a random byte flips eight signs, whose sum is looked up.
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float64)
    flipped = (bits @ sizes.reshape(-1, 8).T).ravel()  # by byte, then by group of eight
    groups, total = sizes.size // 8, sizes.sum()
    threshold = abs(differences.sum()) - 1e-12 * total  # a sum that differs by rounding alone is a tie, which is a hit
    hits, batch = 0, max(1, ELEMENTS_PER_BATCH // groups)
    for start in range(0, patterns, batch):
        drawn = rng.integers(0, 256, (min(batch, patterns - start), groups), np.uint8)
        rows = drawn.astype(np.intp) * groups + np.arange(groups)
        hits += int(np.count_nonzero(np.abs(total - 2 * flipped.take(rows).sum(axis=1)) >= threshold))
    return hits


def at_floor(p: float) -> bool:
    """Whether p is the least that ``paired_randomization`` gives for random sign patterns."""
    return p <= FLOOR * (1 + 1e-9)


def mean_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the mean whose ends hold one by one, each with half of the error, for skewed values too.

    Each end is the farther one of Student's t and of Hall's transformation of it, which takes the third moment into account
    (Hall 1992, "On the removal of skewness by transformation"). Two rankers that agree on most queries differ in a few large
    losses: there the lower end of t, or of the percentile bootstrap, lies above the mean up to three times as often as it
    may; figures in docs/releases.md. (nan, nan) for fewer than two values.
    """
    sample = np.asarray(values, np.float64)
    if sample.size < 2:
        return math.nan, math.nan
    n, mean, spread = sample.size, float(sample.mean()), float(sample.std(ddof=1))
    if not spread > 1e-12:
        return mean, mean
    skewness = float(((sample - mean) ** 3).mean() / sample.std() ** 3)
    reach = float(stats.t.ppf((1 + confidence) / 2, n - 1)) / math.sqrt(n)
    low = max(reach, _hall(reach, skewness, n))
    high = max(reach, -_hall(-reach, skewness, n))
    return mean - spread * low, mean + spread * high


def _hall(reach: float, skewness: float, n: int) -> float:
    """The studentized mean, over the root of n, that Hall's cubic transformation takes to ``reach``."""
    if abs(skewness) < 1e-6:
        return reach
    return 3 / skewness * (float(np.cbrt(1 + skewness * (reach - skewness / (6 * n)))) - 1)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, seed: int = 0, confidence: float = 0.95, resamples: int = BOOTSTRAP_SAMPLES
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over queries (Efron and Tibshirani 1993, chapter 13).

    One value gives no idea of the spread: (nan, nan) for fewer than two.
    """
    sample = np.asarray(values, np.float64)
    if sample.size < 2:
        return float("nan"), float("nan")
    interval = stats.bootstrap(
        (sample,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        batch=max(1, ELEMENTS_PER_BATCH // sample.size),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values (1979), in the order given: below alpha where the family's error
    rate is alpha.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    return [float(value) for value in adjusted]


def wins_losses_ties(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> tuple[int, int, int]:
    """On how many queries ``a`` is above, below and equal to ``b``."""
    differences = _differences(a, b)
    wins, losses = int(np.count_nonzero(differences > 0)), int(np.count_nonzero(differences < 0))
    return wins, losses, differences.size - wins - losses


def _differences(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> np.ndarray:
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"paired values must be two equally long lists, got shapes {first.shape} and {second.shape}")
    return first - second
