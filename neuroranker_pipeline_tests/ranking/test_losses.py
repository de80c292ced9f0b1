"""Every loss against an independent float64 computation, and its gradient against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroranker_pipeline.ranking.losses import (
    in_batch_contrast,
    kl_divergence,
    listwise_softmax,
    margin_mse,
    pointwise_bce,
    prefix,
    soften,
)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.fixture
def scores() -> np.ndarray:
    return np.random.default_rng(1).normal(0, 3, (4, 5))


@pytest.fixture
def teacher() -> np.ndarray:
    return np.random.default_rng(2).normal(0, 5, (4, 5))


def test_listwise_softmax(scores):
    expected = np.mean([-np.log(softmax(row)[0]) for row in scores])
    assert listwise_softmax(torch.tensor(scores)).item() == pytest.approx(expected, rel=1e-9)


def test_softened_targets_follow_the_prior(scores, teacher):
    targets = 0.3 * softmax(teacher / 2.0)
    targets[:, 0] += 0.7
    ours = soften(torch.tensor(teacher), 0.3, 2.0)
    np.testing.assert_allclose(ours, targets)
    expected = -(targets * np.log(softmax(scores))).sum(axis=1).mean()
    assert listwise_softmax(torch.tensor(scores), ours).item() == pytest.approx(expected, rel=1e-9)


def test_pointwise_bce(scores):
    labels = np.eye(4, 5)
    chance = 1 / (1 + np.exp(-scores))
    expected = -(labels * np.log(chance) + (1 - labels) * np.log(1 - chance)).mean()
    assert pointwise_bce(torch.tensor(scores), torch.tensor(labels)).item() == pytest.approx(expected, rel=1e-9)


def test_kl_divergence_uses_each_temperature_on_its_own_side(scores, teacher):
    p, q = softmax(teacher / 2.0), softmax(scores / 0.5)
    expected = (p * (np.log(p) - np.log(q))).sum(axis=1).mean()
    assert kl_divergence(torch.tensor(scores), torch.tensor(teacher), 0.5, 2.0).item() == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=8), st.floats(0.05, 5))
def test_kl_divergence_is_zero_for_equal_distributions_and_ignores_shifts(row, temperature):
    scores = torch.tensor([row], dtype=torch.float64)
    assert kl_divergence(scores, scores + 7, temperature, temperature).item() == pytest.approx(0, abs=1e-9)


def test_margin_mse(scores, teacher):
    expected = np.mean(((scores[:, :1] - scores[:, 1:]) - (teacher[:, :1] - teacher[:, 1:])) ** 2)
    assert margin_mse(torch.tensor(scores), torch.tensor(teacher)).item() == pytest.approx(expected)


def test_in_batch_contrast_leaves_out_known_positives():
    similarities = np.random.default_rng(3).uniform(-1, 1, (3, 6))
    positive, relevant = np.array([0, 2, 4]), np.zeros((3, 6), bool)
    relevant[[0, 1, 2], positive] = True
    relevant[0, 2] = True  # another query's positive is relevant to the first query too
    losses = []
    for row in range(3):
        kept = [c for c in range(6) if c == positive[row] or not relevant[row, c]]
        losses.append(-np.log(softmax(similarities[row, kept] / 0.05)[kept.index(positive[row])]))
    value = in_batch_contrast(torch.tensor(similarities), torch.tensor(positive), torch.tensor(relevant), 0.05)
    assert value.item() == pytest.approx(np.mean(losses))


def test_a_prefix_is_a_unit_vector_of_the_first_components(scores):
    unit = scores / np.linalg.norm(scores, axis=1, keepdims=True)
    expected = scores[:, :3] / np.linalg.norm(scores[:, :3], axis=1, keepdims=True)
    np.testing.assert_allclose(prefix(torch.tensor(unit), 3), expected)
    np.testing.assert_array_equal(prefix(torch.tensor(unit), 5), unit)


def test_gradients(scores, teacher):
    x = torch.tensor(scores, requires_grad=True)
    y, labels = torch.tensor(teacher), torch.eye(4, 5, dtype=torch.float64)
    positive, relevant = torch.tensor([0, 1, 2, 3]), torch.eye(4, 5).bool()
    relevant[0, 4] = True
    for loss in (
        listwise_softmax,
        lambda s: listwise_softmax(s, soften(y, 0.3, 2.0)),
        lambda s: pointwise_bce(s, labels),
        lambda s: kl_divergence(s, y, 0.5, 2.0),
        lambda s: margin_mse(s, y),
        lambda s: in_batch_contrast(s, positive, relevant, 0.3),
        lambda s: prefix(s, 3),
    ):
        assert torch.autograd.gradcheck(loss, (x,))
