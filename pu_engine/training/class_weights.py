"""Class weights of the robust distillation loss: the published rule, and the exact worst case over a ball.

A class distribution `p` puts mass on each class's mean loss; training minimises sum p_k loss_k. The worst `p`
within a ball around the base distribution follows in closed form from the Lagrangian, so nothing is sampled.
Train with `p` held constant (envelope theorem); the weight of a sample of class k is p_k / q_k.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

# A class that no picked image shows would otherwise get all the weight.
COUNT_FLOOR_SHARE = 1 / 50
BISECTIONS = 200
# Losses closer than this, relative to their size, are equal: the spread is rounding.
EQUAL_LOSS = 1e-12


def paper_weights(counts: Vector, *, floor_share: float = COUNT_FLOOR_SHARE) -> Vector:
    """The published weights (1/n_k) / mean_j(1/n_j); their mean is 1.

    Args:
        counts: (soft) images of each class, [K], >= 0.
        floor_share: counts below this share of the mean count are raised to it.

    Raises:
        ValueError: no images at all, or a negative count.
    """
    if counts.min() < 0 or counts.sum() <= 0:
        raise ValueError(f"counts must be >= 0 with a positive sum, got {counts.tolist()}")
    inverse = 1.0 / np.maximum(counts, floor_share * counts.mean())
    return np.asarray(inverse / inverse.mean(), dtype=np.float64)


def one_sided_perturbation(weights: Vector, noise: Vector, epsilon: float) -> Vector:
    """The published perturbed weights, weights + epsilon * noise with noise from U[0, 1], [K].

    With losses >= 0 they always give the larger loss, so their maximum protects no class.
    """
    return np.asarray(weights + epsilon * noise, dtype=np.float64)


def two_sided_perturbation(weights: Vector, shares: Vector, noise: Vector, epsilon: float) -> Vector:
    """weights * exp(epsilon * noise), noise from U[-1, 1], rescaled to keep the mass sum_k shares_k weights_k; [K]."""
    moved = weights * np.exp(epsilon * noise)
    return np.asarray(moved * ((shares @ weights) / (shares @ moved)), dtype=np.float64)


def worst_case_chi2(base: Vector, loss: Vector, radius: float) -> Vector:
    """The distribution of largest mean loss with sum (p - base)^2 / base <= radius.

    Args:
        base: class distribution, [K], sums to 1.
        loss: mean loss of each class, [K].
        radius: of the ball, >= 0.

    Returns:
        p, [K]. The worst value is p @ loss.
    """
    _check_ball(base, loss, radius)
    mean = base @ loss
    deviation = float(np.sqrt(base @ (loss - mean) ** 2))
    if radius == 0 or deviation <= EQUAL_LOSS * np.abs(loss).max():
        return base.copy()
    linear = base * (1.0 + np.sqrt(radius) * (loss - mean) / deviation)
    if linear.min() >= 0:
        return np.asarray(linear, dtype=np.float64)
    if radius >= 1.0 / _worst_mass(base, loss) - 1.0:
        return _all_on_the_worst(base, loss)

    # Beyond the linear case classes of small loss get nothing: p = base (loss - eta)+, and the ball's
    # radius grows with eta from the smallest loss to the largest.
    low, high = float(loss[base > 0].min()), float(loss[base > 0].max())
    for _ in range(BISECTIONS):
        eta = (low + high) / 2
        excess = np.maximum(loss - eta, 0.0)
        first, second = base @ excess, base @ excess**2
        if second > (1.0 + radius) * first**2:
            high = eta
        else:
            low = eta
    mass = base * np.maximum(loss - low, 0.0)
    return np.asarray(mass / mass.sum(), dtype=np.float64)


def worst_case_kl(base: Vector, loss: Vector, radius: float) -> Vector:
    """The distribution of largest mean loss with KL(p || base) <= radius; arguments as for `worst_case_chi2`."""
    _check_ball(base, loss, radius)
    spread = float(loss[base > 0].max() - loss[base > 0].min())
    if radius == 0 or spread <= EQUAL_LOSS * np.abs(loss).max():
        return base.copy()
    if radius >= -np.log(_worst_mass(base, loss)):
        return _all_on_the_worst(base, loss)
    # p = base exp(loss / tau): the divergence falls as the temperature tau rises.
    low, high = np.log(spread) - 20.0, np.log(spread) + 20.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        tilted = _tilt(base, loss, float(np.exp(middle)))
        inside = tilted > 0
        if tilted[inside] @ np.log(tilted[inside] / base[inside]) > radius:
            low = middle
        else:
            high = middle
    return _tilt(base, loss, float(np.exp(high)))


def sample_weights(worst: Vector, shares: Vector) -> Vector:
    """What a sample of each class weighs, p_k / q_k; 0 for a class without images, [K]."""
    return np.divide(worst, shares, out=np.zeros_like(worst), where=shares > 0)


def _tilt(base: Vector, loss: Vector, temperature: float) -> Vector:
    mass = base * np.exp((loss - loss[base > 0].max()) / temperature)
    return np.asarray(mass / mass.sum(), dtype=np.float64)


def _worst_mass(base: Vector, loss: Vector) -> float:
    return float(base[loss == loss[base > 0].max()].sum())


def _all_on_the_worst(base: Vector, loss: Vector) -> Vector:
    mass = np.where(loss == loss[base > 0].max(), base, 0.0)
    return np.asarray(mass / mass.sum(), dtype=np.float64)


def _check_ball(base: Vector, loss: Vector, radius: float) -> None:
    if base.shape != loss.shape or base.ndim != 1:
        raise ValueError(f"base and loss must be vectors of one length, got {base.shape} and {loss.shape}")
    if radius < 0 or base.min() < 0 or abs(base.sum() - 1.0) > 1e-6:
        raise ValueError(f"radius {radius} must be >= 0, and base a distribution, got the sum {base.sum()}")
