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
    fewest_queries,
    gate_values,
    noticed_loss,
    queries_needed,
    vectors_of,
)
from neuroranker_pipeline.evaluation.release_report import render_decision
from neuroranker_pipeline.evaluation.significance import paired_randomization
from neuroranker_pipeline.evaluation.tables import MINUS

SEEDS = np.random.default_rng(7)
QUERIES = 400
BASE = SEEDS.uniform(0, 1, QUERIES)


def noise(size: int, spread: float) -> np.ndarray:
    drawn = np.random.default_rng(size).normal(0, 1, size)
    return spread * (drawn - drawn.mean()) / drawn.std()


def judge(
    candidate: float = 0.0,
    bm25: float = -0.2,
    releases: dict[int, float] | None = None,
    queries: int = QUERIES,
    spread: float = 0.1,
    **rules: float,
) -> Decision:
    """The rule on queries whose differences vary by ``spread``; the numbers are mean differences from the base student."""
    base = BASE[:queries]
    values = {"BM25": base + bm25, "base student": base, "search": base + candidate + noise(queries, spread)}
    values |= {f"release {number}": base + mean for number, mean in (releases or {}).items()}
    return decide(values, "MRR@10", **rules)


# With a spread of 0.1 over 400 queries the interval reaches 0.01 to either side.
@pytest.mark.parametrize(
    ("decision", "failed"),
    [
        pytest.param(judge(), [], id="equal to the base student"),
        pytest.param(judge(0.1, releases={1: 0.05}), [], id="above all"),
        pytest.param(judge(bm25=0.0), ["BM25"], id="above BM25 by chance"),
        pytest.param(judge(-0.03), [], id="below the base student, and by less than what is accepted"),
        pytest.param(judge(-0.045), ["base student"], id="a loss that may be the accepted one"),
        pytest.param(judge(-0.1, bm25=-0.3), ["base student"], id="below the base student"),
        pytest.param(judge(releases={1: 0.015}), [], id="a loss to the release that is accepted"),
        pytest.param(judge(releases={1: 0.025}), ["release 1"], id="one that may be larger"),
        pytest.param(judge(releases={1: 0.025}, loss_to_release=0.04), [], id="and is accepted by another rule"),
        pytest.param(judge(-0.3, releases={1: 0.1}), ["BM25", "base student", "release 1"], id="below all"),
        pytest.param(judge(releases={1: 0.1, 2: 0.0}), ["release 1"], id="the best release counts, not the last"),
        pytest.param(judge(over_bm25=0.1), [], id="the demanded gain"),
        pytest.param(judge(over_bm25=0.2), ["BM25"], id="not the demanded gain"),
    ],
)
def test_the_rule(decision: Decision, failed: list[str]) -> None:
    assert [test.against for test in decision.tests if not test.passed] == failed
    assert decision.passed == (not failed)
    assert decision.evidence == "full"


def test_small_losses_do_not_add_up() -> None:
    """Each release loses 0.02 to the one before, which is accepted once."""
    released, means = {1: 0.0}, []
    for number in range(2, 6):
        mean = -0.02 * (number - 1)
        decision = judge(mean, bm25=-0.5, releases=dict(released), spread=0.05)
        means.append((decision.passed, decision.best_release))
        if decision.passed:
            released[number] = mean
    assert means == [(True, 1), (False, 1), (False, 1), (False, 1)]


def test_of_equal_releases_the_newest_is_the_best_and_the_others_stand_beside() -> None:
    decision = judge(releases={2: 0.01, 10: 0.01, 9: 0.0})
    assert decision.best_release == 10
    assert {one.against for one in decision.besides} == {"release 2", "release 9"}
    beside = next(one for one in decision.besides if one.against == "release 9")
    assert beside.difference == pytest.approx(0.0)
    assert beside.low == pytest.approx(-0.01, abs=1e-3)


def test_the_student_alone_decides_nothing() -> None:
    values = {"BM25": BASE - 0.2, "base student": BASE, "search": BASE + noise(QUERIES, 0.1)}
    decision = decide({**values, "student int8": BASE + 0.5}, "MRR@10")
    assert decision.passed
    (beside,) = decision.besides
    assert (beside.against, beside.losses) == ("student int8", QUERIES)
    assert decision.tests == decide(values, "MRR@10").tests


@pytest.mark.parametrize(
    ("decision", "passed"),
    [
        pytest.param(judge(queries=60), True, id="fewer than can ever show it"),
        pytest.param(judge(-0.04, queries=60), False, id="significantly below"),
        pytest.param(judge(-0.04, spread=0.5), True, id="too much spread: a loss that chance explains"),
        pytest.param(judge(-0.06, spread=0.5), False, id="too much spread, and significantly below"),
        pytest.param(judge(spread=0.5, loss_to_base=0.0), True, id="no loss is accepted, which nothing proves"),
    ],
)
def test_too_few_queries_are_weak_evidence(decision: Decision, passed: bool) -> None:
    test = decision.test_against("base student")
    assert test is not None
    assert (test.weak, test.passed, decision.evidence) == (True, passed, "weak")
    assert test.passed == (not (test.difference < 0 and test.p < 0.05))
    assert decision.to_dict()["evidence"] == "weak"


