"""Ranking losses: small pure functions from score tensors to a scalar, all differentiable in the scores.

Shapes: ``scores`` (lists, candidates) float32, higher is more relevant; every loss averages over the lists. None of
them waits for the device.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def listwise_softmax(scores: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy of the softmax over each list against target probabilities, shaped like ``scores``.

    By default all of the target is on column 0, the positive. This is ListNet's top-one loss (Cao et al. 2007), and
    with one positive the localized contrastive loss of https://arxiv.org/abs/2101.08751.
    """
    if targets is None:
        targets = torch.zeros_like(scores)
        targets[:, 0] = 1.0
    return F.cross_entropy(scores, targets)


def soften(prior: torch.Tensor, weight: float, temperature: float) -> torch.Tensor:
    """Targets for ``listwise_softmax``: 1 - ``weight`` on column 0, the rest spread as softmax(prior / temperature).

    Label smoothing towards another ranker instead of the uniform distribution (https://arxiv.org/abs/1909.11723): it
    keeps a teacher with few queries near what that ranker knows.
    """
    targets = weight * F.softmax(prior / temperature, dim=-1)
    targets[:, 0] += 1.0 - weight
    return targets


def pointwise_bce(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of each score on its own; ``labels`` in [0, 1], shaped like ``scores``.

    monoBERT's loss (Nogueira and Cho 2019, https://arxiv.org/abs/1901.04085).
    """
    return F.binary_cross_entropy_with_logits(scores, labels)


def kl_divergence(
    student: torch.Tensor, teacher: torch.Tensor, student_temperature: float, teacher_temperature: float
) -> torch.Tensor:
    """KL(teacher || student) between the softmax distributions over each list.

    Each side has its own temperature: cosines spread over at most 2, logits over tens. Distillation after Hinton
    et al. 2015 (https://arxiv.org/abs/1503.02531), over candidate lists as in RocketQAv2
    (https://arxiv.org/abs/2110.07367). No factor of temperature squared: it would only rescale the loss.
    """
    log_student = F.log_softmax(student / student_temperature, dim=-1)
    log_teacher = F.log_softmax(teacher / teacher_temperature, dim=-1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def margin_mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Squared difference of the positive-minus-negative margins; the positive is column 0.

    Margin-MSE (Hofstätter et al. 2020, https://arxiv.org/abs/2010.02666). Bring the student's scores to the
    teacher's scale first: the margin of two cosines is at most 2.
    """
    return F.mse_loss(student[:, :1] - student[:, 1:], teacher[:, :1] - teacher[:, 1:])


def in_batch_contrast(
    similarities: torch.Tensor, positive: torch.Tensor, relevant: torch.Tensor, temperature: float
) -> torch.Tensor:
    """InfoNCE of every query against all the passages of a step.

    similarities: (queries, passages) cosines; positive: (queries,) int64 column of the query's own positive;
    relevant: (queries, passages) bool, passages known to be relevant, which must not count as negatives. InfoNCE
    (https://arxiv.org/abs/1807.03748) with in-batch negatives as in DPR (https://arxiv.org/abs/2004.04906).
    """
    own = torch.arange(similarities.shape[1], device=positive.device) == positive[:, None]
    return F.cross_entropy((similarities / temperature).masked_fill(relevant & ~own, float("-inf")), positive)


def prefix(vectors: torch.Tensor, length: int) -> torch.Tensor:
    """The first ``length`` components of unit vectors (n, dimension), brought back to length one.

    The nested embeddings of Matryoshka representation learning (https://arxiv.org/abs/2205.13147).
    """
    return vectors if length == vectors.shape[1] else F.normalize(vectors[:, :length], dim=-1)
