"""The prior: which share of the pool looks like the labelled images, from scores of images not trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Values of the estimator's published code.
CONFIDENCE_DELTA = 0.1
SLACK_GAMMA = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorEstimate:
    """`alpha` is the share; `threshold` the score above which it was read; `bound` its upper confidence bound."""

    alpha: float
    threshold: float
    bound: float


def best_bin_estimate(
    positive: NDArray[np.floating],
    unlabelled: NDArray[np.floating],
    *,
    delta: float = CONFIDENCE_DELTA,
    gamma: float = SLACK_GAMMA,
) -> PriorEstimate:
    """Best bin estimation (BBE): the share of positives read off the cleanest top of the scores.

    With q(c) the share of scores >= c, alpha = q_u(c) / q_p(c) at the c with the least upper confidence bound
    (a DKW band on both shares), c over all observed scores.

    Source: Garg, Wu, Smola, Balakrishnan, Lipton 2021.

    Args:
        positive: scores of labelled images that the scorer did not train on, [P], P >= 1.
        unlabelled: scores of such pool images, [U], U >= 1.
        delta, gamma: confidence of the band; slack on it.

    Returns:
        The estimate, alpha in [0, 1]. The bound can be above 1: then there were too few images to say anything.

    Raises:
        ValueError: an empty group or a score that is not finite.
    """
    if not (positive.size and unlabelled.size):
        raise ValueError(f"both groups need scores, got P={positive.size}, U={unlabelled.size}")
    if not (np.isfinite(positive).all() and np.isfinite(unlabelled).all()):
        raise ValueError("scores must be finite")
    ordered_positive, ordered_unlabelled = np.sort(positive), np.sort(unlabelled)
    thresholds = np.unique(np.concatenate([positive, unlabelled]))
    thresholds = thresholds[thresholds <= ordered_positive[-1]]
    positive_share = 1.0 - np.searchsorted(ordered_positive, thresholds, side="left") / positive.size
    unlabelled_share = 1.0 - np.searchsorted(ordered_unlabelled, thresholds, side="left") / unlabelled.size

    logarithm = np.log(4.0 / delta)
    band = np.sqrt(logarithm / (2 * positive.size)) + np.sqrt(logarithm / (2 * unlabelled.size))
    bounds = (unlabelled_share + (1.0 + gamma) * band) / positive_share
    best = int(np.argmin(bounds))
    return PriorEstimate(
        alpha=float(min(1.0, unlabelled_share[best] / positive_share[best])),
        threshold=float(thresholds[best]),
        bound=float(bounds[best]),
    )
