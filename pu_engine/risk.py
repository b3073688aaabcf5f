"""Risks of positive-unlabelled (PU) learning: from scores of labelled and of pool images to a scalar to minimise.

A score g is real-valued, positive for "like the labelled images". The surrogate loss of the margin z = y g is
the sigmoid loss 1 / (1 + e^z), bounded, or the logistic loss ln(1 + e^-z).
"""

from __future__ import annotations

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


def _risk_parts(positive: Tensor, unlabelled: Tensor, prior: float, surrogate: Surrogate) -> tuple[Tensor, Tensor]:
    _check_groups(positive, unlabelled)
    if not 0.0 < prior < 1.0:
        raise ValueError(f"prior must be in (0, 1), got {prior}; prior.py estimates it")
    positive_part = prior * surrogate_loss(positive, surrogate).mean()
    negative_part = surrogate_loss(-unlabelled, surrogate).mean() - prior * surrogate_loss(-positive, surrogate).mean()
    return positive_part, negative_part


def _check_groups(positive: Tensor, unlabelled: Tensor) -> None:
    if not (positive.numel() and unlabelled.numel()):
        raise ValueError(f"both groups need images, got P={positive.numel()}, U={unlabelled.numel()}")
