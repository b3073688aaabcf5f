"""Scores of an image's content, from what the teacher says of it and from where its features lie.

Higher is more like the labelled images. Statistics of the pool are summed shard by shard in float64. Products are
torch's, whose number of threads a stage can fix: numpy's BLAS adds in another order on a machine with more cores.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

# algorithms measured with these: a pooled covariance of few labelled images needs much, that of a pool little.
WITHIN_SHRINKAGE = 0.1
BACKGROUND_RIDGE = 0.001
# Rank correlation of the energy with the relative Mahalanobis score of all taps from which on the energy counts in
# full. On natural development pools it was .27 to .38 with two teachers, .15 with a third; in pools of three quarters
# junk -.39 to .06.
FULL_TRUST = 0.3
# Of the ranks by last tap, by all taps with their spreads, and by an energy that is trusted in full. Scores that find a
# class on a natural pool are fooled by made-up pictures, and the other way round. On development pools, two teachers,
# best tenth: .341 showed a class where the pool was natural, and where three quarters were junk .702 were real, .678
# with the energy trusted in full. Without the spreads, at 2 to 2 to 1: .356, .693, .659; with them, at 2 to 2 to 2:
# .355, .706, .644. Junk costs a student more.
LAST_TAP_WEIGHT, ALL_TAPS_WEIGHT, ENERGY_WEIGHT = 3.0, 2.0, 1.0
# Features that are all equal still need a covariance that can be inverted.
LEAST_VARIANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaussians:
    """Means [C, D] with one shared covariance as a whitening matrix [D, D]: d2 = |whitening (x - mean)|^2."""

    means: Matrix
    whitening: Matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Count, mean [D] and covariance [D, D] (divided by the count) of a stream of rows."""

    count: int
    mean: Vector
    covariance: Matrix


def energy(logits: NDArray[np.floating]) -> Vector:
    """logsumexp of the logits' mean over the views, [n, V, K] -> [n]."""
    mean = logits.mean(axis=1, dtype=np.float64)
    top = mean.max(axis=1, keepdims=True)
    return np.asarray(top[:, 0] + np.log(np.exp(mean - top).sum(axis=1)), dtype=np.float64)


def confidence(logits: NDArray[np.floating]) -> Vector:
    """Largest softmax probability of the logits' mean over the views, [n, V, K] -> [n]."""
    mean = logits.mean(axis=1, dtype=np.float64)
    return np.asarray(np.exp(mean.max(axis=1) - energy(logits)), dtype=np.float64)


def margin(logits: NDArray[np.floating]) -> Vector:
    """How far the largest of the logits' mean over the views is above the next, [n, V, K] -> [n]; K >= 2."""
    mean = np.sort(logits.mean(axis=1, dtype=np.float64), axis=1)
    return np.asarray(mean[:, -1] - mean[:, -2], dtype=np.float64)


def moments(chunks: Iterable[NDArray[np.floating]]) -> Moments:
    """Moments of all rows of the chunks [n, D]; each chunk is centred on its own mean before it is squared.

    Source: Chan, Golub, LeVeque 1983 (pairwise update).

    Raises:
        ValueError: no rows at all.
    """
    count, mean, scatter = 0, np.zeros(0), np.zeros((0, 0))
    for chunk in chunks:
        rows = chunk.astype(np.float64)
        if not len(rows):
            continue
        chunk_mean = rows.mean(axis=0)
        rows -= chunk_mean
        if not count:
            count, mean, scatter = len(rows), chunk_mean, _product(rows.T, rows)
            continue
        shift = chunk_mean - mean
        merged = count + len(rows)
        scatter += _product(rows.T, rows)
        scatter += np.outer(shift, shift) * (count * len(rows) / merged)
        mean = mean + shift * (len(rows) / merged)
        count = merged
    if not count:
        raise ValueError("moments need at least one row")
    return Moments(count=count, mean=mean, covariance=scatter / count)


def class_gaussians(features: NDArray[np.floating], classes: NDArray[np.integer]) -> Gaussians:
    """A mean for each class present, and the pooled within-class covariance S shrunk to .9 S + .1 (tr S / D) I.

    Args:
        features: of the labelled images, [P, D].
        classes: class of each, [P].
    """
    rows = features.astype(np.float64)
    present, place = np.unique(classes, return_inverse=True)
    means = np.stack([rows[place == k].mean(axis=0) for k in range(present.size)])
    centred = rows - means[place]
    covariance = _product(centred.T, centred) / len(rows)
    shrunk = (1.0 - WITHIN_SHRINKAGE) * covariance + WITHIN_SHRINKAGE * _mean_variance(covariance) * np.eye(
        rows.shape[1]
    )
    return Gaussians(means=means, whitening=_whitening(shrunk))


