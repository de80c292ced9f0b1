"""The release gate: whether a ranker may take the place of the one that serves, decided from values per query.

The candidate is what search ships: the int8 student's order of the stored vectors, with as much of BM25's score as its
weight says. The rule, in one measure over the same queries:

* It *beats* BM25: its mean gain exceeds the set one, significantly by a paired randomization test. A neural ranker costs
  more than BM25, and a mean that is above by chance is no reason to ship it.
* It is *not inferior* to the base student, nor to the best release that is kept: the lower end of the interval of its mean
  difference lies above minus the loss that is accepted. The burden of proof is on the candidate here too: a gate that sees
  little lets nothing through as proven (Piaggio et al. 2012, the CONSORT statement on non-inferiority trials). And as the
  best of all that are kept is the reference, losses that are accepted one by one do not add up.
* Where there are too few queries to prove that, nothing can be demanded but that the candidate is not *significantly
  below*; the release is then marked as one on weak evidence, with the number of queries that it would take.

No correction for the number of tests, on purpose. A candidate must pass all of them, so a wrong release takes that each one
errs: their joint error is no larger than one test's (the intersection-union principle; Berger 1982).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats

from neuroranker_pipeline.datasets.tables import RANKER_VALUES
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.evaluation.measures import long_table, measure_vectors, ranked
from neuroranker_pipeline.evaluation.rankers import BASE, FIRST_STAGE, SEARCH
from neuroranker_pipeline.evaluation.significance import (
    SIGN_PATTERNS,
    mean_interval,
    paired_randomization,
    wins_losses_ties,
)

POWER = 0.8


def release_name(number: int) -> str:
    """What a release is called among the rankers."""
    return f"release {number}"


def release_number(ranker: str) -> int | None:
    """The number of the release that a ranker is; None for any other ranker."""
    word, _, number = ranker.partition(" ")
    return int(number) if word == "release" and number.isdecimal() else None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The candidate minus the ranker ``against``, paired by query.

    ``low`` and ``high``: the interval of the mean ``difference`` (``mean_interval``), at the level 1 - alpha. ``effect``:
    Cohen's d for paired values, the mean difference over the standard deviation of the differences (d_z; Cohen 1988, Lakens
    2013), nan where they do not vary. ``noticed``: the loss that a test finds at alpha with a power of 0.8, from the normal
    approximation.
    """

    against: str
    difference: float
    low: float
    high: float
    effect: float
    noticed: float
    wins: int
    losses: int
    ties: int


@dataclass(frozen=True, kw_only=True)
class GateTest(Difference):
    """A difference, and what is demanded of it.

    ``bound``: what the mean difference must exceed; against BM25 the gain, else minus the loss that is accepted. ``p``: of
    the paired randomization test; against BM25 that the mean difference is ``bound``, elsewhere that it is 0, which decides
    where the evidence is ``weak``. ``needed``: the judged queries that show a loss of that size four times in five;
    None where the rule is another, or no number is enough.
    """

    p: float
    demand: str
    bound: float
    passed: bool
    weak: bool = False
    needed: int | None = None


@dataclass(frozen=True)
class Decision:
    """What the gate found: ``means`` and ``intervals`` of every ranker in ``measure``, and the tests. ``besides``: the
    differences from rankers that decide nothing."""

    measure: str
    alpha: float
    queries: int
    means: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    tests: tuple[GateTest, ...]
    besides: tuple[Difference, ...] = ()

    @property
    def passed(self) -> bool:
        return all(test.passed for test in self.tests)

    @property
    def evidence(self) -> str:
        """``full``, or ``weak`` where the queries were too few to prove what a test demands."""
        return "weak" if any(test.weak for test in self.tests) else "full"

    @property
    def best_release(self) -> int | None:
        """The number of the kept release that the candidate was held to."""
        return next((number for test in self.tests if (number := release_number(test.against)) is not None), None)

    def test_against(self, ranker: str) -> GateTest | None:
        return next((test for test in self.tests if test.against == ranker), None)

    def test_against_release(self) -> GateTest | None:
        return None if self.best_release is None else self.test_against(release_name(self.best_release))

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it: what is not a number is null."""
        return {**_finite(asdict(self)), "passed": self.passed, "evidence": self.evidence}


def gate_values(
    runs: Mapping[str, pa.Table], qrels: pa.Table, measures: Sequence[str], relevance_level: int = 1
) -> pa.Table:
    """Every measure of every run for each judged query: a ``RANKER_VALUES`` table, by ranker, measure and qid.

    ``runs`` are tables of qid, pid, score; ``qrels`` (qid, pid, grade) holds the gate's queries alone. Raises ``BadInput``
    as ``measure_vectors`` does.
    """
    vectors = {}
    for name, run in runs.items():
        qids, vectors[name] = measure_vectors(ranked(run), qrels, measures, relevance_level)
    return long_table(qids, vectors).select(RANKER_VALUES.names).cast(RANKER_VALUES)


def vectors_of(values: pa.Table, measure: str) -> dict[str, np.ndarray]:
    """One measure of a ``RANKER_VALUES`` table: {ranker: float64 values, in the order of the qids}.

    Raises ``BadInput`` when a ranker lacks a query that another one has, or a value is no finite number.
    """
    by_ranker: dict[str, dict[str, float]] = {}
    for row in values.to_pylist():
        if row["measure"] == measure:
            by_ranker.setdefault(row["ranker"], {})[row["qid"]] = row["value"]
    qids = sorted({qid for found in by_ranker.values() for qid in found})
    if not qids:
        raise BadInput(f"gate: {measure} was measured for no query")
    for ranker, found in by_ranker.items():
        bad = [qid for qid in qids if not math.isfinite(found.get(qid, math.nan))]
        if bad:
            raise BadInput(f"gate: {ranker} has no {measure} for {len(bad)} queries, the first is {bad[0]}")
    return {ranker: np.array([found[qid] for qid in qids]) for ranker, found in by_ranker.items()}


def decide(
    values: Mapping[str, np.ndarray],
    measure: str,
    alpha: float = 0.05,
    over_bm25: float = 0.0,
    loss_to_base: float = 0.05,
    loss_to_release: float = 0.03,
    seed: int = 0,
    patterns: int = SIGN_PATTERNS,
) -> Decision:
    """Judge what search ships. ``values``: {ranker: (n,) values of ``measure``, from 0 to 1}, with every kept release.

    ``over_bm25``: the gain over BM25 that must be exceeded; ``loss_to_base`` and ``loss_to_release``: the losses against
    the base student and the best release that are accepted; all in the measure's units. ``patterns``: random sign patterns
    of the tests. Of the releases the one with the highest mean is the best, the newest of equals.
    """
    candidate = values[SEARCH]
    means = {name: float(np.mean(found)) for name, found in values.items()}
    tests = []
    if FIRST_STAGE in values:
        tests.append(_beats(candidate, values[FIRST_STAGE], FIRST_STAGE, over_bm25, alpha, seed, patterns))
    for name, loss in ((BASE, loss_to_base), (_best_release(means), loss_to_release)):
        if name in values:
            tests.append(_not_inferior(candidate, values[name], name, loss, alpha, seed, patterns))
    told = {SEARCH, *(test.against for test in tests)}
    return Decision(
        measure=measure,
        alpha=alpha,
        queries=len(candidate),
        means=means,
        intervals={name: mean_interval(found, 1 - alpha) for name, found in values.items()},
        tests=tuple(tests),
        besides=tuple(
            Difference(**_difference(candidate, found, name, alpha))
            for name, found in values.items()
            if name not in told
        ),
    )


def effect_size(differences: np.ndarray) -> float:
    """Cohen's d_z of paired differences, nan for fewer than two or where they do not vary."""
    spread = float(np.std(differences, ddof=1)) if differences.size > 1 else 0.0
    return float(np.mean(differences)) / spread if spread > 0 else math.nan


