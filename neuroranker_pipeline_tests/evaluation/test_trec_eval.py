"""Runs on disk, measured by trec_eval itself as it reads them: by score, ties by descending pid, whatever their ranks."""

import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from neuroranker_pipeline.datasets.trec import write_run
from neuroranker_pipeline.evaluation.measures import DEFAULT_MEASURES, mean_measures, per_query
from neuroranker_pipeline.evaluation.trec_eval import NAMES, trec_eval_means
from neuroranker_pipeline_tests.evaluation.test_measures import judged, qrels_table, run_table, runs

QIDS = ["q1", "q2", "q10"]
levels = st.sampled_from([1, 2])


def raw(path: Path) -> dict[str, dict[str, float]]:
    """A run file as trec_eval reads it."""
    with path.open() as file:
        return pytrec_eval.parse_run(file)


def trec_eval(run: dict[str, dict[str, float]], qrels: list[tuple[str, str, int]], level: int) -> dict:
    """trec_eval's values by query and measure; a judged query that it left out has 0."""
    grades: dict[str, dict[str, int]] = {}
    for qid, pid, grade in qrels:
        grades.setdefault(qid, {})[pid] = grade
    # It orders by score, then descending pid: its own order, cut at ten for the reciprocal rank.
    tens = {
        qid: dict(sorted(pids.items(), key=lambda item: (item[1], item[0]), reverse=True)[:10])
        for qid, pids in run.items()
    }
    whole = pytrec_eval.RelevanceEvaluator(grades, set(NAMES.values()), level).evaluate(run)
    cut = pytrec_eval.RelevanceEvaluator(grades, {"recip_rank"}, level).evaluate(tens)
    values = {(name, qid): whole.get(qid, {}).get(theirs, 0.0) for name, theirs in NAMES.items() for qid in grades}
    return values | {("MRR@10", qid): cut.get(qid, {}).get("recip_rank", 0.0) for qid in grades}


def ours(table: pa.Table, qrels: list[tuple[str, str, int]], level: int, **options) -> dict:
    rows = per_query(table, qrels_table(qrels), relevance_level=level, **options).to_pylist()
    return {(row["measure"], row["qid"]): row["value"] for row in rows}


@given(runs, judged, levels)
def test_a_run_that_we_wrote_measures_the_same_in_trec_eval(run, qrels, level):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.trec"
        write_run(run_table(run), path)
        assert ours(run_table(run), qrels, level) == pytest.approx(trec_eval(raw(path), qrels, level), abs=1e-6)
        means = trec_eval_means({"mine": path}, qrels_table(qrels), level)
    expected = mean_measures(run_table(run), qrels_table(qrels), relevance_level=level)
    assert means == pytest.approx({f"mine/{name}": value for name, value in expected.items()}, abs=1e-6)


@given(runs, judged, levels)
def test_a_run_from_elsewhere_with_ties_measures_as_trec_eval_orders_it(run, qrels, level):
    nested: dict[str, dict[str, float]] = {}
    for qid, pid, score in run:
        nested.setdefault(qid, {})[pid] = score
    found = ours(run_table(run), qrels, level, ties="trec_eval")
    assert found == pytest.approx(trec_eval(nested, qrels, level), abs=1e-6)


def test_ties_in_the_two_orders():
    run, qrels = run_table([("q", "a", 1.0), ("q", "b", 1.0), ("q", "c", 0.5)]), qrels_table([("q", "a", 1)])
    assert mean_measures(run, qrels)["MRR@10"] == 1.0
    assert mean_measures(run, qrels, ties="trec_eval")["MRR@10"] == 0.5


def test_every_default_measure_is_checked():
    assert {*NAMES, "MRR@10"} == set(DEFAULT_MEASURES)
