"""A teacher of several members on disk: scored, summed and re-ranked with."""

from __future__ import annotations

import numpy as np
import pytest

from neuroranker_pipeline.datasets.tables import SCORES
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.ranking.embeddings import TorchEncoder, rank_by_cosine
from neuroranker_pipeline.ranking.ensemble import combine
from neuroranker_pipeline.ranking.members import (
    ENSEMBLE,
    Ensemble,
    Member,
    Single,
    is_cross_encoder,
    read_members,
    save_ready,
    score_teacher,
)
from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder
from neuroranker_pipeline.ranking.rerank import rerank
from neuroranker_pipeline.ranking.scoring import add_scores, mean_spread, score_candidates
from neuroranker_pipeline.ranking.settings import MemberSettings
from neuroranker_pipeline_tests.ranking.conftest import FLOAT32


@pytest.fixture(scope="module")
def parts(tiny, collection):
    """The candidates' scores by each member alone."""
    texts = collection.queries, collection.passages
    first = CrossEncoder.start(tiny, 32, seed=1)
    student = TorchEncoder(BiEncoder.load(tiny), FLOAT32)
    return {
        "first": score_candidates(first, collection.candidates, *texts, FLOAT32),
        "other": rank_by_cosine(collection.candidates, *texts, TorchEncoder(BiEncoder.load(tiny, 1), FLOAT32)),
        "base_student": rank_by_cosine(collection.candidates, *texts, student),
    }


@pytest.fixture(scope="module")
def teacher(tiny, parts, tmp_path_factory):
    """A folder with a cross-encoder, a bi-encoder below it, and the base student."""
    folder = tmp_path_factory.mktemp("teacher")
    CrossEncoder.start(tiny, 32, seed=1).save(folder)
    save_ready(MemberSettings(base=str(tiny), layers=1, max_length=32, train=False), folder / "members" / "other")
    weights, places = {"first": 0.5, "other": 0.2, "base_student": 0.3}, {"first": ".", "other": "members/other"}
    members = {
        name: Member(places.get(name), weights[name], mean_spread(scores), 0.1) for name, scores in parts.items()
    }
    Ensemble(members, "first", {"name": str(tiny), "layers": None, "max_length": None}).write(folder)
    return folder


def score(folder, data, prior, **options):
    texts = data.queries, data.passages
    return score_teacher(folder, data.candidates, prior, *texts, FLOAT32, **options)


def test_what_was_written_is_read_back(teacher, tmp_path):
    held = read_members(teacher)
    assert isinstance(held, Ensemble)
    assert held.weights == {"first": 0.5, "other": 0.2, "base_student": 0.3}
    held.write(tmp_path)
    assert read_members(tmp_path) == held
    Single(2.5).write(tmp_path)
    assert read_members(tmp_path) == Single(2.5)
    assert read_members(tmp_path / "nothing") == Single(0.0)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"members": {"a": {}}}', '{"members": 3}', "{}", '{"base_factor": []}']
)
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / ENSEMBLE).write_text(text)
    with pytest.raises(BadInput, match=r"ensemble\.json: not what a teacher's folder holds; make teacher_checkpoint"):
        read_members(tmp_path)


def test_evaluation_sums_standardized_scores(teacher, collection, parts):
    total, best = score(teacher, collection, parts["base_student"])
    assert total.schema == SCORES
    np.testing.assert_allclose(best["score"], parts["first"]["score"], atol=1e-6)
    expected = combine(parts, {"first": 0.5, "other": 0.2, "base_student": 0.3})
    np.testing.assert_allclose(total["score"], expected["score"], atol=1e-4)


def test_lists_keep_their_spread(teacher, collection, parts):
    """Of two passages standardization would leave their order alone; the fixed scale keeps how far apart they are."""
    total, _ = score(teacher, collection, parts["base_student"], lists=True)
    weights = {"first": 0.5, "other": 0.2, "base_student": 0.3}
    expected = sum(w * parts[n]["score"].to_numpy() / mean_spread(parts[n]) for n, w in weights.items())
    np.testing.assert_allclose(total["score"], expected, atol=1e-4)
    assert 0.2 < mean_spread(total) <= 1.0  # of members with a spread of 1 each, and weights that sum to 1


def test_a_member_without_weight_does_not_score(teacher, collection, parts, tmp_path):
    held = read_members(teacher)
    alone = {name: Member(None if name == "base_student" else "gone", 0.0, 1.0, 0.0) for name in held.members}
    members = alone | {"base_student": Member(None, 1.0, 1.0, 0.1), "first": Member(".", 0.0, 1.0, 0.1)}
    CrossEncoder.load(teacher).save(tmp_path)
    Ensemble(members, "first", held.base).write(tmp_path)
    total, best = score(tmp_path, collection, parts["base_student"])
    np.testing.assert_allclose(total["score"], combine(parts, {"base_student": 1.0})["score"], atol=1e-5)
    np.testing.assert_allclose(best["score"], parts["first"]["score"], atol=1e-6)


def test_one_cross_encoder_is_what_it_was(tiny, collection, parts, tmp_path):
    CrossEncoder.start(tiny, 32, seed=1).save(tmp_path)
    Single(0.7).write(tmp_path)
    for lists in (False, True):
        total, best = score(tmp_path, collection, parts["base_student"], lists=lists)
        assert total.equals(add_scores(best, parts["base_student"], 0.7))
        np.testing.assert_allclose(best["score"], parts["first"]["score"], atol=1e-6)


def test_finished_parts_of_each_member_are_kept(teacher, collection, parts, tmp_path, monkeypatch):
    first, _ = score(teacher, collection, parts["base_student"], work=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "other"]
    monkeypatch.setattr(CrossEncoder, "forward", None)
    again, _ = score(teacher, collection, parts["base_student"], work=tmp_path)
    assert again.equals(first)


def test_a_ready_cross_encoder_is_saved_as_it_is(teacher, tmp_path, collection, parts):
    save_ready(MemberSettings(base=str(teacher), max_length=32, train=False), tmp_path / "ready")
    assert is_cross_encoder(tmp_path / "ready")
    model = CrossEncoder.load(tmp_path / "ready")
    scores = score_candidates(model, collection.candidates, collection.queries, collection.passages, FLOAT32)
    np.testing.assert_allclose(scores["score"], parts["first"]["score"], atol=1e-6)


def test_the_folder_reranks_as_the_ensemble(teacher, collection, parts):
    scores = rerank(teacher, collection.candidates, collection.queries, collection.passages, FLOAT32)
    expected = combine(parts, {"first": 0.5, "other": 0.2, "base_student": 0.3})
    np.testing.assert_allclose(scores["score"], expected["score"], atol=1e-4)


def test_the_folder_opens_as_its_best_cross_encoder(teacher, collection, parts):
    from sentence_transformers import CrossEncoder as TheirCrossEncoder

    pairs = list(zip(collection.candidates["qid"].to_pylist(), collection.candidates["pid"].to_pylist(), strict=True))
    texts = [(collection.queries[qid], collection.passages[pid]) for qid, pid in pairs[:20]]
    theirs = TheirCrossEncoder(str(teacher)).predict(texts)
    np.testing.assert_allclose(theirs, parts["first"]["score"].to_numpy()[:20], atol=1e-4)
