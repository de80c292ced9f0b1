import numpy as np
import pyarrow as pa
import pytest

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.evaluation.compare import PastEvaluation, compare, render_comparison
from neuroranker_pipeline.evaluation.significance import bootstrap_interval, holm, paired_randomization

ATTACK = "<script>alert(1)</script> | `x` [link](javascript:alert(1))"


def past(
    evaluation, name, shift=0.0, split="test", settings=None, drop=(), rankers=None, versions=None
) -> PastEvaluation:
    """An evaluation of the past, where every third query of the student moved by ``shift``."""
    rows = evaluation.values(["MRR@10", "nDCG@10"]).to_pylist()
    rows = [row for row in rows if row["qid"] not in drop and (rankers is None or row["ranker"] in rankers)]
    for row in rows:
        if row["ranker"] == "student" and int(row["qid"][1:]) % 3 == 0:
            row["value"] += shift
    values = pa.Table.from_pylist(rows, evaluation.per_query.schema)
    return PastEvaluation(name, split, "2025-01-31", f"{name}-version", values, settings or {}, versions or {})


def test_an_evaluation_against_itself_has_not_changed(evaluation):
    same = compare(past(evaluation, "a"), past(evaluation, "b"))
    assert same.queries == 60
    assert {change.ranker for change in same.changes} == set(evaluation.runs)
    for change in same.changes:
        assert (change.difference, change.p, change.wins, change.losses, change.ties) == (0.0, 1.0, 0, 0, 60)
    assert (same.settings, same.versions, same.moved, same.remarks) == ((), (), (), [])


def test_changes_are_paired_by_query_and_adjusted_over_the_rankers(evaluation):
    before, after = past(evaluation, "a"), past(evaluation, "b", shift=0.1)
    found = compare(before, after, ranker="student")
    by_ranker = {change.ranker: change for change in found.changes}
    student = by_ranker["student"]
    old = np.array([value for _, value in sorted(before.by_query("student", "MRR@10").items())])
    new = np.array([value for _, value in sorted(after.by_query("student", "MRR@10").items())])
    assert student.difference == pytest.approx(0.1 / 3)
    assert (student.before, student.after) == (pytest.approx(old.mean()), pytest.approx(new.mean()))
    assert (student.wins, student.losses, student.ties) == (20, 0, 40)
    assert student.p == paired_randomization(new, old)
    assert (student.low, student.high) == bootstrap_interval(new - old)
    assert student.p_holm == holm([change.p for change in found.changes])[found.changes.index(student)]
    assert by_ranker["BM25"].difference == 0.0
    assert [change.after for change in found.changes] == sorted(
        (change.after for change in found.changes), reverse=True
    )
    assert (found.moved_ranker, len(found.moved)) == ("student", 10)
    assert all(row["difference"] == pytest.approx(0.1) for row in found.moved)


def test_the_direction_is_from_the_first_to_the_second(evaluation):
    a, b = past(evaluation, "a"), past(evaluation, "b", shift=0.1)
    forth, back = (
        next(change for change in compare(*pair).changes if change.ranker == "student") for pair in ((a, b), (b, a))
    )
    assert forth.difference == pytest.approx(-back.difference)
    assert (forth.wins, forth.losses) == (back.losses, back.wins)


def test_what_one_alone_measured_is_left_out_and_said(evaluation):
    before = past(evaluation, "a", drop={"q000", "q001"})
    after = past(evaluation, "b", drop={"q059"}, rankers=["BM25", "student"])
    found = compare(before, after)
    assert (found.queries, found.only_before, found.only_after) == (57, 1, 2)
    assert "57 queries that both measured" in found.remarks[0]
    assert found.remarks[1] == f"Only the first measured {', '.join(found.rankers_before)}."
    assert {change.ranker for change in found.changes} == {"BM25", "student"}
    assert found.moved_ranker == "student"  # the one that ships is not among them: the best


def test_settings_and_versions_that_differ_are_named(evaluation):
    before = past(evaluation, "a", settings={"seed": 13, "student": {"lr": 1e-4, "old": 1}}, versions={"torch": "2.12"})
    after = past(
        evaluation, "b", settings={"seed": 13, "student": {"lr": 2e-4, "new": True}}, versions={"torch": "2.13"}
    )
    found = compare(before, after)
    assert found.settings == (
        ("student.lr", "0.0001", "0.0002"),
        ("student.old", "1", "not there"),
        ("student.new", "not there", "True"),
    )
    assert found.versions == (("torch", "2.12", "2.13"),)


def test_another_measure_may_be_asked_for(evaluation):
    found = compare(past(evaluation, "a"), past(evaluation, "b"), measure="nDCG@10")
    means = {row.ranker: row.measures["nDCG@10"] for row in evaluation.rankers}
    assert {change.ranker: change.before for change in found.changes} == pytest.approx(means)


@pytest.mark.parametrize(
    ("first", "second", "options", "message"),
    [
        ({"split": "test-dl19"}, {}, {}, "a measured the split test-dl19 and b test"),
        ({}, {}, {"measure": "R@1"}, "no measure R@1 in both evaluations: they have MRR@10, nDCG@10 in common"),
        ({}, {}, {"ranker": "nobody"}, "no ranker nobody in both evaluations"),
        ({"rankers": ["BM25"]}, {"rankers": ["student"]}, {}, "no ranker in common: BM25; student"),
        (
            {"drop": {f"q{i:03d}" for i in range(30)}},
            {"drop": {f"q{i:03d}" for i in range(30, 60)}},
            {},
            "a and b have no query in common",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_clear_line(evaluation, first, second, options, message):
    with pytest.raises(BadInput, match=message) as caught:
        compare(past(evaluation, "a", **first), past(evaluation, "b", **second), **options)
    assert "\n" not in str(caught.value)


def test_both_renderings_hold_every_ranker_and_show_text_literally(evaluation):
    before = past(evaluation, ATTACK, settings={ATTACK: 1})
    found = compare(before, past(evaluation, "b", shift=0.1), ranker="student")
    texts = {str(row["qid"]): ATTACK for row in found.moved}
    page, text = render_comparison(found, texts, html=True), render_comparison(found, texts)
    for ranker in evaluation.runs:
        assert ranker in page
        assert ranker in text
    assert "<script" not in page
    assert "<script" not in text.replace("\\<", "")
    assert "](javascript" not in text.replace("\\]", "")
    assert "https://" not in page
    assert "+0.033" in page
    assert "+0.033" in text
