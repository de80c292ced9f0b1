"""The release gate's rule, on values that are made to pass or to fail it."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from neuroranker_pipeline.datasets.tables import RANKER_VALUES
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.evaluation.measures import per_query
from neuroranker_pipeline.evaluation.release import (
    Decision,
    decide,
    effect_size,
    gate_values,
    noticed_loss,
    render_decision,
    vectors_of,
)
from neuroranker_pipeline.evaluation.significance import paired_randomization

SEEDS = np.random.default_rng(7)
BASE = SEEDS.uniform(0, 1, 80)
NOISE = SEEDS.normal(0, 0.05, 80)
NOISE -= NOISE.mean()


def judge(candidate: float = 0.0, bm25: float = -0.2, last: float | None = None, **rules: float) -> Decision:
    """The rule on 80 queries; the numbers are mean differences from the base student, with a little noise."""
    values = {"BM25": BASE + bm25, "base student": BASE, "student int8": BASE + candidate + NOISE}
    if last is not None:
        values["last release"] = BASE + last
    return decide(values, "MRR@10", **rules)


@pytest.mark.parametrize(
    ("decision", "failed"),
    [
        pytest.param(judge(), [], id="equal to the base student"),
        pytest.param(judge(0.1, last=0.05), [], id="above all"),
        pytest.param(judge(bm25=0.0), ["BM25"], id="above BM25 by chance"),
        pytest.param(judge(-0.1, bm25=-0.3), ["base student"], id="below the base student"),
        pytest.param(judge(last=0.1), ["last release"], id="below the last release"),
        pytest.param(judge(-0.3, last=0.1), ["BM25", "base student", "last release"], id="below all"),
        pytest.param(judge(last=0.005), [], id="a loss that chance explains"),
        pytest.param(judge(last=0.1, tolerated_loss=0.15), [], id="a loss that is tolerated"),
        pytest.param(judge(last=0.1, tolerated_loss=0.05), ["last release"], id="a loss beyond the tolerated one"),
        pytest.param(judge(over_bm25=0.1), [], id="the demanded gain"),
        pytest.param(judge(over_bm25=0.2), ["BM25"], id="not the demanded gain"),
    ],
)
def test_the_rule(decision: Decision, failed: list[str]) -> None:
    assert [test.against for test in decision.tests if not test.passed] == failed
    assert decision.passed == (not failed)


def test_a_handful_of_queries_passes_nothing_by_chance() -> None:
    """Five queries, all won: p is 1/16, which shows nothing. Bounds as wide as the measure let everything through."""
    few = {"BM25": np.zeros(5), "base student": np.ones(5), "student int8": np.full(5, 0.5)}
    assert not decide(few, "MRR@10").passed
    few = {name: np.repeat(values, 2) for name, values in few.items()}
    assert decide(few, "MRR@10", over_bm25=-1.0, tolerated_loss=1.0).passed
    assert not decide(few, "MRR@10").passed


def test_the_figures_are_those_of_the_standard_tests() -> None:
    rng = np.random.default_rng(3)
    candidate, other = rng.uniform(0, 1, 12), rng.uniform(0, 1, 12)
    decision = decide({"student int8": candidate, "BM25": other}, "MRR@10")
    test = decision.test_against("BM25")
    assert test is not None
    exact = stats.permutation_test((candidate - other,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert test.p == pytest.approx(exact.pvalue)
    assert test.difference == pytest.approx(np.mean(candidate - other))
    # A paired t is d_z times the root of n.
    assert test.effect * math.sqrt(12) == pytest.approx(stats.ttest_rel(candidate, other).statistic)
    assert test.wins + test.losses + test.ties == 12
    assert decision.test_against("last release") is None


def test_a_bound_is_taken_off_before_signs_are_flipped() -> None:
    rng = np.random.default_rng(4)
    candidate, other = rng.uniform(0, 1, 30), rng.uniform(0, 1, 30)
    test = decide({"student int8": candidate, "base student": other}, "MRR@10", tolerated_loss=0.25).tests[0]
    assert test.p == paired_randomization(candidate + 0.25, other)
    assert test.difference == pytest.approx(np.mean(candidate - other))


def test_the_loss_that_would_be_noticed_is_noticed_four_times_in_five() -> None:
    rng = np.random.default_rng(5)
    sample = rng.normal(0, 1, 100)
    loss = noticed_loss(0.3 * sample / np.std(sample, ddof=1), 0.05)
    found = [stats.ttest_1samp(rng.normal(-loss, 0.3, 100), 0).pvalue < 0.05 for _ in range(1_000)]
    assert 0.75 < np.mean(found) < 0.85
    assert math.isnan(noticed_loss(np.zeros(1), 0.05))


def test_an_effect_without_spread_has_no_size() -> None:
    assert math.isnan(effect_size(np.full(5, 0.1)))
    assert math.isnan(effect_size(np.array([0.1])))


def test_a_decision_without_spread_is_still_json() -> None:
    decision = decide({"student int8": np.ones(1), "BM25": np.zeros(1)}, "MRR@10")
    written = json.loads(json.dumps(decision.to_dict(), allow_nan=False))
    assert written["tests"][0]["effect"] is None
    assert written["passed"] is False


def run(*rows: tuple[str, str, float]) -> pa.Table:
    return pa.table({"qid": [r[0] for r in rows], "pid": [r[1] for r in rows], "score": [r[2] for r in rows]})


QRELS = pa.table({"qid": ["q1", "q2"], "pid": ["a", "b"], "grade": pa.array([1, 1], pa.int32())})
RUNS = {
    "BM25": run(("q1", "a", 1.0), ("q1", "b", 2.0), ("q2", "b", 1.0)),
    "student int8": run(("q1", "a", 3.0), ("q1", "b", 2.0)),
}


def test_values_are_those_of_the_report() -> None:
    values = gate_values(RUNS, QRELS, ["MRR@10", "nDCG@10"])
    assert values.schema == RANKER_VALUES
    assert vectors_of(values, "MRR@10")["BM25"].tolist() == [0.5, 1.0]
    assert vectors_of(values, "MRR@10")["student int8"].tolist() == [1.0, 0.0], "a query without results counts 0"
    for name, ranking in RUNS.items():
        expected = per_query(ranking, QRELS, ["nDCG@10"])["value"].to_pylist()
        assert vectors_of(values, "nDCG@10")[name].tolist() == expected


def test_values_that_do_not_pair_are_refused() -> None:
    values = gate_values(RUNS, QRELS, ["MRR@10"])
    with pytest.raises(BadInput, match="gate: student int8 has no MRR@10 for 1 queries, the first is q2"):
        vectors_of(values.slice(0, 3), "MRR@10")
    with pytest.raises(BadInput, match="gate: MAP was measured for no query"):
        vectors_of(values, "MAP")


def test_the_evidence_reads() -> None:
    text = render_decision(
        judge(-0.1, bm25=-0.3, last=0.1),
        "blocked",
        "last release (2)",
        "",
        {"test": {"BM25": 0.372, "student int8": 0.5}},
    )
    assert text.startswith("# Release decision: blocked\n")
    gate, tests = text.split("on the test splits, which decide nothing:")
    rows = {line.split("|")[1].strip(): line for line in gate.splitlines() if line.startswith("|")}
    assert "passed" in rows["BM25"]
    assert "**failed**" in rows["base student"]
    assert "not significantly below" in rows["last release (2)"]
    assert "| BM25 | 0.372 |" in tests
    word = render_decision(judge(), "released", "", "a | b", {})
    assert "**Let through by a person:** a \\| b" in word
