"""The prior: which share of the pool looks like the labelled images, from scores of images not trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Values of the estimator's published code.
CONFIDENCE_DELTA = 0.1
SLACK_GAMMA = 0.01
BOOTSTRAP_DRAWS, BOOTSTRAP_CONFIDENCE = 200, 0.95
DENSITY_BINS, SHARES_TRIED = 40, 200


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorInterval:
    """Where the share lies with the asked confidence, 0 <= low <= high <= 1."""

    low: float
    high: float


def prior_interval(
    positive: NDArray[np.floating],
    unlabelled: NDArray[np.floating],
    generator: np.random.Generator,
    *,
    draws: int = BOOTSTRAP_DRAWS,
    confidence: float = BOOTSTRAP_CONFIDENCE,
) -> PriorInterval:
    """What two estimators say when both groups are drawn again with replacement: from the lower to the higher tail.

    The best bin estimate is too high where the classifier is weak, and DEDPUL's is not: together they cover shares that
    the bootstrap of either alone missed on development pools.

    Args:
        positive, unlabelled: as for `best_bin_estimate`.
        generator: source of the draws.

    Raises:
        ValueError: as `best_bin_estimate`.
    """
    found = np.empty((draws, 2))
    for draw in range(draws):
        groups = [generator.choice(group, group.size) for group in (positive, unlabelled)]
        found[draw] = best_bin_estimate(*groups).alpha, density_ratio_estimate(*groups)
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(found, [tail, 1.0 - tail], axis=0)
    return PriorInterval(low=float(low.min()), high=float(high.max()))


def density_ratio_estimate(positive: NDArray[np.floating], unlabelled: NDArray[np.floating]) -> float:
    """The share of positives by DEDPUL: where D(alpha) = alpha - mean_U min(1, alpha r) bends most, 0 to 1.

    r is the ratio of the labelled images' density to the pool's over 40 bins of equal pool mass, made to rise with the
    score. An image can't be more positive than 1, so beyond the true share D leaves 0.

    Source: Ivanov 2020.

    Args:
        positive, unlabelled: out-of-fold scores, [P] and [U], both >= 1.

    Raises:
        ValueError: an empty group or a score that is not finite.
    """
    if not (positive.size and unlabelled.size):
        raise ValueError(f"both groups need scores, got P={positive.size}, U={unlabelled.size}")
    if not (np.isfinite(positive).all() and np.isfinite(unlabelled).all()):
        raise ValueError("scores must be finite")
    ratio, place = density_ratios(positive, unlabelled)
    mass = np.bincount(place, minlength=DENSITY_BINS) / unlabelled.size
    grid = np.linspace(0.0, 1.0, SHARES_TRIED + 1)
    excess = np.array([share_excess(share, ratio, mass) for share in grid])
    bend = excess[2:] - 2 * excess[1:-1] + excess[:-2]
    return float(grid[1 + int(bend.argmax())])


def density_ratios(
    positive: NDArray[np.floating], unlabelled: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """How much denser labelled images lie than pool images, rising with the score.

    Args:
        positive, unlabelled: scores as for `density_ratio_estimate`.

    Returns:
        The ratio in each of 40 bins of equal pool mass, 0 in empty ones; and the bin of each pool image, [U].
    """
    edges = np.quantile(unlabelled, np.linspace(0, 1, DENSITY_BINS + 1)[1:-1])
    place = np.searchsorted(edges, unlabelled, side="right")
    mass = np.bincount(place, minlength=DENSITY_BINS) / unlabelled.size
    labelled_mass = np.bincount(np.searchsorted(edges, positive, side="right"), minlength=DENSITY_BINS) / positive.size
    used = mass > 0
    ratio = np.zeros(DENSITY_BINS)
    ratio[used] = rising(labelled_mass[used] / mass[used], mass[used])
    return ratio, place


def share_excess(share: float, ratio: NDArray[np.floating], mass: NDArray[np.floating]) -> float:
    """D(share) = share - mean min(1, share r) over the pool, r the density ratio of a bin and mass its share, [B]."""
    return float(share - (mass * np.minimum(1.0, share * ratio)).sum())


def rising(values: NDArray[np.floating], weight: NDArray[np.floating]) -> NDArray[np.float64]:
    """The nearest sequence that never falls, in the weighted squares (pool of adjacent violators), [B] -> [B].

    Args:
        weight: of each value, > 0, [B].
    """
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, mass in zip(values.tolist(), weight.tolist(), strict=True):
        blocks.append((value, mass, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (first, first_mass, first_length), (last, last_mass, last_length) = blocks[-2:]
            merged = (first * first_mass + last * last_mass) / (first_mass + last_mass)
            blocks[-2:] = [(merged, first_mass + last_mass, first_length + last_length)]
    return np.repeat([mean for mean, _, _ in blocks], [length for _, _, length in blocks]).astype(np.float64)
