"""How often the release gate is right: releases among models that lose nothing, and among those that lose what is accepted.

    python benchmarks/gate.py data_lake/quickstart/eval_report/test/versions/NEWEST/per_query.parquet

The argument is an evaluation's values per query (columns ranker, qid, measure, value), or the folder of a gate_evaluation.
Gates of several sizes are drawn from its queries, with replacement, so that differences vary and tie as they do there. What
is true is set by drawing some queries more often than others: the weights closest to equal ones (in Kullback-Leibler
divergence; exponential tilting, Efron 1981, "Nonparametric standard errors and confidence intervals") under which the mean
differences from the base student and from the release are the wanted ones. So every value is one that was measured. Each
gate is judged by the pipeline's own ``decide``, with its defaults but for fewer sign patterns.

Of the release there is no second training to be had in an evaluation: ``--release`` names the ranker that stands for it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from measured import table
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from neuroranker_pipeline.config.settings import ReleaseSettings
from neuroranker_pipeline.evaluation.rankers import BASE, FIRST_STAGE, INT8, SEARCH
from neuroranker_pipeline.evaluation.release import Decision, decide, release_name, vectors_of

RULES = ReleaseSettings()
RELEASE = release_name(1)
SIZES = (100, 300, 1_000, 3_000)
PATTERNS = 199  # a test at 0.05 with 199 patterns errs as often as one with 9,999


@dataclass(frozen=True)
class Truth:
    """What is true in a simulation: the mean differences from the base student, None for the observed one, and from the
    release; ``against`` is the test that is counted."""

    against: str
    name: str
    base: float | None
    release: float


TRUTHS = (
    Truth(BASE, "no loss", 0.0, 0.0),
    Truth(BASE, "loss", -RULES.loss_to_base, 0.0),
    Truth(RELEASE, "no loss", None, 0.0),
    Truth(RELEASE, "loss", None, -RULES.loss_to_release),
)


def tilted(differences: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Chances of the rows of ``differences``, (queries, k), closest to equal ones, under which they have these means, (k,).

    Raises ``SystemExit`` when no chances give them.
    """
    with np.errstate(all="ignore"):  # means out of reach are looked for without end
        found = minimize(
            lambda t: logsumexp(differences @ t) - t @ means,
            np.zeros(len(means)),
            jac=lambda t: softmax(differences @ t) @ differences - means,
            method="BFGS",
            options={"gtol": 1e-9},
        )
    chances = softmax(differences @ found.x)
    if np.abs(chances @ differences - means).max() > 1e-4:
        raise SystemExit(f"no weights of these queries give mean differences of {means}")
    return chances


def chances_of(values: Mapping[str, np.ndarray], truth: Truth) -> np.ndarray:
    """The chance of each query, (queries,), under which ``truth`` is true."""
    wanted = {name: mean for name, mean in ((BASE, truth.base), (RELEASE, truth.release)) if mean is not None}
    return tilted(np.column_stack([values[SEARCH] - values[name] for name in wanted]), np.array(list(wanted.values())))


def simulate(
    values: Mapping[str, np.ndarray], truth: Truth, queries: int, repeats: int, rng: np.random.Generator
) -> Counter[str]:
    """How many of the ``repeats`` gates end how: ``full`` and ``weak``, the test passed on that evidence; ``all``, all three
    tests passed."""
    chances, counts = chances_of(values, truth), Counter[str]()
    for _ in range(repeats):
        rows = rng.choice(len(chances), queries, p=chances)
        decision = judged({name: column[rows] for name, column in values.items()})
        test = decision.test_against(truth.against)
        assert test is not None
        counts["weak" if test.weak else "full"] += test.passed
        counts["all"] += decision.passed
    return counts


def judged(values: Mapping[str, np.ndarray]) -> Decision:
    """By the rules as they are by default."""
    return decide(
        values,
        RULES.measure,
        RULES.alpha,
        RULES.over_bm25,
        RULES.loss_to_base,
        RULES.loss_to_release,
        patterns=PATTERNS,
    )


def read_values(path: Path, candidate: str, release: str) -> dict[str, np.ndarray]:
    """The measure of the gate by ranker, under the gate's names; ``candidate`` is what search ships."""
    found = vectors_of(pq.read_table(path), RULES.measure)
    names = {FIRST_STAGE: FIRST_STAGE, BASE: BASE, SEARCH: candidate, RELEASE: release}
    missing = [name for name in names.values() if name not in found]
    if missing:
        raise SystemExit(f"{path}: no ranker {missing[0]!r}, there are {', '.join(found)}")
    return {ours: found[theirs] for ours, theirs in names.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("values", type=Path)
    parser.add_argument("--candidate", default=INT8, help="the ranker that is judged")
    parser.add_argument("--release", default="hard-label control", help="the ranker that stands for the best release")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="queries of a gate")
    parser.add_argument("--repeats", type=int, default=2_000, help="gates of each size and truth")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    values, rng = read_values(options.values, options.candidate, options.release), np.random.default_rng(options.seed)
    for name in (BASE, RELEASE):
        difference = values[SEARCH] - values[name]
        print(
            f"{name}: {len(difference)} queries, mean difference {difference.mean():+.3f}, standard deviation "
            f"{difference.std(ddof=1):.3f}, {np.mean(difference == 0):.0%} ties"
        )
    rows = []
    for queries in options.sizes:
        found = {truth: simulate(values, truth, queries, options.repeats, rng) for truth in TRUTHS}
        for against in (BASE, RELEASE):
            cells = []
            for truth, counts in found.items():
                if truth.against == against:
                    cells += [f"{counts[key] / options.repeats:.3f}" for key in ("full", "weak", "all")]
            rows.append([f"{queries:,}", against, *cells])
    head = ("full evidence", "weak evidence", "the whole gate")
    print()
    print(table(["queries", "against", *(f"{truth}: {one}" for truth in ("no loss", "loss") for one in head)], rows))


if __name__ == "__main__":
    main()
