"""Compare rankers over the same judged queries: measures, paired tests against baselines, and the queries
that moved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.evaluation import significance
from neuroranker_pipeline.evaluation.distributions import ScoreDistribution, score_distribution
from neuroranker_pipeline.evaluation.groups import Breakdown, break_down
from neuroranker_pipeline.evaluation.measures import (
    DEFAULT_MEASURES,
    judgments,
    long_table,
    measure_vectors,
    oracle,
    ranked,
)
from neuroranker_pipeline.evaluation.rankers import BASE, FIRST_STAGE, INT8, SEARCH

BASELINES = (FIRST_STAGE, BASE)
# What the report must answer beside the baselines: did distilling pay, did the student reach its teacher,
# what did int8 cost, did BM25's score add to it.
CONTRASTS = (
    ("student", "hard-label control"),
    ("student", "teacher"),
    (INT8, "student"),
    (SEARCH, INT8),
)


@dataclass(frozen=True)
class RankerSummary:
    """One ranker's means over the judged queries; ``intervals`` are 95% percentile bootstrap intervals of
    those means.
    """

    ranker: str
    measures: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    unjudged_at_10: float  # share of its top tens that nobody judged
    queries_without_results: int


@dataclass(frozen=True)
class Comparison(significance.Paired):
    """``ranker`` minus ``against`` in one measure, paired by query; ``p_holm`` is adjusted over all
    comparisons.
    """

    ranker: str
    against: str
    measure: str


@dataclass(frozen=True)
class Evaluation:
    """Everything that ``evaluate`` found.

    ``runs`` are ranked CANDIDATES tables; ``per_query`` has columns ranker, qid, measure, value.
    ``ceiling`` holds the measures of a perfect order of the first stage's candidates (None without a first
    stage). ``grades``: how many judgments there are of each grade. ``examples`` are the queries where
    ``final`` gained and lost most against ``reference``, with both top tens.
    """

    measures: tuple[str, ...]
    primary: str
    relevance_level: int
    queries: int
    queries_without_relevant: int
    final: str
    baselines: tuple[str, ...]
    reference: str | None
    rankers: tuple[RankerSummary, ...]
    comparisons: tuple[Comparison, ...]
    ceiling: Mapping[str, float] | None
    grades: Mapping[int, int]
    breakdowns: tuple[Breakdown, ...]
    distributions: tuple[ScoreDistribution, ...]
    per_query: pa.Table
    runs: Mapping[str, pa.Table]
    examples: Sequence[Mapping[str, Any]] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """``{"student/MRR@10": 0.52, ...}``: the figures to record for this evaluation."""
        return {f"{row.ranker}/{name}": value for row in self.rankers for name, value in row.measures.items()}

    def more_figures(self) -> dict[str, float]:
        """What to record beside ``figures``: unjudged passages, score distributions, and the primary measure by group."""
        found = {f"{row.ranker}/unjudged@10": row.unjudged_at_10 for row in self.rankers}
        for distribution in self.distributions:
            found |= distribution.figures()
        for breakdown in self.breakdowns:
            found |= breakdown.figures(self.primary)
        return found

    def differences(self) -> list[float]:
        """``final`` minus ``reference`` in the primary measure for each query, ascending."""
        if self.reference is None:
            return []
        return sorted((self._primary(self.final) - self._primary(self.reference)).tolist())

    def example_ids(self) -> tuple[list[str], list[str]]:
        """The qids and pids in ``examples``: the texts that a report wants."""
        qids = [example["qid"] for example in self.examples]
        pids = {row["pid"] for example in self.examples for rows in example["rankings"].values() for row in rows}
        return qids, sorted(pids | {row["pid"] for example in self.examples for row in example["relevant"]})

    def values(self, measures: Sequence[str]) -> pa.Table:
        """``per_query`` in some of the measures."""
        return self.per_query.filter(pc.is_in(self.per_query["measure"], pa.array(list(measures), pa.string())))

    def _primary(self, ranker: str) -> np.ndarray:
        table = self.per_query
        wanted = pc.and_(pc.equal(table["ranker"], ranker), pc.equal(table["measure"], self.primary))
        return table.filter(wanted)["value"].to_numpy()


def evaluate(
    runs: Mapping[str, pa.Table],
    qrels: pa.Table,
    baselines: Sequence[str] = BASELINES,
    contrasts: Sequence[tuple[str, str]] = CONTRASTS,
    measures: Sequence[str] = DEFAULT_MEASURES,
    relevance_level: int = 1,
    final: str | None = None,
    seed: int = 0,
    examples: int = 5,
    groups: Mapping[str, Mapping[str, str]] | None = None,
    scores: Mapping[str, pa.Table] | None = None,
) -> Evaluation:
    """Measure ``runs`` (name -> table of qid, pid, score; in display order) on the queries of ``qrels``.

    ``qrels`` (qid, pid, grade) must hold the evaluated split alone: each of its queries counts for each run.
    ``measures[0]`` is the one that is tested. Every ranker is compared with each of the ``baselines`` and
    the ``contrasts`` that are among the runs; all those tests are one family for Holm's correction.
    ``final``, by default the last run, is the ranker that ships. ``groups`` part the queries, as ``query_groups`` does.
    ``scores`` (qid, pid, score) stand for a run in the score distributions, where it is not made of one model's
    scores. Raises ``BadInput`` as ``per_query`` does, or when there is nothing to compare.
    """
    final = _final(runs, measures, final)
    judged = judgments(qrels)
    ordered = {name: _ranked(name, run) for name, run in runs.items()}
    vectors = {}
    for name, run in ordered.items():
        qids, vectors[name] = measure_vectors(run, qrels, measures, relevance_level)
    primary = {name: values[measures[0]] for name, values in vectors.items()}
    reference = next((name for name in baselines if name in runs and name != final), None)
    return Evaluation(
        measures=tuple(measures),
        primary=measures[0],
        relevance_level=relevance_level,
        queries=len(qids),
        queries_without_relevant=sum(max(g.values()) < relevance_level for g in judged.values()),
        final=final,
        baselines=tuple(baselines),
        reference=reference,
        rankers=tuple(_summary(name, ordered[name], vectors[name], judged, seed) for name in runs),
        comparisons=_compare(primary, _pairs(list(runs), baselines, contrasts), measures[0], seed),
        ceiling=_ceiling(ordered.get(FIRST_STAGE), qrels, measures, relevance_level),
        grades=_grades(judged),
        breakdowns=break_down(groups or {}, qids, primary, seed),
        distributions=_distributions(scores or {}, ordered, judged, relevance_level),
        per_query=long_table(qids, vectors),
        runs=ordered,
        examples=_examples(qids, primary, ordered, judged, (final, reference), examples, relevance_level)
        if reference
        else [],
    )


def _final(runs: Mapping[str, pa.Table], measures: Sequence[str], final: str | None) -> str:
    if not runs or not measures:
        raise BadInput("evaluation: needs at least one run and one measure")
    final = final or list(runs)[-1]
    if final not in runs:
        raise BadInput(f"evaluation: the final ranker {final!r} is not among the runs {', '.join(runs)}")
    return final


def _distributions(
    given: Mapping[str, pa.Table],
    runs: Mapping[str, pa.Table],
    judged: Mapping[str, Mapping[str, int]],
    relevance_level: int,
) -> tuple[ScoreDistribution, ...]:
    found = (score_distribution(name, given.get(name, run), judged, relevance_level) for name, run in runs.items())
    return tuple(distribution for distribution in found if distribution)


def _ranked(name: str, run: pa.Table) -> pa.Table:
    try:
        return ranked(run)
    except BadInput as error:
        raise BadInput(f"ranker {name}: {error}") from error


def _ceiling(
    candidates: pa.Table | None, qrels: pa.Table, measures: Sequence[str], relevance_level: int
) -> dict[str, float] | None:
    if candidates is None:
        return None
    return _means(measure_vectors(ranked(oracle(candidates, qrels)), qrels, measures, relevance_level)[1])


def _grades(judged: Mapping[str, Mapping[str, int]]) -> dict[int, int]:
    counts = Counter(grade for grades in judged.values() for grade in grades.values())
    return dict(sorted(counts.items()))


def _means(vectors: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {measure: float(values.mean()) for measure, values in vectors.items()}


def _summary(
    name: str,
    run: pa.Table,
    vectors: Mapping[str, np.ndarray],
    judged: Mapping[str, Mapping[str, int]],
    seed: int,
) -> RankerSummary:
    top = run.filter(pc.less_equal(run["rank"], 10)).select(["qid", "pid"])
    rows = [(qid, pid) for qid, pid in zip(*(top[c].to_pylist() for c in ("qid", "pid")), strict=True) if qid in judged]
    unjudged = sum(pid not in judged[qid] for qid, pid in rows)
    return RankerSummary(
        ranker=name,
        measures=_means(vectors),
        intervals={m: significance.bootstrap_interval(values, seed) for m, values in vectors.items()},
        unjudged_at_10=unjudged / len(rows) if rows else 0.0,
        queries_without_results=len(judged.keys() - set(pc.unique(run["qid"]).to_pylist())),
    )


def _pairs(names: list[str], baselines: Sequence[str], contrasts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(ranker, against) without repeats: each ranker against the baselines shown before it, then the
    contrasts.
    """
    pairs = [(name, base) for i, name in enumerate(names) for base in baselines if base in names[:i]] + [
        (a, b) for a, b in contrasts if a in names and b in names
    ]
    return list(dict.fromkeys(pairs))


