from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from neuroranker_pipeline.datasets.tables import QRELS, SCORES
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.ranking.lists import ListSettings, join_lists, positives, sample_lists, with_judged


@pytest.fixture
def prior(collection):
    """Scores by rank: the first candidate 0.9, the positive (rank 4) 0.6, the last 0."""
    score = pc.cast(pc.divide(pc.subtract(10.0, collection.candidates["rank"]), 10.0), pa.float32())
    return pa.table([collection.candidates["qid"], collection.candidates["pid"], score], schema=SCORES)


def test_the_positive_comes_first_and_negatives_spread_over_the_ranks(collection):
    lists = sample_lists(collection.candidates, collection.qrels, ListSettings(negatives=3), seed=1)
    assert len(lists) == 30
    assert lists.pids.shape == (30, 4)
    for qid, row in zip(lists.qids, lists.pids, strict=True):
        ranks = [int(pid.split("-")[1]) for pid in row]
        assert all(pid.startswith(f"p{qid[1:]}-") for pid in row)
        assert ranks[0] == 4
        assert ranks[1] in (1, 2, 3)
        assert ranks[2] in (5, 6, 7)
        assert ranks[3] in (8, 9, 10)


def test_the_draw_does_not_depend_on_the_order_of_rows(collection):
    shuffled = collection.candidates.take(np.random.default_rng(5).permutation(len(collection.candidates)))
    settings = ListSettings(negatives=3, queries=12, lists_per_query=2)
    one = sample_lists(collection.candidates, collection.qrels, settings, seed=1)
    two = sample_lists(shuffled, collection.qrels, settings, seed=1)
    other = sample_lists(collection.candidates, collection.qrels, settings, seed=2)
    assert one.digest() == two.digest() != other.digest()
    assert len(set(one.qids)) == 12
    assert len(one) == 24


def test_fewer_queries_do_not_change_the_others(collection):
    everything = sample_lists(collection.candidates, collection.qrels, ListSettings(negatives=3), seed=1)
    half = collection.candidates.filter(pc.is_in(collection.candidates["qid"], pa.array(["q3", "q8"])))
    part = sample_lists(half, collection.qrels, ListSettings(negatives=3), seed=1)
    for qid, row in zip(part.qids, part.pids, strict=True):
        assert row.tolist() == everything.pids[everything.qids.index(qid)].tolist()


def test_likely_false_negatives_are_left_out(collection, prior):
    settings = ListSettings(negatives=3, order="prior", draw="hardest", false_negative_margin=0.15)
    lists = sample_lists(collection.candidates, collection.qrels, settings, seed=1, prior=prior)
    # 0.9 and 0.8 are more than 0.15 above the positive's 0.6
    assert [pid.split("-")[1] for pid in lists.pids[0]] == ["4", "3", "5", "6"]
    np.testing.assert_allclose(lists.prior[0], [0.6, 0.7, 0.5, 0.4])
    with pytest.raises(BadInput, match="need the prior scores"):
        sample_lists(collection.candidates, collection.qrels, settings, seed=1)


def test_equal_prior_scores_are_ordered_by_pid(collection, prior):
    tied = prior.set_column(2, "score", pa.array(np.full(len(prior), 0.5, np.float32)))
    settings = ListSettings(negatives=4, order="prior", draw="hardest")
    lists = sample_lists(collection.candidates, collection.qrels, settings, seed=1, prior=tied)
    expected = sorted(f"p0-{rank}" for rank in range(1, 11) if rank != 4)[:4]
    assert lists.pids[lists.qids.index("q0")].tolist() == ["p0-4", *expected]


def test_a_margin_below_zero_leaves_out_near_negatives_too(collection, prior):
    settings = ListSettings(negatives=3, draw="hardest", false_negative_margin=-0.15)
    lists = sample_lists(collection.candidates, collection.qrels, settings, seed=1, prior=prior)
    # the positive has 0.6: 0.5 is nearer than 0.15, and 0.9, 0.8, 0.7 are above
    assert [pid.split("-")[1] for pid in lists.pids[0]] == ["4", "6", "7", "8"]


