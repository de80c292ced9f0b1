import math

import pyarrow as pa
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.evaluation.measures import DEFAULT_MEASURES, oracle, per_query, ranked

PIDS = [f"p{i}" for i in range(14)]
QIDS = ["q1", "q2", "q10"]


def run_table(rows):
    qids, pids, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table(
        {
            "qid": pa.array(qids, pa.string()),
            "pid": pa.array(pids, pa.string()),
            "score": pa.array(scores, pa.float32()),
        }
    )


def qrels_table(rows):
    qids, pids, grades = zip(*rows, strict=True)
    return pa.table({"qid": qids, "pid": pids, "grade": pa.array(grades, pa.int32())})


def values(run, qrels, **options):
    rows = per_query(run, qrels, **options).to_pylist()
    return {(row["measure"], row["qid"]): row["value"] for row in rows}


# Few distinct scores, so that ties are the rule; queries, passages and judgments are each often missing.
runs = st.dictionaries(
    st.tuples(st.sampled_from(QIDS), st.sampled_from(PIDS)), st.sampled_from([0.5, 1.0, 1.5, -2.0]), max_size=30
).map(lambda d: [(*key, score) for key, score in d.items()])
judged = st.dictionaries(
    st.tuples(st.sampled_from(QIDS), st.sampled_from(PIDS)), st.integers(0, 3), min_size=1, max_size=20
).map(lambda d: [(*key, grade) for key, grade in d.items()])


def ideal_order(rows, qid):
    return [pid for _, pid, _ in sorted((r for r in rows if r[0] == qid), key=lambda r: (-r[2], r[1]))]


@given(runs, judged)
def test_agrees_with_trec_eval_itself_on_ties_missing_queries_and_unjudged_passages(run, qrels):
    grades: dict[str, dict[str, int]] = {}
    for qid, pid, grade in qrels:
        grades.setdefault(qid, {})[pid] = grade
    order = {qid: {p: float(-i) for i, p in enumerate(ideal_order(run, qid))} for qid in QIDS}
    names = {"nDCG@10": "ndcg_cut_10", "MAP": "map", **{f"R@{k}": f"recall_{k}" for k in (10, 50, 100)}}
    evaluator = pytrec_eval.RelevanceEvaluator(grades, set(names.values()))
    first_ten = {q: dict(list(ps.items())[:10]) for q, ps in order.items()}
    whole, cut = evaluator.evaluate(order), pytrec_eval.RelevanceEvaluator(grades, {"recip_rank"}).evaluate(first_ten)
    expected = {}
    for qid in grades:
        found = bool(order[qid])
        expected["MRR@10", qid] = cut[qid]["recip_rank"] if found else 0.0
        expected |= {(ours, qid): whole[qid][theirs] if found else 0.0 for ours, theirs in names.items()}
    assert values(run_table(run), qrels_table(qrels)) == pytest.approx(expected, abs=1e-12)


@given(runs, judged)
def test_measures_follow_their_definitions(run, qrels):
    grades = {(qid, pid): grade for qid, pid, grade in qrels}
    measured = values(run_table(run), qrels_table(qrels))
    for qid in {qid for qid, _, _ in qrels}:
        got = [grades.get((qid, pid), 0) for pid in ideal_order(run, qid)]
        best = sorted((g for (q, _), g in grades.items() if q == qid), reverse=True)
        first = next((i for i, grade in enumerate(got[:10], 1) if grade > 0), None)
        assert measured["MRR@10", qid] == pytest.approx(1 / first if first else 0.0)

        def dcg(gains):
            return sum(gain / math.log2(position + 1) for position, gain in enumerate(gains[:10], 1))

        assert measured["nDCG@10", qid] == pytest.approx(dcg(got) / dcg(best) if dcg(best) else 0.0)
        relevant = sum(g > 0 for g in best)
        assert measured["R@100", qid] == pytest.approx(sum(g > 0 for g in got) / relevant if relevant else 0.0)


def test_a_tie_goes_to_the_lower_pid_whatever_the_order_of_the_rows():
    rows = [("q", "b", 1.0), ("q", "a", 1.0), ("q", "c", 1.0)]
    for order in (rows, rows[::-1]):
        assert ranked(run_table(order))["pid"].to_pylist() == ["a", "b", "c"]
        assert values(run_table(order), qrels_table([("q", "a", 1)]))["MRR@10", "q"] == 1.0
        assert values(run_table(order), qrels_table([("q", "c", 1)]))["MRR@10", "q"] == pytest.approx(1 / 3)


def test_scores_closer_than_float32_ranks_can_tell_still_keep_their_order():
    rows = [("q", f"p{i:05d}", float(1_000_000 - i)) for i in range(5000)]
    assert values(run_table(rows), qrels_table([("q", "p04999", 1)]))["MAP", "q"] == pytest.approx(1 / 5000)


def test_judged_queries_without_results_count_zero_and_unjudged_queries_do_not_count():
    run = run_table([("q1", "a", 1.0), ("unjudged", "a", 1.0)])
    measured = values(run, qrels_table([("q1", "a", 1), ("silent", "a", 1)]))
    assert {qid for _, qid in measured} == {"q1", "silent"}
    assert all(measured[name, "silent"] == 0.0 for name in DEFAULT_MEASURES)
    assert set(values(run_table([]), qrels_table([("q1", "a", 1)])).values()) == {0.0}


def test_relevance_level_moves_binary_measures_and_leaves_ndcg():
    run = run_table([("q", "a", 2.0), ("q", "b", 1.0)])
    qrels = qrels_table([("q", "a", 1), ("q", "b", 2)])
    strict, lenient = values(run, qrels, relevance_level=2), values(run, qrels)
    assert (lenient["MRR@10", "q"], strict["MRR@10", "q"]) == (1.0, 0.5)
    assert strict["nDCG@10", "q"] == lenient["nDCG@10", "q"] < 1.0


def test_a_negative_grade_is_not_relevant():
    run = run_table([("q", "spam", 2.0), ("q", "good", 1.0)])
    assert values(run, qrels_table([("q", "spam", -2), ("q", "good", 1)]))["MRR@10", "q"] == 0.5


@given(runs.filter(bool), judged)
def test_no_order_of_the_same_candidates_beats_the_oracle(run, qrels):
    best = values(oracle(ranked(run_table(run)), qrels_table(qrels)), qrels_table(qrels))
    measured = values(run_table(run), qrels_table(qrels))
    assert all(measured[key] <= best[key] + 1e-12 for key in measured)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (run_table([("q", "a", 1.0), ("q", "a", 2.0)]), "ranks passage a more than once for query q"),
        (run_table([("q", "a", float("nan"))]), "not a finite number"),
        (run_table([("q", "a", None)]), "not a finite number"),
        (pa.table({"qid": ["q"], "pid": ["a"]}), "no column score"),
    ],
)
def test_a_bad_run_is_one_clear_error(run, message):
    with pytest.raises(BadInput, match=message):
        per_query(run, qrels_table([("q", "a", 1)]))


def test_bad_judgments_and_unknown_measures_are_one_clear_error():
    run = run_table([("q", "a", 1.0)])
    with pytest.raises(BadInput, match="judges passage a more than once for query q"):
        per_query(run, qrels_table([("q", "a", 1), ("q", "a", 2)]))
    with pytest.raises(BadInput, match="no judgment"):
        per_query(run, qrels_table([("q", "a", 1)]).slice(0, 0))
    for name in ("Foo@3", "MRR@", "", "nDCG@10; import os", "__class__"):
        with pytest.raises(BadInput, match="unknown"):
            per_query(run, qrels_table([("q", "a", 1)]), measures=[name])
