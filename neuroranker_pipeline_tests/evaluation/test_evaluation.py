import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.evaluation.evaluation import evaluate
from neuroranker_pipeline.evaluation.findings import findings, verdict
from neuroranker_pipeline.evaluation.measures import per_query
from neuroranker_pipeline.evaluation.significance import holm, paired_randomization


def vector(table: pa.Table, measure: str) -> np.ndarray:
    return table.filter(pc.equal(table["measure"], measure))["value"].to_numpy()


def test_means_are_those_of_the_per_query_measures_in_display_order(evaluation, runs_and_qrels):
    runs, qrels = runs_and_qrels
    assert [row.ranker for row in evaluation.rankers] == list(runs)
    for row in evaluation.rankers:
        table = per_query(runs[row.ranker], qrels)
        for measure, mean in row.measures.items():
            assert mean == pytest.approx(vector(table, measure).mean())
            low, high = row.intervals[measure]
            assert low <= mean <= high
    assert evaluation.figures()["student/MRR@10"] == evaluation.rankers[3].measures["MRR@10"]
    assert evaluation.per_query.num_rows == 7 * 6 * 60


def test_every_change_is_the_paired_test_of_its_two_runs(evaluation, runs_and_qrels):
    runs, qrels = runs_and_qrels
    mrr = {name: vector(per_query(run, qrels), "MRR@10") for name, run in runs.items()}
    pairs = [(c.ranker, c.against) for c in evaluation.comparisons]
    assert len(pairs) == len(set(pairs)) == 6 + 5 + 3
    assert {("student", "hard-label control"), ("student int8", "student"), ("teacher", "BM25")} <= set(pairs)
    for c in evaluation.comparisons:
        a, b = mrr[c.ranker], mrr[c.against]
        assert c.difference == pytest.approx((a - b).mean())
        assert c.p == paired_randomization(a, b)
        assert (c.wins, c.losses, c.ties) == ((a > b).sum(), (a < b).sum(), (a == b).sum())
    assert [c.p_holm for c in evaluation.comparisons] == holm([c.p for c in evaluation.comparisons])


def test_the_ceiling_is_the_recall_of_bm25_when_each_query_has_one_relevant_passage(evaluation):
    bm25 = evaluation.rankers[0].measures
    assert evaluation.ceiling["MRR@10"] == evaluation.ceiling["R@100"] == bm25["R@100"] < 1
    assert all(row.measures["MRR@10"] <= evaluation.ceiling["MRR@10"] for row in evaluation.rankers)


def test_examples_are_the_largest_gains_and_losses_with_both_top_tens(evaluation, runs_and_qrels):
    change = {e["qid"]: e["difference"] for e in evaluation.examples}
    differences = evaluation.differences()
    assert max(change.values()) == differences[-1] > 0 > differences[0] == min(change.values())
    for example in evaluation.examples:
        assert list(example["rankings"]) == ["BM25", "student int8"]
        wanted = example["relevant"][0]["pid"]
        for name, rows in example["rankings"].items():
            assert [row["rank"] for row in rows] == list(range(1, 11))
            found = [row["rank"] for row in rows if row["pid"] == wanted]
            assert example["values"][name] == pytest.approx(1 / found[0] if found else 0.0)
    qids, pids = evaluation.example_ids()
    assert set(qids) == set(change)
    assert {row["pid"] for e in evaluation.examples for row in e["relevant"]} <= set(pids)


def test_unjudged_passages_and_silent_queries_are_counted(runs_and_qrels):
    runs, qrels = runs_and_qrels
    silent = runs["student"].filter(pc.not_equal(runs["student"]["qid"], "q000"))
    result = evaluate({"BM25": runs["BM25"], "student": silent}, qrels)
    assert [row.queries_without_results for row in result.rankers] == [0, 1]
    judged = set(zip(qrels["qid"].to_pylist(), qrels["pid"].to_pylist(), strict=True))
    top = result.runs["BM25"].filter(pc.less_equal(result.runs["BM25"]["rank"], 10))
    pairs = list(zip(top["qid"].to_pylist(), top["pid"].to_pylist(), strict=True))
    share = sum(pair not in judged for pair in pairs) / len(pairs)
    assert result.rankers[0].unjudged_at_10 == pytest.approx(share)
    assert any("student returned nothing for 1 judged" in note for note in findings(result))


def test_judgments_are_counted_by_grade(runs_and_qrels):
    runs, qrels = runs_and_qrels
    grades = pa.array([i % 3 - 1 for i in range(60)], pa.int32())  # TREC's spam is judged, and not relevant
    graded = qrels.set_column(qrels.schema.get_field_index("grade"), "grade", grades)
    assert evaluate(runs, graded).grades == {0: 40, 1: 20}