def test_the_teacher_judges_on_any_scale(collection, prior):
    # the ten scores 0, 0.1, ..., 0.9 have a standard deviation of 0.287: 0.7 of it is 0.201, 0.3 of it 0.086
    for margin, expected in ((0.7, ["4", "2", "3", "5"]), (-0.3, ["4", "5", "6", "7"]), (-0.4, ["4", "6", "7", "8"])):
        settings = ListSettings(negatives=3, draw="hardest", teacher_margin=margin)
        for scale in (1.0, 20.0):
            score = pc.cast(pc.multiply(prior["score"], scale), pa.float32())
            teacher = prior.set_column(2, "score", score)
            lists = sample_lists(collection.candidates, collection.qrels, settings, seed=1, teacher=teacher)
            assert [pid.split("-")[1] for pid in lists.pids[0]] == expected
    with pytest.raises(BadInput, match=r"lists\.teacher_margin needs"):
        sample_lists(collection.candidates, collection.qrels, settings, seed=1, prior=prior)


def test_with_both_margins_a_negative_has_to_pass_both(collection, prior):
    """The prior drops ranks 1 and 2; the teacher, who has them in reverse, drops 7 to 10."""
    reverse = pc.cast(pc.subtract(0.9, prior["score"]), pa.float32())
    settings = ListSettings(negatives=3, draw="hardest", false_negative_margin=0.15, teacher_margin=0.7)
    teacher = prior.set_column(2, "score", reverse)
    lists = sample_lists(collection.candidates, collection.qrels, settings, seed=1, prior=prior, teacher=teacher)
    assert {tuple(pid.split("-")[1] for pid in row) for row in lists.pids} == {("4", "3", "5", "6")}
    more = ListSettings(negatives=4, draw="hardest", false_negative_margin=0.15, teacher_margin=0.7)
    none = sample_lists(collection.candidates, collection.qrels, more, seed=1, prior=prior, teacher=teacher)
    assert (len(none), none.skipped) == (0, 30)


def test_only_what_the_teacher_scored_is_drawn(collection, prior):
    teacher = prior.filter(pc.greater(prior["score"], 0.35))
    lists = sample_lists(collection.candidates, collection.qrels, ListSettings(negatives=5), seed=1, teacher=teacher)
    assert {pid.split("-")[1] for pid in lists.pids.ravel()} == {"1", "2", "3", "4", "5", "6"}
    assert lists.teacher.dtype == np.float32
    unscored = prior.filter(pc.less(prior["score"], 0.35))
    none = sample_lists(collection.candidates, collection.qrels, ListSettings(negatives=1), seed=1, teacher=unscored)
    assert (len(none), none.pids.shape, none.skipped) == (0, (0, 2), 30)
    with pytest.raises(BadInput, match="no training list"):
        join_lists([none], ListSettings(negatives=1), seed=1)


def judged(*rows: tuple[str, str, int]) -> pa.Table:
    rows = [{"qid": qid, "pid": pid, "grade": grade, "split": "train"} for qid, pid, grade in rows]
    return pa.Table.from_pylist(rows, schema=QRELS)


REJECTED = judged(("q0", "p0-9", 0), ("q0", "elsewhere", 0), ("q0", "p0-10", -1), ("q1", "p1-2", 0))


def test_passages_judged_not_relevant_are_drawn_if_told_to_though_retrieval_missed_them(collection, prior):
    qrels = pa.concat_tables([collection.qrels, REJECTED])
    plain = sample_lists(collection.candidates, collection.qrels, ListSettings(negatives=3), seed=1)
    assert sample_lists(collection.candidates, qrels, ListSettings(negatives=3), seed=1).digest() == plain.digest()
    settings = ListSettings(negatives=3, draw="hardest", judged_negatives=2)
    drawn = set()
    for seed in range(20):
        lists = sample_lists(collection.candidates, qrels, settings, seed=seed)
        rows = dict(zip(lists.qids, lists.pids.tolist(), strict=True))
        assert rows["q0"][0] == "p0-4"
        assert set(rows["q0"][1:3]) < {"p0-9", "elsewhere", "p0-10"}
        assert rows["q0"][3] == "p0-1"
        assert rows["q1"][1:] == ["p1-2", "p1-1", "p1-3"], "as many as there are"
        assert rows["q2"][1:] == ["p2-1", "p2-2", "p2-3"]
        assert len(set(rows["q0"])) == 4
        drawn |= set(rows["q0"][1:3])
    assert drawn == {"p0-9", "elsewhere", "p0-10"}


