"""Risks of positive-unlabelled (PU) learning: from scores of labelled and of pool images to a scalar to minimise.

A score g is real-valued, positive for "like the labelled images". The surrogate loss of the margin z = y g is
the sigmoid loss 1 / (1 + e^z), bounded, or the logistic loss ln(1 + e^-z).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Surrogate = Literal["sigmoid", "logistic"]


def surrogate_loss(margin: Tensor, surrogate: Surrogate) -> Tensor:
    """The loss of each margin, of the shape of `margin`."""
    return torch.sigmoid(-margin) if surrogate == "sigmoid" else F.softplus(-margin)


def upu_risk(positive: Tensor, unlabelled: Tensor, prior: float, *, surrogate: Surrogate = "sigmoid") -> Tensor:
    """Unbiased PU risk; it can fall below 0, which is overfitting.

    Source: du Plessis, Niu, Sugiyama 2015.

    Args:
        positive: scores of labelled images, [P], P >= 1.
        unlabelled: scores of pool images, [U], U >= 1.
        prior: share of positives in the pool, 0 < prior < 1.
        surrogate: loss of a margin.

    Returns:
        Scalar.

    Raises:
        ValueError: an empty group, or a prior out of range.
    """
    positive_part, negative_part = _risk_parts(positive, unlabelled, prior, surrogate)
    return positive_part + negative_part


def nnpu_risk(
    positive: Tensor,
    unlabelled: Tensor,
    prior: float,
    *,
    surrogate: Surrogate = "sigmoid",
    beta: float = 0.0,
    gamma: float = 1.0,
) -> Tensor:
    """Non-negative PU risk with its training rule.

    Source: Kiryo, Niu, du Plessis, Sugiyama 2017.

    Args:
        positive, unlabelled, prior, surrogate: as for `upu_risk`.
        beta, gamma: tolerance below zero; gradient scale beyond it.

    Returns:
        Scalar. Beyond the tolerance its gradient is that of -gamma * negative part: the step undoes overfitting,
        where a plain `relu` would stand still.

    Raises:
        ValueError: an empty group, or a prior out of range.
    """
    positive_part, negative_part = _risk_parts(positive, unlabelled, prior, surrogate)
    if negative_part >= -beta:
        return positive_part + negative_part
    ascent = -gamma * negative_part
    return ascent + (positive_part - beta - ascent).detach()  # value of one term, gradient of the other


def naive_risk(positive: Tensor, unlabelled: Tensor, *, surrogate: Surrogate = "logistic") -> Tensor:
    """Labelled against pool images as if these were all negative: the right order without a prior, a wrong threshold.

    Args:
        positive, unlabelled: scores, [P] and [U], both >= 1.
        surrogate: loss of a margin.

    Returns:
        Scalar.

    Raises:
        ValueError: an empty group.
    """
    _check_groups(positive, unlabelled)
    return (surrogate_loss(positive, surrogate).mean() + surrogate_loss(-unlabelled, surrogate).mean()) / 2


def vpu_risk(positive: Tensor, unlabelled: Tensor) -> Tensor:
    """Variational PU risk, which needs no prior: ln mean_U Phi - mean_P ln Phi with Phi = sigmoid(g).

    Source: Chen, Liu, Wang, Zhao, Wu 2020; its first term is over the pool images alone.

    Args:
        positive, unlabelled: scores, [P] and [U], both >= 1.

    Returns:
        Scalar, unbounded below; train it with `vpu_regulariser`.

    Raises:
        ValueError: an empty group.
    """
    _check_groups(positive, unlabelled)
    pool_part = torch.logsumexp(F.logsigmoid(unlabelled), dim=0) - math.log(unlabelled.numel())
    return pool_part - F.logsigmoid(positive).mean()


def vpu_regulariser(mixed: Tensor, unlabelled: Tensor, share: Tensor) -> Tensor:
    """How far ln Phi of a mix of a labelled and a pool image is from that of the mixed answers, squared.

    Source: Chen et al. 2020: share from Beta(.3, .3), weight .03 in the risk.

    Args:
        mixed: scores of share * labelled + (1 - share) * pool image, [M].
        unlabelled: scores of those pool images, [M]; no gradient goes through them.
        share: of the labelled image, [M], 0 to 1.

    Returns:
        Scalar.
    """
    answer = share + (1.0 - share) * torch.sigmoid(unlabelled.detach())
    return (answer.log() - F.logsigmoid(mixed)).square().mean()


def dist_pu_risk(positive: Tensor, unlabelled: Tensor, prior: float) -> Tensor:
    """Distance of the mean answers to those that the prior demands: 2 prior |mean_P s - 1| + |mean_U s - prior|.

    Source: Zhao, Xu, Jiang, Wen, Huang 2022, main term.

    Args:
        positive, unlabelled, prior: as for `upu_risk`.

    Returns:
        Scalar.

    Raises:
        ValueError: an empty group, or a prior out of range.
    """
    _check_groups(positive, unlabelled)
    _check_prior(prior)
    labelled_part = (torch.sigmoid(positive).mean() - 1.0).abs()
    return 2.0 * prior * labelled_part + (torch.sigmoid(unlabelled).mean() - prior).abs()


def answer_entropy(scores: Tensor) -> Tensor:
    """Mean entropy of the answers sigmoid(g), nats: Dist-PU adds it late in training to make them decide.

    Args:
        scores: [N], N >= 1.
    """
    answer = torch.sigmoid(scores)
    return -(answer * F.logsigmoid(scores) + (1.0 - answer) * F.logsigmoid(-scores)).mean()


def soft_label_risk(positive: Tensor, unlabelled: Tensor, belief: Tensor) -> Tensor:
    """Logistic risk of labelled images, and of pool images that are positive by a belief: self-training.

    A pool image counts `belief` among the positives and 1 - `belief` among the negatives; both groups weigh a half.
    With no belief at all it is `naive_risk`.

    Args:
        positive, unlabelled: scores, [P] and [U], both >= 1.
        belief: 0 to 1, [U], not all of them 1.

    Returns:
        Scalar.

    Raises:
        ValueError: an empty group.
    """
    _check_groups(positive, unlabelled)
    taken = F.softplus(-positive).sum() + (belief * F.softplus(-unlabelled)).sum()
    left = ((1.0 - belief) * F.softplus(unlabelled)).sum()
    return (taken / (positive.numel() + belief.sum()) + left / (1.0 - belief).sum()) / 2


def cvir_kept(unlabelled: Tensor, prior: float) -> Tensor:
    """Pool images that conditional value ignoring risk trains on: all but the floor(prior U) of the highest scores.

    The risk itself is `naive_risk` on the labelled images and these.

    Source: Garg, Wu, Smola, Balakrishnan, Lipton 2021.

    Args:
        unlabelled: scores, [U].
        prior: share of positives in the pool, 0 <= prior < 1.

    Returns:
        Indices of the kept images by rising score; equal scores in pool order, [U - floor(prior U)].

    Raises:
        ValueError: a prior out of range.
    """
    if not 0.0 <= prior < 1.0:
        raise ValueError(f"prior must be in [0, 1), got {prior}")
    dropped = int(prior * unlabelled.numel())
    return torch.argsort(unlabelled.detach(), stable=True)[: unlabelled.numel() - dropped]


def _risk_parts(positive: Tensor, unlabelled: Tensor, prior: float, surrogate: Surrogate) -> tuple[Tensor, Tensor]:
    _check_groups(positive, unlabelled)
    _check_prior(prior)
    positive_part = prior * surrogate_loss(positive, surrogate).mean()
    negative_part = surrogate_loss(-unlabelled, surrogate).mean() - prior * surrogate_loss(-positive, surrogate).mean()
    return positive_part, negative_part


def _check_groups(positive: Tensor, unlabelled: Tensor) -> None:
    if not (positive.numel() and unlabelled.numel()):
        raise ValueError(f"both groups need images, got P={positive.numel()}, U={unlabelled.numel()}")


def _check_prior(prior: float) -> None:
    if not 0.0 < prior < 1.0:
        raise ValueError(f"prior must be in (0, 1), got {prior}; prior.py estimates it")