def test_groups_part_the_queries_and_their_means_are_those_of_their_queries(evaluation, runs_and_qrels):
    runs, qrels = runs_and_qrels
    by_type = {row.group: row for row in evaluation.breakdowns if row.by == "type"}
    assert {group: row.queries for group, row in by_type.items()} == {"question": 40, "identifier": 20}
    assert [row.group for row in evaluation.breakdowns if row.by == "length"] == [
        "1 to 3 words",
        "4 to 6 words",
        "7 to 8 words",
    ]
    assert sum(row.queries for row in evaluation.breakdowns if row.by == "length") == 60
    for ranker, run in runs.items():
        mrr = vector(per_query(run, qrels), "MRR@10")
        chosen = mrr[[i for i in range(60) if i % 3 == 0]]
        assert by_type["identifier"].means[ranker] == pytest.approx(chosen.mean())
        low, high = by_type["identifier"].intervals[ranker]
        assert low <= chosen.mean() <= high


def test_scores_are_described_as_they_are_or_as_given(evaluation, runs_and_qrels):
    runs, qrels = runs_and_qrels
    assert [row.ranker for row in evaluation.distributions] == list(runs)
    given = runs["student"].set_column(2, "score", pa.array(np.full(runs["student"].num_rows, 7.0), pa.float32()))
    result = evaluate(runs, qrels, scores={"teacher": given, "nobody": given})
    teacher, student = result.distributions[2:4]
    assert (teacher.ranker, teacher.mean, teacher.deviation, teacher.tied) == ("teacher", 7.0, 0.0, 1.0)
    assert student == evaluation.distributions[3]
    assert result.rankers == evaluation.rankers


def test_what_is_recorded_beside_the_measures(evaluation):
    figures = evaluation.more_figures()
    assert figures["student/unjudged@10"] == evaluation.rankers[3].unjudged_at_10
    assert figures["student/score separation"] > 0.8 > figures["BM25/score separation"]
    questions = next(row for row in evaluation.breakdowns if row.group == "question")
    assert figures["student/MRR@10/type: question"] == questions.means["student"]
    assert not figures.keys() & evaluation.figures().keys()
    kept = evaluation.values(["MRR@10"])
    assert set(kept["measure"].to_pylist()) == {"MRR@10"}
    assert kept.num_rows == 7 * 60


def test_it_repeats_exactly(evaluation, runs_and_qrels):
    again = evaluate(*runs_and_qrels)
    assert again.comparisons == evaluation.comparisons
    assert again.rankers == evaluation.rankers


def test_findings_name_the_ceiling_and_the_control_and_do_not_flatter(evaluation, runs_and_qrels):
    text = "\n".join(findings(evaluation))
    assert "Ceiling: BM25 has R@100" in text
    assert "hard-label control" in text
    control = next(c for c in evaluation.comparisons if c.against == "hard-label control")
    assert verdict(control) == "not significantly different"
    assert "has not shown that it earns its place" in text
    runs, qrels = runs_and_qrels
    swapped = evaluate({**runs, "student": runs["BM25"], "hard-label control": runs["student"]}, qrels)
    assert "worse than hard labels alone" in "\n".join(findings(swapped))
    worse = evaluate({"BM25": runs["student"], "student": runs["BM25"]}, qrels)
    assert any("student against BM25: \N{MINUS SIGN}" in line and "; worse." in line for line in findings(worse))


def test_a_ranker_that_finds_what_bm25_missed_is_told_apart(runs_and_qrels):
    runs, qrels = runs_and_qrels
    perfect = pa.table({"qid": qrels["qid"], "pid": qrels["pid"], "score": pa.array([1.0] * 60, pa.float32())})
    notes = findings(evaluate({"BM25": runs["BM25"], "other": perfect}, qrels))
    assert any("other exceeds the ceiling" in note for note in notes)


def test_one_run_alone_is_measured_without_comparisons(runs_and_qrels):
    runs, qrels = runs_and_qrels
    result = evaluate({"mine": runs["student"]}, qrels)
    assert (result.comparisons, result.reference, result.ceiling, result.examples) == ((), None, None, [])
    assert result.differences() == []


def test_bad_input_names_the_ranker(runs_and_qrels):
    runs, qrels = runs_and_qrels
    twice = pa.concat_tables([runs["student"], runs["student"].slice(0, 1)])
    with pytest.raises(BadInput, match="ranker student: run: ranks passage"):
        evaluate({"BM25": runs["BM25"], "student": twice}, qrels)
    with pytest.raises(BadInput, match="at least one run"):
        evaluate({}, qrels)
    with pytest.raises(BadInput, match="'nobody' is not among the runs"):
        evaluate(runs, qrels, final="nobody")
