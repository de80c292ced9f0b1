"""What an evaluation says, in sentences: the ceiling, the change that ships, and whether distilling earned
its place.
"""

from __future__ import annotations

from neuroranker_pipeline.evaluation.evaluation import Comparison, Evaluation
from neuroranker_pipeline.evaluation.rankers import BASE, FIRST_STAGE, INT8, SEARCH
from neuroranker_pipeline.evaluation.significance import Paired
from neuroranker_pipeline.evaluation.tables import number, p_value, signed

ALPHA = 0.05
FEW_QUERIES = 50


def findings(evaluation: Evaluation) -> list[str]:
    """Sentences for the head of the report, bad news as plainly as good."""
    pairs = {(c.ranker, c.against): c for c in evaluation.comparisons}
    final, wanted = evaluation.final, []
    for against in (evaluation.reference, BASE):
        if against and (final, against) in pairs:
            wanted.append((final, against))
    sentences = [_ceiling(evaluation)] + [_sentence(pairs[pair]) for pair in dict.fromkeys(wanted)]
    if ("student", "hard-label control") in pairs:
        sentences.append(_distillation(pairs["student", "hard-label control"]))
    for pair in (("student", "teacher"), (INT8, "student"), (SEARCH, INT8)):
        if pair in pairs:
            sentences.append(_sentence(pairs[pair]))
    return [sentence for sentence in [*sentences, *_cautions(evaluation)] if sentence]


def verdict(comparison: Paired) -> str:
    """``better``, ``worse`` or ``not significantly different`` at 0.05 after Holm's correction."""
    if comparison.p_holm >= ALPHA or comparison.difference == 0:
        return "not significantly different"
    return "better" if comparison.difference > 0 else "worse"


def _ceiling(evaluation: Evaluation) -> str:
    first = next((row for row in evaluation.rankers if row.ranker == FIRST_STAGE), None)
    if first is None or evaluation.ceiling is None:
        return ""
    best, primary = evaluation.ceiling, evaluation.primary
    recall = ""
    if "R@100" in first.measures:
        recall = f"BM25 has R@100 {number(first.measures['R@100'])}: what it misses, no re-ranker can bring back. "
    perfect = ", ".join(f"{m} {number(best[m])}" for m in dict.fromkeys((primary, "nDCG@10")) if m in best)
    return f"Ceiling: {recall}A perfect order of its candidates would have {perfect}."


def _sentence(c: Comparison) -> str:
    return f"{c.ranker} against {c.against}: {_numbers(c)}; {verdict(c)}. {_counts(c)}"


def _distillation(c: Comparison) -> str:
    conclusion = {
        "better": "distilling from the teacher earned its place",
        "worse": "distilling made the student worse than hard labels alone; use the control",
    }.get(verdict(c), "on these queries distilling has not shown that it earns its place over hard labels alone")
    return f"Distilled student against its hard-label control: {_numbers(c)}; {conclusion}. {_counts(c)}"


def _numbers(c: Comparison) -> str:
    interval = f"95% interval {signed(c.low)} to {signed(c.high)}, " if c.low == c.low else ""
    return f"{signed(c.difference)} {c.measure} ({interval}Holm-adjusted {p_value(c.p_holm, c.p)})"


def _counts(c: Comparison) -> str:
    return f"Wins {c.wins}, losses {c.losses}, ties {c.ties}."


def _cautions(evaluation: Evaluation) -> list[str]:
    notes = []
    if evaluation.queries < FEW_QUERIES:
        notes.append(
            f"Only {evaluation.queries} judged queries: differences this report calls insignificant may be real."
        )
    if evaluation.queries_without_relevant:
        notes.append(
            f"{evaluation.queries_without_relevant} judged queries have no relevant passage; they count 0 for every ranker."
        )
    best = (evaluation.ceiling or {}).get(evaluation.primary, float("inf"))
    for row in evaluation.rankers:
        if row.measures[evaluation.primary] > best + 1e-9:
            notes.append(f"{row.ranker} exceeds the ceiling: it ranks passages that BM25 did not return.")
        if row.queries_without_results:
            notes.append(
                f"{row.ranker} returned nothing for {row.queries_without_results} judged queries; they count 0."
            )
    return notes