def _compare(
    primary: Mapping[str, np.ndarray], pairs: Sequence[tuple[str, str]], measure: str, seed: int
) -> tuple[Comparison, ...]:
    found = significance.compare_pairs([(primary[a], primary[b]) for a, b in pairs], seed)
    return tuple(Comparison(a, b, measure, **vars(one)) for (a, b), one in zip(pairs, found, strict=True))


def _examples(
    qids: list[str],
    primary: Mapping[str, np.ndarray],
    runs: Mapping[str, pa.Table],
    judged: Mapping[str, Mapping[str, int]],
    pair: tuple[str, str],
    count: int,
    relevance_level: int,
) -> list[dict[str, Any]]:
    """Up to ``count`` of the largest gains, then of the largest losses, of the first of the ``pair`` against the other."""
    final, reference = pair
    change = primary[final] - primary[reference]
    order = np.argsort(change, kind="stable")
    gains = [i for i in order[::-1][:count] if change[i] > 0]
    losses = [i for i in order[:count] if change[i] < 0]
    chosen = [qids[i] for i in [*gains, *losses]]
    tops = {name: _top_tens(runs[name], chosen, judged) for name in (reference, final)}
    return [
        {
            "qid": qids[i],
            "difference": float(change[i]),
            "values": {name: float(primary[name][i]) for name in (reference, final)},
            "relevant": [
                {"pid": pid, "grade": grade}
                for pid, grade in sorted(judged[qids[i]].items(), key=lambda item: (-item[1], item[0]))
                if grade >= relevance_level
            ],
            "rankings": {name: top.get(qids[i], []) for name, top in tops.items()},
        }
        for i in [*gains, *losses]
    ]


def _top_tens(
    run: pa.Table, qids: list[str], judged: Mapping[str, Mapping[str, int]]
) -> dict[str, list[dict[str, Any]]]:
    wanted = pc.and_(pc.is_in(run["qid"], pa.array(qids, pa.string())), pc.less_equal(run["rank"], 10))
    tops: dict[str, list[dict[str, Any]]] = {}
    for row in run.filter(wanted).to_pylist():
        qid = row.pop("qid")
        tops.setdefault(qid, []).append({**row, "grade": judged[qid].get(row["pid"])})
    return tops