def test_no_margin_leaves_out_what_was_judged_but_a_missing_score_does(collection, prior):
    qrels = pa.concat_tables([collection.qrels, judged(("q0", "p0-1", 0), ("q0", "elsewhere", 0))])
    settings = ListSettings(negatives=2, draw="hardest", judged_negatives=2, false_negative_margin=0.15)
    lists = sample_lists(collection.candidates, qrels, settings, seed=1, prior=prior)
    assert lists.pids[lists.qids.index("q0")].tolist() == ["p0-4", "p0-1", "p0-3"], "0.9 is above the positive's 0.6"


def test_every_judged_query_has_its_positives_though_it_has_none():
    assert positives(judged(("q0", "a", 0), ("q1", "b", 2), ("q1", "c", 1), ("q1", "d", 0))) == {
        "q0": set(),
        "q1": {"b", "c"},
    }


def test_judged_negatives_are_part_of_the_negatives():
    with pytest.raises(ValueError, match=r"^judged_negatives must be from 0 to the number of negatives"):
        ListSettings(negatives=2, judged_negatives=3)


def test_a_query_that_is_a_passage_has_itself_for_no_negative(collection):
    lists = sample_lists(collection.candidates, collection.qrels, ListSettings(negatives=3), seed=1)
    own = pa.table({"qid": ["q0", "absent"], "pid": ["q0", "absent"]})
    spared = lists.sparing(own)
    assert spared.relevant == lists.relevant | {"q0": {"p0-4", "q0"}}
    assert spared.digest() == lists.digest()


def test_queries_with_too_few_negatives_are_counted(collection):
    short = collection.candidates.filter(
        pc.or_(pc.not_equal(collection.candidates["qid"], "q0"), pc.less(collection.candidates["rank"], 5))
    )
    lists = sample_lists(short, collection.qrels, ListSettings(negatives=5), seed=1)
    assert lists.skipped == 1
    assert "q0" not in lists.qids


@pytest.mark.parametrize("queries", [None, 7, 100])
def test_parts_joined_equal_the_draw_from_all_queries_at_once(collection, prior, queries):
    settings = ListSettings(negatives=3, queries=queries, lists_per_query=2, false_negative_margin=0.05)
    short = collection.candidates.filter(  # two queries are left out
        pc.or_(pc.invert(pc.is_in(collection.candidates["qid"], pa.array(["q0", "q7"]))), pc.less(prior["score"], 0.1))
    )
    whole = sample_lists(short, collection.qrels, settings, seed=3, prior=prior, teacher=prior)
    qids = np.array(pc.unique(short["qid"]).to_pylist())
    np.random.default_rng(1).shuffle(qids)
    shards = [pc.is_in(short["qid"], pa.array(part)) for part in np.array_split(qids, 4)]
    parts = [
        sample_lists(short.filter(shard), collection.qrels, settings, seed=3, prior=prior, teacher=prior)
        for shard in shards
    ]
    joined = join_lists(parts, settings, seed=3)
    assert joined.digest() == whole.digest()
    assert joined.relevant == whole.relevant
    assert joined.skipped == whole.skipped == 2
    assert len(joined) == 2 * min(queries or 28, 28)
    with pytest.raises(BadInput, match="different queries"):
        join_lists([parts[0], parts[0]], settings, seed=3)
    with pytest.raises(BadInput, match="all have scores"):
        unscored = sample_lists(short.filter(shards[1]), collection.qrels, settings, seed=3, prior=prior)
        join_lists([parts[0], unscored], settings, seed=3)


