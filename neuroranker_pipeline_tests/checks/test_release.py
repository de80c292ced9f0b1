"""The gate's checks: a failed test blocks, and an override lets it pass without hiding it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from neuroranker_pipeline.checks import release as checks
from neuroranker_pipeline.evaluation.release import GateTest, decide
from neuroranker_pipeline.resources.manifest import Check
from neuroranker_pipeline.resources.releases import Override, Rollback

WORD = Override("m", "the index is being replaced", "ada@lab", "2026-01-01T00:00:00+00:00")
RULES = (checks.search_beats_bm25, checks.search_not_worse_than_base, checks.search_not_worse_than_best_release)


def judged(difference: float, against: str = "BM25", **rules: float) -> GateTest:
    values = np.linspace(0.2, 0.8, 40)
    return decide({"search": values + difference, against: values}, "MRR@10", **rules).tests[0]


@pytest.mark.parametrize("rule", RULES)
def test_a_failed_test_blocks_and_says_how_to_override(rule: Callable[..., Check]) -> None:
    check = rule(judged(-0.1), None)
    assert not check.passed
    assert check.blocking
    assert "neuroranker release --override REASON" in check.description
    assert check.metadata["wins/losses/ties"] == "0/40/0"
    assert check.metadata["difference"] == pytest.approx(-0.1)


@pytest.mark.parametrize("rule", RULES)
def test_an_override_passes_and_stays_visible(rule: Callable[..., Check]) -> None:
    check = rule(judged(-0.1), WORD)
    assert check.passed
    assert check.metadata["overridden"] == "the index is being replaced (ada@lab, 2026-01-01T00:00:00+00:00)"
    assert check.metadata["difference"] == pytest.approx(-0.1)
    assert "overridden" not in rule(judged(0.1), WORD).metadata, "what passes by itself needs no word"


def test_the_evidence_says_how_strong_it_is() -> None:
    assert checks.search_beats_bm25(judged(0.1), None).metadata["evidence"] == "full"
    weak = checks.search_not_worse_than_best_release(judged(0.0, "release 3"), None)
    assert weak.passed
    assert weak.metadata["against"] == "release 3"
    assert weak.metadata["evidence"] == "weak: 40 judged queries, and it takes 122 to find a loss of 0.030"
    assert weak.metadata["demanded"] == "not significantly below"
    full = checks.search_not_worse_than_base(judged(0.0, "base student", loss_to_base=0.1), None)
    assert (full.metadata["demanded"], full.metadata["evidence"]) == ("lower end above -0.1", "full")
    assert checks.search_beats_bm25(judged(0.1), None).metadata["p"] == "<0.00001"


def test_without_a_release_there_is_nothing_to_fall_below() -> None:
    check = checks.search_not_worse_than_best_release(None, None)
    assert check.passed
    assert check.metadata == {"released": "nothing yet"}


def test_what_was_rolled_back_is_not_released_again() -> None:
    assert checks.was_not_rolled_back(None).passed
    check = checks.was_not_rolled_back(Rollback(1, 2, "", "ada@lab", "today"))
    assert not check.passed
    assert check.metadata == {"rolled_back": "no reason given (ada@lab, today)"}


def test_the_release_must_be_what_the_store_serves() -> None:
    assert checks.release_is_latest("ranker:a", "ranker:a").passed
    assert not checks.release_is_latest("ranker:b", "ranker:a").passed
    assert not checks.release_is_latest(None, "ranker:a").passed


@pytest.mark.parametrize(("queries", "values", "passed"), [(10, 40, True), (10, 39, False), (0, 0, False)])
def test_the_gate_needs_a_value_of_every_ranker_for_every_query(queries: int, values: int, passed: bool) -> None:
    assert checks.gate_is_measured(queries, 4, values).passed is passed
