from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from neuroranker_pipeline.datasets.tables import QRELS, SCORES
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.ranking.lists import ListSettings, sample_lists, with_positives


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


def test_only_what_the_teacher_scored_is_drawn(collection, prior):
    teacher = prior.filter(pc.greater(prior["score"], 0.35))
    lists = sample_lists(collection.candidates, collection.qrels, ListSettings(negatives=5), seed=1, teacher=teacher)
    assert {pid.split("-")[1] for pid in lists.pids.ravel()} == {"1", "2", "3", "4", "5", "6"}
    assert lists.teacher.dtype == np.float32
    unscored = prior.filter(pc.less(prior["score"], 0.35))
    with pytest.raises(BadInput, match="no training list"):
        sample_lists(collection.candidates, collection.qrels, ListSettings(negatives=1), seed=1, teacher=unscored)


def test_queries_with_too_few_negatives_are_counted(collection):
    short = collection.candidates.filter(
        pc.or_(pc.not_equal(collection.candidates["qid"], "q0"), pc.less(collection.candidates["rank"], 5))
    )
    lists = sample_lists(short, collection.qrels, ListSettings(negatives=5), seed=1)
    assert lists.skipped == 1
    assert "q0" not in lists.qids


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
    table = with_positives(collection.candidates, qrels)
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
