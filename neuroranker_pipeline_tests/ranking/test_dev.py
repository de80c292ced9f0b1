from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from neuroranker_pipeline.datasets.tables import SCORES
from neuroranker_pipeline.evaluation.significance import paired_randomization
from neuroranker_pipeline.ranking.dev import compare_on_dev


def run(ranks: list[int]) -> pa.Table:
    """A run in which the positive of query ``n``, ``p``, has rank ``ranks[n]``; 0 leaves the query out."""
    rows = []
    for n, rank in enumerate(ranks):
        pids = [f"x{i}" for i in range(rank - 1)] + ["p"] if rank else []
        rows += [(f"q{n:03d}", pid, -float(place)) for place, pid in enumerate(pids)]
    return pa.Table.from_pylist([dict(zip(SCORES.names, row, strict=True)) for row in rows], schema=SCORES)


def relevant(queries: int) -> dict[str, set[str]]:
    return {f"q{n:03d}": {"p"} for n in range(queries)}


def test_a_difference_that_may_be_chance_is_no_evidence() -> None:
    model, base = [1] * 20 + [2, 2, 1], [1] * 20 + [1, 1, 2]
    test = compare_on_dev(run(model), run(base), relevant(23))
    assert test.model < test.other
    assert not test.is_worse(0.05)


def test_a_shown_loss_is() -> None:
    test = compare_on_dev(run([2] * 30), run([1] * 30), relevant(30))
    assert (test.model, test.other, test.queries) == (0.5, 1.0, 30)
    assert test.is_worse(0.05)
    assert not compare_on_dev(run([1] * 30), run([2] * 30), relevant(30)).is_worse(0.05)


def test_the_bound_is_taken_off_before_signs_are_flipped() -> None:
    model, base = run([1] * 30), run([1, 2] * 15)
    assert not compare_on_dev(model, base, relevant(30), bound=0.2).is_worse(0.05), "0.25 above"
    test = compare_on_dev(model, base, relevant(30), bound=0.9)
    assert test.is_worse(0.05)
    ours, theirs = np.ones(30), np.array([1, 0.5] * 15)
    assert test.p == pytest.approx(paired_randomization(ours, theirs + 0.9))


def test_a_query_that_a_run_lacks_counts_0_and_without_queries_nothing_is_worse() -> None:
    assert compare_on_dev(run([1, 0]), run([1, 1]), relevant(2)).model == 0.5
    empty = compare_on_dev(run([]), run([]), {})
    assert (empty.model, empty.other, empty.p, empty.queries) == (0.0, 0.0, 1.0, 0)
    assert not empty.is_worse(0.05)
