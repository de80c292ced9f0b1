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
def search_beats_bm25(test: GateTest | None, override: Override | None) -> Verdict:
    """On the gate split search is significantly above BM25; `neuroranker release --override REASON` overrides."""
    return _verdict(test, override)


@rule
def search_not_worse_than_base(test: GateTest | None, override: Override | None) -> Verdict:
    """On the gate split search loses less than `release.loss_to_base` to the base student; `neuroranker release --override
    REASON` overrides."""
    return _verdict(test, override)


@rule
def search_not_worse_than_best_release(test: GateTest | None, override: Override | None) -> Verdict:
    """On the gate split search loses less than `release.loss_to_release` to the best release kept; `neuroranker release
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
    from neuroranker_pipeline.evaluation.release_report import weak_evidence
    from neuroranker_pipeline.evaluation.tables import p_number

    if test is None:
        return Verdict(True, {"released": "nothing yet"})
    weak = weak_evidence(test, test.wins + test.losses + test.ties)
    evidence: dict[str, Any] = {
        "against": test.against,
        "difference": round(test.difference, 6),
        "interval": f"{test.low:+.4f} to {test.high:+.4f}",
        "p": p_number(test.p),
        "wins/losses/ties": f"{test.wins}/{test.losses}/{test.ties}",
        "demanded": test.demand if test.weak else f"{test.demand} {test.bound:+g}",
        "evidence": f"weak: {weak}" if weak else "full",
    }
    if test.passed or override is None:
        return Verdict(test.passed, evidence)
    return Verdict(True, {**evidence, "overridden": f"{override.reason} ({_by(override)})"})


def _by(event: Override | Rollback) -> str:
    return f"{event.who}, {event.at}"