def test_what_is_proven_is_no_weak_evidence_however_few_the_queries() -> None:
    test = judge(0.2, spread=0.5).test_against("base student")
    assert test is not None
    assert test.noticed > 0.05
    assert (test.passed, test.weak) == (True, False)


def test_the_number_of_queries_that_it_takes() -> None:
    differences = noise(QUERIES, 0.5)
    needed = queries_needed(differences, 0.05, 0.05)
    assert needed == math.ceil(((1.959964 + 0.841621) * np.std(differences, ddof=1) / 0.05) ** 2) == 787
    assert noticed_loss(noise(788, 0.5), 0.05) <= 0.05
    assert queries_needed(np.zeros(5), 0.05, 0.05) == fewest_queries(0.05, 0.05) == 72
    assert 0.95**72 <= 0.025 < 0.95**71
    assert fewest_queries(1.0, 0.05) == 1
    assert queries_needed(differences, 0.0, 0.05) is None


def test_a_handful_of_queries_passes_nothing_by_chance() -> None:
    """Five queries, all won: p is 1/16, which shows nothing. Bounds as wide as the measure let everything through."""
    few = {"BM25": np.zeros(5), "base student": np.ones(5), "search": np.full(5, 0.5)}
    assert not decide(few, "MRR@10").passed
    few = {name: np.repeat(values, 2) for name, values in few.items()}
    assert decide(few, "MRR@10", over_bm25=-1.0, loss_to_base=1.0).passed
    assert not decide(few, "MRR@10").passed
    alone = {name: values[:1] for name, values in few.items()}
    assert decide(alone, "MRR@10", over_bm25=-1.0, loss_to_base=1.0).evidence == "weak"


def test_the_figures_are_those_of_the_standard_tests() -> None:
    rng = np.random.default_rng(3)
    candidate, other = rng.uniform(0, 1, 12), rng.uniform(0, 1, 12)
    decision = decide({"search": candidate, "BM25": other}, "MRR@10")
    test = decision.test_against("BM25")
    assert test is not None
    exact = stats.permutation_test((candidate - other,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert test.p == pytest.approx(exact.pvalue)
    assert test.difference == pytest.approx(np.mean(candidate - other))
    # A paired t is d_z times the root of n.
    assert test.effect * math.sqrt(12) == pytest.approx(stats.ttest_rel(candidate, other).statistic)
    assert test.wins + test.losses + test.ties == 12
    assert decision.test_against_release() is None


def test_a_bound_is_taken_off_before_signs_are_flipped() -> None:
    rng = np.random.default_rng(4)
    candidate, other = rng.uniform(0, 1, 30), rng.uniform(0, 1, 30)
    test = decide({"search": candidate, "BM25": other}, "MRR@10", over_bm25=0.25).tests[0]
    assert test.p == paired_randomization(candidate, other + 0.25)
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
    decision = decide({"search": np.ones(1), "BM25": np.zeros(1)}, "MRR@10")
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
        judge(-0.1, bm25=-0.3, releases={2: 0.1, 1: 0.0}),
        "blocked",
        "release 2, the best that is kept",
        "",
        {"test": {"BM25": 0.372, "search": 0.5}},
        [3],
    )
    assert text.startswith("# Release decision: blocked\n")
    gate, tests = text.split("on the test splits, which decide nothing:")
    rows = {line.split("|")[1].strip(): line for line in gate.splitlines() if line.startswith("|")}
    assert "| <0.00001 |" in rows["BM25"]
    assert rows["BM25"].endswith("| significantly above | passed |")
    assert rows["base student"].endswith(f"| lower end above {MINUS}0.050 | **failed** |")
    assert rows["release 2, the best that is kept"].endswith(f"| lower end above {MINUS}0.030 | **failed** |")
    assert "failed" not in rows["release 1"]
    assert "No longer kept, and not measured again: release 3." in gate
    assert "| BM25 | 0.372 |" in tests
    word = render_decision(judge(), "released", "", "a | b", {})
    assert "**Let through by a person:** a \\| b" in word
    assert "eak evidence" not in word


def test_weak_evidence_is_said() -> None:
    text = render_decision(judge(-0.04, spread=0.5), "released", "", "", {})
    assert text.startswith("# Release decision: released, on weak evidence\n")
    assert (
        "**Weak evidence** against base student: 400 judged queries, and it takes 787 to find a loss of 0.050." in text
    )
    assert "| not significantly below | passed, weak evidence |" in text