def background_gaussian(pool: Moments) -> Gaussians:
    """The pool as one Gaussian, its covariance S raised to S + .001 (tr S / D) I."""
    ridge = BACKGROUND_RIDGE * _mean_variance(pool.covariance) * np.eye(pool.mean.size)
    return Gaussians(means=pool.mean[None], whitening=_whitening(pool.covariance + ridge))


def squared_distance(features: NDArray[np.floating], gaussians: Gaussians) -> Vector:
    """Squared Mahalanobis distance to the nearest mean, [n, D] -> [n]."""
    centre = gaussians.means.mean(axis=0)
    rows = _product(features.astype(np.float64) - centre, gaussians.whitening.T)
    means = _product(gaussians.means - centre, gaussians.whitening.T)
    squares = (rows**2).sum(axis=1)[:, None] - 2.0 * _product(rows, means.T) + (means**2).sum(axis=1)
    return np.asarray(np.maximum(squares.min(axis=1), 0.0), dtype=np.float64)


def relative_mahalanobis(features: NDArray[np.floating], classes: Gaussians, background: Gaussians) -> Vector:
    """Squared distance to the pool minus that to the nearest class, [n, D] -> [n].

    Source: Ren et al. 2021, with the pool as background.
    """
    return squared_distance(features, background) - squared_distance(features, classes)


def ranks(score: Vector) -> Vector:
    """Rank of each score in (0, 1], equal scores sharing their mean rank, [N]."""
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count - 1) / 2.0)[place] / max(score.size, 1), dtype=np.float64)


def rank_sum(*scores: Vector) -> Vector:
    """Sum of the ranks of several scores of the same images, [N]: no scale of theirs matters."""
    return np.asarray(sum(ranks(score) for score in scores), dtype=np.float64)


def content_score(first: Vector, last_tap: Vector, all_taps: Vector) -> Vector:
    """What the teacher's own scores say together: a sum of ranks in which `first` counts as far as it is trusted, [N].

    On a clean pool the energy and the relative Mahalanobis score agree; much junk has large logits too, and there they
    contradict each other.

    Args:
        first: energy, or confidence, [N].
        last_tap, all_taps: relative Mahalanobis scores of the last tap, and of all taps with their spreads, [N].
    """
    trust = min(1.0, max(0.0, rank_correlation(first, all_taps) / FULL_TRUST))
    features = LAST_TAP_WEIGHT * ranks(last_tap) + ALL_TAPS_WEIGHT * ranks(all_taps)
    return features + ENERGY_WEIGHT * trust * ranks(first)


def rank_correlation(first: Vector, second: Vector) -> float:
    """Spearman's correlation of two scores of the same images, -1 to 1; 0 where one of them is constant.

    Raises:
        ValueError: scores of different images, or none.
    """
    if first.size != second.size or not first.size:
        raise ValueError(f"a correlation needs two scores of each image, got {first.size} and {second.size}")
    left, right = (ranks(score) - ranks(score).mean() for score in (first, second))
    norm = float(np.sqrt((left**2).sum() * (right**2).sum()))
    return float((left * right).sum() / norm) if norm else 0.0


def separation(higher: Vector, lower: Vector) -> float:
    """How often a score of the first group is above one of the second, equal scores counting half (AUC), 0 to 1.

    Raises:
        ValueError: an empty group.
    """
    if not (higher.size and lower.size):
        raise ValueError(f"both groups need scores, got {higher.size} and {lower.size}")
    rank = ranks(np.concatenate([higher, lower])) * (higher.size + lower.size)
    above = rank[: higher.size].sum() - higher.size * (higher.size + 1) / 2
    return float(above / (higher.size * lower.size))


def _mean_variance(covariance: Matrix) -> float:
    return max(float(np.trace(covariance) / covariance.shape[0]), LEAST_VARIANCE)


def _whitening(covariance: Matrix) -> Matrix:
    root = torch.linalg.cholesky(torch.from_numpy(covariance))
    whitening = torch.linalg.solve_triangular(root, torch.eye(len(root), dtype=root.dtype), upper=False)
    return np.asarray(whitening.numpy(), dtype=np.float64)


def _product(left: Matrix, right: Matrix) -> Matrix:
    return np.asarray((torch.from_numpy(left) @ torch.from_numpy(right)).numpy(), dtype=np.float64)
