"""The release gate: whether a ranker may take the place of the one that serves, decided from values per query.

The rule: the candidate beats BM25, and is not significantly worse than the base student nor than the last release. Both
halves are paired randomization tests of the mean difference in one measure, over the same queries:

* *Beats* puts the burden of proof on the candidate: its gain over BM25 must exceed the set one, and significantly. A neural
  ranker costs more than BM25, and a mean that is above by chance is no reason to ship it.
* *Not worse* blocks what is shown to be worse, by more than the set loss. A gate of few queries shows little, so the loss
  that it would notice is part of the evidence.

No correction for the number of tests, on purpose. A candidate must pass all of them, so a wrong release takes that each one
errs: their joint error is no larger than one test's (the intersection-union principle; Berger 1982). And Holm's correction
would raise the p of a loss, which lets more losses through: it would make the gate laxer.
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
from neuroranker_pipeline.evaluation.significance import bootstrap_interval, paired_randomization, wins_losses_ties
from neuroranker_pipeline.evaluation.tables import DASH, markdown, number, p_value, signed

CANDIDATE, FIRST_STAGE, BASE, LAST_RELEASE = "student int8", "BM25", "base student", "last release"
POWER = 0.8
COLUMNS = ("difference", "95% interval", "p", "d_z", "would notice", "wins / losses / ties", "demanded", "")


@dataclass(frozen=True)
class GateTest:
    """The candidate minus ``against``, paired by query, and what is demanded of it.

    ``low`` and ``high``: 95% percentile bootstrap interval of the mean ``difference``. ``effect``: Cohen's d for paired
    values, the mean difference over the standard deviation of the differences (d_z; Cohen 1988, Lakens 2013), nan where
    they do not vary. ``p``: of the paired randomization test that the mean difference is ``bound``. ``noticed``: the
    loss that the test would find at the set alpha with a power of 0.8, from the normal approximation.
    """

    against: str
    difference: float
    low: float
    high: float
    effect: float
    p: float
    noticed: float
    wins: int
    losses: int
    ties: int
    demand: str
    bound: float
    passed: bool


@dataclass(frozen=True)
class Decision:
    """What the gate found: ``means`` and 95% ``intervals`` of every ranker in ``measure``, and the tests."""

    measure: str
    alpha: float
    queries: int
    means: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    tests: tuple[GateTest, ...]

    @property
    def passed(self) -> bool:
        return all(test.passed for test in self.tests)

    def test_against(self, ranker: str) -> GateTest | None:
        return next((test for test in self.tests if test.against == ranker), None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it: what is not a number is null."""
        return {**_finite(asdict(self)), "passed": self.passed}


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
    tolerated_loss: float = 0.0,
    seed: int = 0,
) -> Decision:
    """Judge the candidate. ``values``: {ranker: (n,) values of ``measure``}, with ``LAST_RELEASE`` if there is one.

    ``over_bm25``: the gain over BM25 that must be exceeded; ``tolerated_loss``: the loss against the others that is
    tolerated; both in the measure's units.
    """
    candidate = values[CANDIDATE]
    bounds = {FIRST_STAGE: over_bm25, BASE: 0.0 - tolerated_loss, LAST_RELEASE: 0.0 - tolerated_loss}
    tests = [
        _test(candidate, values[name], name, bound, name == FIRST_STAGE, alpha, seed)
        for name, bound in bounds.items()
        if name in values
    ]
    return Decision(
        measure=measure,
        alpha=alpha,
        queries=len(candidate),
        means={name: float(np.mean(found)) for name, found in values.items()},
        intervals={name: bootstrap_interval(found, seed) for name, found in values.items()},
        tests=tuple(tests),
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
    quantiles = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(POWER)
    return float(quantiles * np.std(differences, ddof=1) / math.sqrt(differences.size))


def render_decision(
    decision: Decision,
    outcome: str,
    compared_with: str,
    override: str,
    elsewhere: Mapping[str, Mapping[str, float]],
) -> str:
    """The decision and its evidence as Markdown.

    ``outcome`` heads it, ``compared_with`` names the last release and ``override`` says who let the model through, why and
    when, each empty if there is none; ``elsewhere``: {split: {ranker: value}} of the splits that decide nothing.
    """
    name = {LAST_RELEASE: compared_with}
    rows = [
        [
            markdown(name.get(test.against, test.against)),
            number(decision.means[test.against]),
            signed(test.difference),
            f"{signed(test.low)} to {signed(test.high)}",
            p_value(test.p),
            signed(test.effect) if math.isfinite(test.effect) else DASH,
            number(test.noticed) if math.isfinite(test.noticed) else DASH,
            f"{test.wins} / {test.losses} / {test.ties}",
            test.demand + (f" {signed(test.bound)}" if test.bound else ""),
            "passed" if test.passed else "**failed**",
        ]
        for test in decision.tests
    ]
    low, high = decision.intervals[CANDIDATE]
    lines = [
        f"# Release decision: {outcome}",
        "",
        f"{CANDIDATE} on the {decision.queries:,} queries of the gate split: {decision.measure} "
        f"{number(decision.means[CANDIDATE])} (95% interval {number(low)} to {number(high)}). Its differences from the "
        f"others, with paired randomization tests at {decision.alpha:g}, which are not corrected for their number:",
        "",
        *_table(["against", decision.measure, *COLUMNS], rows),
    ]
    lines += ["", f"**Let through by a person:** {markdown(override)}"] if override else []
    if elsewhere:
        rankers = list(dict.fromkeys(ranker for found in elsewhere.values() for ranker in found))
        cells = [
            [markdown(name.get(ranker, ranker)), *(number(found.get(ranker)) for found in elsewhere.values())]
            for ranker in rankers
        ]
        lines += ["", f"{decision.measure} on the test splits, which decide nothing:", ""]
        lines += _table(["ranker", *map(markdown, elsewhere)], cells)
    return "\n".join(lines) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows]]


def _test(
    candidate: np.ndarray, other: np.ndarray, name: str, bound: float, must_beat: bool, alpha: float, seed: int
) -> GateTest:
    differences = candidate - other
    # The null hypothesis is a mean difference of `bound`, so that is taken off before signs are flipped.
    beyond, p = float(np.mean(differences)) - bound, paired_randomization(candidate, other + bound, seed)
    sign = "above" if must_beat else "below"
    return GateTest(
        name,
        float(np.mean(differences)),
        *bootstrap_interval(differences, seed),
        effect_size(differences),
        p,
        noticed_loss(differences, alpha),
        *wins_losses_ties(candidate, other),
        demand=f"{'' if must_beat else 'not '}significantly {sign}",
        bound=bound,
        passed=(beyond > 0 and p < alpha) if must_beat else not (beyond < 0 and p < alpha),
    )


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
