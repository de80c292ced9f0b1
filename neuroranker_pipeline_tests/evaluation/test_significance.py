import itertools
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from neuroranker_pipeline.evaluation.significance import (
    FLOOR,
    at_floor,
    bootstrap_interval,
    holm,
    mean_interval,
    paired_randomization,
    wins_losses_ties,
)

reciprocal_ranks = st.sampled_from([0.0, 1.0, 1 / 2, 1 / 3, 1 / 5, 1 / 10])
pairs = st.lists(st.tuples(reciprocal_ranks, reciprocal_ranks), min_size=1, max_size=9)


@given(pairs)
def test_few_queries_are_tested_by_exact_enumeration(values):
    a, b = np.array(values).T
    sums = [abs(math.fsum(s * d for s, d in zip(signs, a - b, strict=True)))
            for signs in itertools.product((-1, 1), repeat=len(a))]  # fmt: skip
    exact = sum(s >= abs(math.fsum(a - b)) - 1e-9 for s in sums) / len(sums)
    assert paired_randomization(a, b) == pytest.approx(exact)


def test_many_queries_agree_with_scipy():
    rng = np.random.default_rng(1)
    a, b = rng.choice([0, 0.1, 0.5, 1.0], 60), rng.choice([0, 0.2, 0.5, 0.7], 60)
    reference = stats.permutation_test(
        (a - b,), np.mean, permutation_type="samples", vectorized=True, n_resamples=20_000, rng=2
    )
    # Both estimate the same p from about 10,000 draws: a standard error of 0.005 each at most.
    assert paired_randomization(a, b, seed=3) == pytest.approx(reference.pvalue, abs=0.025)


@given(pairs)
def test_few_queries_equal_scipy_on_the_same_pairs(values):
    a, b = np.array(values).T
    if len(values) < 2:
        return
    reference = stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert paired_randomization(a, b) == pytest.approx(reference.pvalue, abs=1e-12)


@hypothesis.settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(20, 80), st.floats(0, 0.15))
def test_many_queries_equal_scipy_within_what_random_patterns_can_tell(seed, queries, shift):
    rng = np.random.default_rng(seed)
    a = rng.choice([0, 0.1, 0.5, 1.0], queries) + shift * rng.integers(0, 2, queries)
    b = rng.choice([0, 0.1, 0.5, 1.0], queries)
    reference = stats.permutation_test(
        (a - b,), np.mean, permutation_type="samples", vectorized=True, n_resamples=9_999, rng=rng
    ).pvalue
    # Five standard deviations: we count both tails of 9,999 random patterns, scipy doubles its count of the smaller one.
    half = max(reference, 1e-3) / 2
    allowed = 5 * math.sqrt((2 * half * (1 - min(reference, 0.999)) + 4 * half * (1 - half)) / 9_999)
    assert paired_randomization(a, b, seed=seed) == pytest.approx(reference, abs=allowed)


