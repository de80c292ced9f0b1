"""The release gate's decision for people: its evidence as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from neuroranker_pipeline.evaluation.rankers import SEARCH
from neuroranker_pipeline.evaluation.release import Decision, Difference, GateTest, release_number
from neuroranker_pipeline.evaluation.tables import DASH, markdown, number, p_number, signed


def render_decision(
    decision: Decision,
    outcome: str,
    compared_with: str,
    override: str,
    elsewhere: Mapping[str, Mapping[str, float]],
    gone: Sequence[int] = (),
) -> str:
    """The decision and its evidence as Markdown.

    ``outcome`` heads it, ``compared_with`` names the best release and ``override`` says who let the model through, why and
    when, each empty if there is none; ``elsewhere``: {split: {ranker: value}} of the splits that decide nothing; ``gone``:
    releases that are no longer kept, and so were not measured again.
    """
    names = {test.against: compared_with for test in decision.tests if release_number(test.against) is not None}
    low, high = decision.intervals[SEARCH]
    level = f"{100 * (1 - decision.alpha):g}% interval"
    lines = [
        f"# Release decision: {outcome}{', on weak evidence' if decision.passed and decision.evidence == 'weak' else ''}",
        "",
        f"{SEARCH} on the {decision.queries:,} queries of the gate split: {decision.measure} "
        f"{number(decision.means[SEARCH])} ({level} {number(low)} to {number(high)}). Its differences from the others, each "
        f"tested at {decision.alpha:g}, which is not corrected for their number:",
        "",
        *_tests(decision, names, level),
        *_weak_evidence(decision, names),
        *_besides(decision, level),
    ]
    if gone:
        lines += ["", f"No longer kept, and not measured again: {', '.join(f'release {one}' for one in gone)}."]
    lines += ["", f"**Let through by a person:** {markdown(override)}"] if override else []
    if elsewhere:
        rankers = list(dict.fromkeys(ranker for found in elsewhere.values() for ranker in found))
        cells = [
            [markdown(names.get(ranker, ranker)), *(number(found.get(ranker)) for found in elsewhere.values())]
            for ranker in rankers
        ]
        lines += ["", f"{decision.measure} on the test splits, which decide nothing:", ""]
        lines += _table(["ranker", *map(markdown, elsewhere)], cells)
    return "\n".join(lines) + "\n"


def weak_evidence(test: GateTest, queries: int) -> str:
    """What a test on too few queries showed, and how many it would take; empty for full evidence."""
    if not test.weak:
        return ""
    if test.needed is None:
        return "no number of queries shows that nothing at all is lost"
    return f"{queries:,} judged queries, and it takes {test.needed:,} to find a loss of {number(-test.bound)}"


def _tests(decision: Decision, names: Mapping[str, str], level: str) -> list[str]:
    header = ["against", decision.measure, "difference", level, "p", "d_z", "would notice", "wins / losses / ties"]
    rows = [
        [
            *_cells(decision, test, names),
            p_number(test.p),
            signed(test.effect) if math.isfinite(test.effect) else DASH,
            number(test.noticed) if math.isfinite(test.noticed) else DASH,
            _counts(test),
            test.demand + (f" {signed(test.bound)}" if test.bound and not test.weak else ""),
            f"{'passed' if test.passed else '**failed**'}{', weak evidence' if test.weak else ''}",
        ]
        for test in decision.tests
    ]
    return _table([*header, "demanded", ""], rows)


def _weak_evidence(decision: Decision, names: Mapping[str, str]) -> Iterator[str]:
    for test in decision.tests:
        if test.weak:
            against = markdown(names.get(test.against, test.against))
            yield from ("", f"**Weak evidence** against {against}: {weak_evidence(test, decision.queries)}.")


def _besides(decision: Decision, level: str) -> list[str]:
    if not decision.besides:
        return []
    rows = [[*_cells(decision, one, {}), _counts(one)] for one in decision.besides]
    header = ["against", decision.measure, "difference", level, "wins / losses / ties"]
    return ["", f"{SEARCH} beside what decides nothing:", "", *_table(header, rows)]


def _cells(decision: Decision, one: Difference, names: Mapping[str, str]) -> list[str]:
    return [
        markdown(names.get(one.against, one.against)),
        number(decision.means[one.against]),
        signed(one.difference),
        f"{signed(one.low)} to {signed(one.high)}",
    ]


def _counts(one: Difference) -> str:
    return f"{one.wins} / {one.losses} / {one.ties}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows]]
