"""The release gate's checks. Without an override, a failed one keeps the Bento from being built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neuroranker_pipeline.checks.rule import Verdict, rule

if TYPE_CHECKING:  # evaluation imports SciPy, and this module is imported with the code location
    from neuroranker_pipeline.evaluation.release import GateTest
    from neuroranker_pipeline.resources.releases import Override, Rollback


@rule
def gate_is_measured(queries: int, rankers: int, values: int) -> Verdict:
    """The gate split has judged queries, and each ranker has a value for each of them."""
    return Verdict(queries > 0 and values == queries * rankers, {"queries": queries, "rankers": rankers})


@rule
def int8_beats_bm25(test: GateTest | None, override: Override | None) -> Verdict:
    """On the gate split the int8 student is significantly above BM25; `neuroranker release --override REASON` overrides."""
    return _verdict(test, override)


@rule
def int8_not_worse_than_base(test: GateTest | None, override: Override | None) -> Verdict:
    """On the gate split the int8 student is not significantly below the base student; `neuroranker release --override
    REASON` overrides."""
    return _verdict(test, override)


@rule
def int8_not_worse_than_last_release(test: GateTest | None, override: Override | None) -> Verdict:
    """On the gate split the int8 student is not significantly below the last released model; `neuroranker release
    --override REASON` overrides."""
    return _verdict(test, override)


@rule
def was_not_rolled_back(withdrawal: Rollback | None) -> Verdict:
    """Nobody rolled this model back; `neuroranker releases` lists it, and `neuroranker rollback VERSION` restores it."""
    if withdrawal is None:
        return Verdict(True)
    return Verdict(False, {"rolled_back": f"{withdrawal.reason or 'no reason given'} ({_by(withdrawal)})"})


@rule
def release_is_latest(latest: str | None, tag: str) -> Verdict:
    """The BentoML store's latest Bento of that name is the one just released."""
    return Verdict(latest == tag, {"latest": str(latest), "released": tag})


def _verdict(test: GateTest | None, override: Override | None) -> Verdict:
    """Whether the test was passed, or a person let the model through, which the evidence then says."""
    if test is None:
        return Verdict(True, {"released": "nothing yet"})
    evidence: dict[str, Any] = {
        "difference": round(test.difference, 6),
        "p": round(test.p, 6),
        "wins/losses/ties": f"{test.wins}/{test.losses}/{test.ties}",
        "demanded": f"{test.demand} {test.bound:+g}",
    }
    if test.passed or override is None:
        return Verdict(test.passed, evidence)
    return Verdict(True, {**evidence, "overridden": f"{override.reason} ({_by(override)})"})


def _by(event: Override | Rollback) -> str:
    return f"{event.who}, {event.at}"