def test_p_is_uniform_when_nothing_differs_and_tiny_when_everything_does():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(200, 2, 40))
    p = [paired_randomization(a, b, seed=i, resamples=499) for i, (a, b) in enumerate(noise)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    a = rng.uniform(0.5, 1, 200)
    assert paired_randomization(a, a - 0.4) == FLOOR == 1 / 100_000
    many = rng.normal(size=7000)  # as many queries as MS MARCO's dev-small split
    assert paired_randomization(many + 0.1, np.zeros(7000)) == FLOOR
    assert at_floor(FLOOR)
    assert not at_floor(2 * FLOOR)


def test_more_patterns_tell_small_p_apart():
    """Of the patterns of 16 equal differences, one of them a loss, 34 are as extreme; of 17 without a loss, 2 are."""
    lost = np.array([1.0] * 15 + [-1.0])
    found = [paired_randomization(lost, np.zeros(16), seed=seed) for seed in range(40)]
    assert np.mean(found) == pytest.approx(34 / 2**16, rel=0.25)
    found = [paired_randomization(np.ones(17), np.zeros(17), seed=seed) for seed in range(40)]
    assert FLOOR <= min(found) < 2 / 2**17 < max(found) < 1 / 1_000


@given(pairs)
def test_p_does_not_depend_on_the_order_of_the_two_runs(values):
    a, b = np.array(values).T
    assert paired_randomization(a, b) == pytest.approx(paired_randomization(b, a))


def test_p_repeats_with_its_seed_and_ignores_queries_without_a_difference():
    rng = np.random.default_rng(5)
    a, b = rng.uniform(size=(2, 50))
    assert paired_randomization(a, b, seed=7) == paired_randomization(a, b, seed=7)
    padded = paired_randomization(np.r_[a, np.ones(500)], np.r_[b, np.ones(500)], seed=7)
    assert padded == paired_randomization(a, b, seed=7)
    assert paired_randomization([0.3, 0.4], [0.3, 0.4]) == 1.0
    assert paired_randomization([], []) == 1.0


def test_values_that_are_not_pairs_are_refused():
    with pytest.raises(ValueError, match="equally long"):
        paired_randomization([1.0, 2.0], [1.0])


def test_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(200):
        low, high = bootstrap_interval(rng.normal(0.4, 0.3, 60), seed=i, resamples=999)
        covered += low <= 0.4 <= high
    assert 180 <= covered <= 199  # 95% of 200 is 190; four standard deviations are 12


def test_interval_of_constant_and_of_too_few_values():
    assert bootstrap_interval([0.25] * 10) == (0.25, 0.25)
    assert all(math.isnan(bound) for bound in bootstrap_interval([0.25]))


def test_both_ends_of_the_interval_hold_for_skewed_values():
    """Two rankers that agree on nine queries in ten, and where they do not, the losses are the larger: Student's lower end
    lets the mean fall below it twice as often as the 2.5% that it promises."""
    rng = np.random.default_rng(0)
    values, chances = np.array([0.0, 0.25, -1.0]), np.array([0.9, 0.06, 0.04])
    mean, below, above, students = float(values @ chances), 0, 0, 0
    for _ in range(2000):
        sample = rng.choice(values, 200, p=chances)
        low, high = mean_interval(sample)
        below, above = below + (low > mean), above + (high < mean)
        students += sample.mean() - stats.t.ppf(0.975, 199) * stats.sem(sample) > mean
    assert students > 0.04 * 2000
    assert below < 0.035 * 2000  # 2.5%, and three standard deviations
    assert above < 0.035 * 2000


def test_the_interval_is_students_where_values_are_symmetric():
    values = np.array([-3.0, -1.0, 0.5, 0.5, 2.0, 7.0])
    symmetric = np.r_[values, 1 - values]
    assert mean_interval(symmetric) == pytest.approx(stats.t.interval(0.95, 11, 0.5, stats.sem(symmetric)))
    students = stats.t.interval(0.9, 5, values.mean(), stats.sem(values))
    low, high = mean_interval(values, 0.9)
    assert low <= students[0] + 1e-9 < students[1] < high
    assert mean_interval(-values, 0.9) == pytest.approx((-high, -low))
    assert mean_interval([0.25] * 10) == (0.25, 0.25)
    assert all(math.isnan(bound) for bound in mean_interval([0.25]))


def test_holm_on_the_textbook_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_p_keeps_their_order_and_stays_below_bonferroni(p):
    adjusted = holm(p)
    assert all(x <= y <= min(1.0, len(p) * x) + 1e-12 for x, y in zip(p, adjusted, strict=True))
    order = np.argsort(p, kind="stable")
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)


def test_wins_losses_ties():
    assert wins_losses_ties([1.0, 0.5, 0.2, 0.2], [0.5, 1.0, 0.2, 0.1]) == (2, 1, 1)
