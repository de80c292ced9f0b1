import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from neuroranker_pipeline.evaluation.distributions import score_distribution


def table(rows):
    qids, pids, scores = zip(*rows, strict=True)
    return pa.table({"qid": qids, "pid": pids, "score": pa.array(scores, pa.float32())})


def test_moments_quantiles_and_bins_of_the_judged_queries_alone():
    rows = [("q", f"p{i}", float(i)) for i in range(101)] + [("unjudged", "p0", 1e6)]
    found = score_distribution("mine", table(rows), {"q": {"p100": 1, "p0": 0}}, bins=10)
    assert (found.rows, found.mean, found.low, found.high) == (101, 50.0, 0.0, 100.0)
    assert found.deviation == pytest.approx(np.std(np.arange(101)))
    assert found.quantiles == {"q05": 5.0, "q25": 25.0, "q50": 50.0, "q75": 75.0, "q95": 95.0}
    assert found.relevant == (0,) * 9 + (1,)
    assert sum(found.others) == 100
    assert (found.tied, found.separation) == (0.0, 1.0)
    assert found.figures()["mine/score q95"] == 95.0


def test_ties_count_within_a_query_only():
    rows = [("a", "1", 0.5), ("a", "2", 0.5), ("a", "3", 0.1), ("b", "1", 0.5)]
    assert score_distribution("mine", table(rows), {"a": {"1": 1}, "b": {"1": 1}}).tied == 0.5


def test_the_relevance_level_decides_what_is_relevant():
    rows = [("q", "good", 2.0), ("q", "fair", 1.0), ("q", "bad", 0.0)]
    judged = {"q": {"good": 3, "fair": 1, "bad": 0}}
    assert sum(score_distribution("mine", table(rows), judged, relevance_level=2).relevant) == 1
    assert sum(score_distribution("mine", table(rows), judged).relevant) == 2


def test_without_rows_or_without_relevant_ones():
    rows = table([("q", "p", 1.0)])
    assert score_distribution("mine", rows, {"other": {"p": 1}}) is None
    found = score_distribution("mine", rows, {"q": {"elsewhere": 1}})
    assert found.separation is None
    assert "mine/score separation" not in found.figures()
    assert (found.low, found.high) == (1.0, 2.0)  # all scores equal


scores = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0]), min_size=2, max_size=12)


@given(st.lists(st.tuples(scores, st.integers(1, 11)), min_size=1, max_size=4))
def test_separation_is_the_mean_area_under_the_roc_curve(queries):
    rows, judged, areas = [], {}, []
    for number, (values, cut) in enumerate(queries):
        cut = min(cut, len(values) - 1)
        qid = f"q{number}"
        rows += [(qid, f"p{i}", value) for i, value in enumerate(values)]
        judged[qid] = {f"p{i}": 1 for i in range(cut)}
        areas.append(mannwhitneyu(values[:cut], values[cut:]).statistic / (cut * (len(values) - cut)))
    assert score_distribution("mine", table(rows), judged).separation == pytest.approx(np.mean(areas))