def noticed_loss(differences: np.ndarray, alpha: float) -> float:
    """The mean difference that a two-sided paired test at ``alpha`` finds with a power of 0.8, given how much the
    ``differences`` vary (normal approximation; Cohen 1988). nan for fewer than two."""
    if differences.size < 2:
        return math.nan
    return _quantiles(alpha) * float(np.std(differences, ddof=1)) / math.sqrt(differences.size)


def queries_needed(differences: np.ndarray, loss: float, alpha: float) -> int | None:
    """The judged queries with which a loss of this size is found with a power of 0.8, given how much the ``differences``
    vary; never fewer than ``fewest_queries``. None where no loss is accepted: no number shows that there is none."""
    if not loss > 0:
        return None
    spread = float(np.std(differences, ddof=1)) if differences.size > 1 else 0.0
    return max(fewest_queries(loss, alpha), math.ceil((_quantiles(alpha) * spread / loss) ** 2))


def fewest_queries(loss: float, alpha: float) -> int:
    """The least number of queries that can show that less than ``loss`` is lost, whatever their values.

    A ranker that loses the whole of a measure from 0 to 1 on a share ``loss`` of all queries loses nothing on n of them
    with the probability (1 - loss)^n, which may be no more than half of alpha.
    """
    return 1 if loss >= 1 else math.ceil(math.log(alpha / 2) / math.log1p(-loss))


def _best_release(means: Mapping[str, float]) -> str:
    numbers = {name: number for name in means if (number := release_number(name)) is not None}
    return max(numbers, key=lambda name: (means[name], numbers[name]), default="")


def _beats(
    candidate: np.ndarray, other: np.ndarray, name: str, gain: float, alpha: float, seed: int, patterns: int
) -> GateTest:
    # The null hypothesis is a mean difference of `gain`, so that is taken off before signs are flipped.
    beyond, p = float(np.mean(candidate - other)) - gain, paired_randomization(candidate, other + gain, seed, patterns)
    return GateTest(
        **_difference(candidate, other, name, alpha),
        p=p,
        demand="significantly above",
        bound=gain,
        passed=beyond > 0 and p < alpha,
    )


def _not_inferior(
    candidate: np.ndarray, other: np.ndarray, name: str, loss: float, alpha: float, seed: int, patterns: int
) -> GateTest:
    """Proven by the interval; disproven where a test of that many queries would have found the loss; else weak evidence."""
    found, needed = _difference(candidate, other, name, alpha), queries_needed(candidate - other, loss, alpha)
    enough = loss == 0 or len(candidate) >= fewest_queries(loss, alpha)
    proven, p = enough and found["low"] > -loss, paired_randomization(candidate, other, seed, patterns)
    weak = not proven and not (enough and found["noticed"] <= loss)
    return GateTest(
        **found,
        p=p,
        demand="not significantly below" if weak else "lower end above",
        bound=0.0 - loss,
        passed=not (found["difference"] < 0 and p < alpha) if weak else proven,
        weak=weak,
        needed=needed,
    )


def _difference(candidate: np.ndarray, other: np.ndarray, name: str, alpha: float) -> dict[str, Any]:
    differences = candidate - other
    low, high = mean_interval(differences, 1 - alpha)
    wins, losses, ties = wins_losses_ties(candidate, other)
    return {
        "against": name,
        "difference": float(np.mean(differences)),
        "low": low,
        "high": high,
        "effect": effect_size(differences),
        "noticed": noticed_loss(differences, alpha),
        "wins": wins,
        "losses": losses,
        "ties": ties,
    }


def _quantiles(alpha: float) -> float:
    return float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(POWER))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