def test_a_teacher_may_score_the_lists_after_the_draw(collection, prior):
    lists = sample_lists(collection.candidates, collection.qrels, ListSettings(negatives=3), seed=1)
    shuffled = prior.take(np.random.default_rng(5).permutation(len(prior)))
    scored = lists.with_teacher(shuffled)
    expected = [[1 - int(pid.split("-")[1]) / 10 for pid in row] for row in lists.pids]
    np.testing.assert_allclose(scored.teacher, expected, atol=1e-6)
    assert scored.teacher.dtype == np.float32
    assert scored.digest() != lists.digest()
    with pytest.raises(BadInput, match=r"pid 'p\d+-4' of the training lists has no teacher score"):
        lists.with_teacher(prior.filter(pc.invert(pc.ends_with(prior["pid"], "-4"))))
    with pytest.raises(BadInput, match="more than once"):
        lists.with_teacher(pa.concat_tables([prior, prior]))


def test_no_negatives_at_all(collection):
    lists = sample_lists(collection.candidates, collection.qrels, ListSettings(negatives=0), seed=1)
    assert lists.pids.shape == (30, 1)


def test_missed_positives_are_appended_once(collection):
    qrels = pa.Table.from_pylist(
        [
            {"qid": "q0", "pid": "missed", "grade": 2, "split": "train"},
            {"qid": "q0", "pid": "p0-4", "grade": 1, "split": "train"},
            {"qid": "q1", "pid": "irrelevant", "grade": 0, "split": "train"},
            {"qid": "elsewhere", "pid": "p0-1", "grade": 1, "split": "train"},
        ],
        QRELS,
    )
    table = with_judged(collection.candidates, qrels)
    assert table.slice(len(collection.candidates)).to_pylist() == [
        {"qid": "q0", "pid": "missed", "rank": 11, "score": 0.0}
    ]
    missed_too = sample_lists(collection.candidates, qrels, ListSettings(negatives=1, lists_per_query=20), seed=1)
    assert set(missed_too.pids[:, 0]) == {"missed", "p0-4"}


@pytest.mark.parametrize(
    ("values", "message"),
    [({"negatives": -1}, "negatives"), ({"negatives": 9, "depth": 8}, "depth"), ({"queries": 0}, "queries")],
)
def test_bad_settings_are_named(values, message):
    with pytest.raises(ValueError, match=f"{message} must be"):
        ListSettings(**values)


def test_a_weight_is_how_often_a_query_is_drawn_from(collection):
    settings = ListSettings(negatives=3)
    plain = sample_lists(collection.candidates, collection.qrels, settings, seed=1)

    def drawn(weight, seed=1):
        return sample_lists(collection.candidates, collection.qrels, settings, seed, weight=lambda _: weight)

    assert drawn(1.0).digest() == plain.digest()
    twice = drawn(2.0)
    assert twice.qids == [qid for qid in plain.qids for _ in range(2)]
    assert twice.pids[::2].tolist() == plain.pids.tolist()
    assert (twice.pids[::2, 1:] != twice.pids[1::2, 1:]).any()
    assert (twice.pids[::2, 0] == twice.pids[1::2, 0]).all()
    half = drawn(0.5)
    assert 5 < len(half) < 25  # 30 queries, each by a hash
    assert half.qids == drawn(0.5).qids
    assert set(half.qids) != set(drawn(0.5, seed=2).qids)
    assert set(drawn(0.25).qids) < set(half.qids)
    nothing = drawn(0.0)
    assert (len(nothing), nothing.skipped) == (0, 0)
    assert len(drawn(1.5)) == 30 + len(half)


def test_lists_drawn_without_the_teacher_equal_those_drawn_from_what_it_scored(collection, prior):
    """A teacher scores the passages of the drawn lists alone: attaching its scores draws the same as drawing from them."""
    settings = ListSettings(negatives=3, false_negative_margin=0.15)
    lists = sample_lists(collection.candidates, collection.qrels, settings, seed=1, prior=prior)
    pairs = {(qid, pid) for qid, row in zip(lists.qids, lists.pids, strict=True) for pid in row}
    rows = [(row["qid"], row["pid"]) in pairs for row in prior.to_pylist()]
    scored = prior.filter(pa.array(rows))
    drawn = sample_lists(collection.candidates, collection.qrels, settings, seed=1, prior=prior, teacher=scored)
    assert lists.with_teacher(scored).digest() == drawn.digest()
    empty = sample_lists(collection.candidates.slice(0, 0), collection.qrels, settings, seed=1, prior=prior)
    assert empty.with_teacher(scored.slice(0, 0)).teacher.shape == (0, 4)
