"""Two evaluations of the same queries, at different times: what changed, and whether it can be chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.evaluation import significance
from neuroranker_pipeline.evaluation.rankers import INT8, SEARCH
from neuroranker_pipeline.evaluation.report import environment, flat

MOVED = 10


@dataclass(frozen=True)
class PastEvaluation:
    """An evaluation of the past. ``values``: columns ranker, qid, measure, value; ``settings``: the whole profile."""

    name: str
    split: str
    created: str
    version: str
    values: pa.Table
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)

    def rankers(self) -> list[str]:
        return sorted(pc.unique(self.values["ranker"]).to_pylist())

    def measures(self) -> list[str]:
        return pc.unique(self.values["measure"]).to_pylist()

    def by_query(self, ranker: str, measure: str) -> dict[str, float]:
        rows = self.values.filter(
            pc.and_(pc.equal(self.values["ranker"], ranker), pc.equal(self.values["measure"], measure))
        )
        return dict(zip(rows["qid"].to_pylist(), rows["value"].to_pylist(), strict=True))


@dataclass(frozen=True)
class RankerChange(significance.Paired):
    """A ranker's mean ``before`` and ``after``; the difference is paired by query, ``p_holm`` adjusted over the rankers."""

    ranker: str
    before: float
    after: float


@dataclass(frozen=True)
class RunComparison:
    """``after`` against ``before`` over the queries that both measured.

    ``only_before`` and ``only_after`` count the queries, and ``rankers_before`` and ``rankers_after`` name the rankers, of
    one alone. ``settings`` and ``versions``: ``(name, before, after)`` of what differs. ``moved``: the queries where
    ``moved_ranker`` changed most, largest change first.
    """

    before: PastEvaluation
    after: PastEvaluation
    measure: str
    queries: int
    only_before: int
    only_after: int
    changes: tuple[RankerChange, ...]
    rankers_before: tuple[str, ...]
    rankers_after: tuple[str, ...]
    settings: tuple[tuple[str, str, str], ...]
    versions: tuple[tuple[str, str, str], ...]
    moved_ranker: str
    moved: tuple[Mapping[str, Any], ...]

    @property
    def remarks(self) -> list[str]:
        """What a reader must know before the numbers."""
        notes = []
        if self.only_before or self.only_after:
            notes.append(
                f"Compared on the {self.queries:,} queries that both measured: {self.only_before:,} of the first alone and "
                f"{self.only_after:,} of the second alone are left out."
            )
        for which, rankers in (("first", self.rankers_before), ("second", self.rankers_after)):
            if rankers:
                notes.append(f"Only the {which} measured {', '.join(rankers)}.")
        return notes


def compare(
    before: PastEvaluation,
    after: PastEvaluation,
    measure: str | None = None,
    ranker: str | None = None,
    seed: int = 0,
    moved: int = MOVED,
) -> RunComparison:
    """Compare every ranker of both evaluations, paired by query, in ``measure`` (by default the first that both have).

    One paired randomization test a ranker, adjusted by Holm's method over the rankers. ``ranker``: whose queries are
    shown, by default the one that ships, else the best. Raises ``BadInput`` for evaluations of different splits, or that
    have no query, ranker or measure in common.
    """
    if before.split != after.split:
        raise BadInput(
            f"{before.name} measured the split {before.split} and {after.name} {after.split}: compare two evaluations of "
            "one split"
        )
    measure = _common("measure", before.measures(), after.measures(), measure)[0]
    rankers = _common("ranker", before.rankers(), after.rankers(), None)
    vectors, counts = {}, (0, 0, 0)
    for name in rankers:
        old, new = before.by_query(name, measure), after.by_query(name, measure)
        qids = sorted(old.keys() & new.keys())
        if not qids:
            raise BadInput(f"{before.name} and {after.name} have no query in common: they measured different data")
        vectors[name] = qids, np.array([old[qid] for qid in qids]), np.array([new[qid] for qid in qids])
        counts = len(qids), len(old) - len(qids), len(new) - len(qids)
    changes = _changes(vectors, seed)
    shown = ranker or next((name for name in (SEARCH, INT8) if name in rankers), changes[0].ranker)
    _common("ranker", rankers, rankers, shown)
    return RunComparison(
        before=before,
        after=after,
        measure=measure,
        queries=counts[0],
        only_before=counts[1],
        only_after=counts[2],
        changes=changes,
        rankers_before=tuple(name for name in before.rankers() if name not in rankers),
        rankers_after=tuple(name for name in after.rankers() if name not in rankers),
        settings=_differing(before.settings, after.settings),
        versions=_differing(before.versions, after.versions),
        moved_ranker=shown,
        moved=_moved(*vectors[shown], moved),
    )


def _common(what: str, first: Sequence[str], second: Sequence[str], wanted: str | None) -> list[str]:
    both = [name for name in first if name in second]
    if wanted is not None and wanted not in both:
        raise BadInput(f"no {what} {wanted} in both evaluations: they have {', '.join(both) or 'none'} in common")
    if not both:
        raise BadInput(f"the evaluations have no {what} in common: {', '.join(first)}; {', '.join(second)}")
    return [wanted] if wanted is not None else both


def _changes(vectors: Mapping[str, tuple[list[str], np.ndarray, np.ndarray]], seed: int) -> tuple[RankerChange, ...]:
    """Every ranker's change, the best of ``after`` first."""
    found = significance.compare_pairs([(new, old) for _, old, new in vectors.values()], seed)
    changes = [
        RankerChange(name, float(old.mean()), float(new.mean()), **vars(one))
        for (name, (_, old, new)), one in zip(vectors.items(), found, strict=True)
    ]
    return tuple(sorted(changes, key=lambda change: (-change.after, change.ranker)))


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    old, new = dict(flat(before)), dict(flat(after))
    names = [*old, *(name for name in new if name not in old)]
    missing = "not there"
    return tuple(
        (name, old.get(name, missing), new.get(name, missing)) for name in names if old.get(name) != new.get(name)
    )


def _moved(qids: list[str], old: np.ndarray, new: np.ndarray, count: int) -> tuple[Mapping[str, Any], ...]:
    order = np.argsort(-np.abs(new - old), kind="stable")[:count]
    return tuple(
        {"qid": qids[i], "before": float(old[i]), "after": float(new[i]), "difference": float(new[i] - old[i])}
        for i in order
        if new[i] != old[i]
    )


def render_comparison(comparison: RunComparison, texts: Mapping[str, str], html: bool = False) -> str:
    """The comparison as Markdown, or as a page that needs nothing but itself. ``texts``: the moved queries', by qid."""
    template = environment(autoescape=html).get_template("compare.html.j2" if html else "compare.md.j2")
    return template.render(c=comparison, texts=texts)
