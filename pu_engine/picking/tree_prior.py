"""The prior by TIcE: the share of labelled images can't be larger in any part of the data than among all positives.

Source: Bekker, Davis 2018 (tree induction for label frequency estimation), here on one feature, the score.
"""

from __future__ import annotations

import heapq
import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

# Values of the published code.
FOLDS = 5
ROUNDS = 2
PARTS = 4  # of a node's range
MOST_SPLITS = 500
LEAST_IMAGES = 10  # of a part that is read
SMOOTHING = 5  # images added to a part's count where parts are compared
LEAST_DELTA, DELTA_RATE = 0.025, 0.004

Mask = NDArray[np.bool_]
Node = tuple[float, float]  # a range of scores, from (included) and to (excluded)


def tree_induction_estimate(
    positive: NDArray[np.floating], unlabelled: NDArray[np.floating], generator: np.random.Generator
) -> float:
    """The share of positives in the pool, 0 to 1.

    With c the frequency of labels among all positives, labelled and not, |P| / c are positives and |P| (1 / c - 1) of
    them are in the pool. A tree on a fifth of the data looks for ranges of the score full of labelled images; the
    largest lower bound that the other fifths give for such a range is c.

    Args:
        positive, unlabelled: scores that tell both apart, by classifiers that saw neither, [P] and [U].
        generator: draws the folds.

    Raises:
        ValueError: an empty group or a score that is not finite.
    """
    if not (positive.size and unlabelled.size):
        raise ValueError(f"both groups need scores, got P={positive.size}, U={unlabelled.size}")
    if not (np.isfinite(positive).all() and np.isfinite(unlabelled).all()):
        raise ValueError("scores must be finite")
    score = np.concatenate([positive, unlabelled]).astype(np.float64)
    labelled = np.arange(score.size) < positive.size
    fold = generator.permutation(score.size) % FOLDS
    frequency = 0.5
    for _ in range(ROUNDS):
        bounds = []
        for number in range(FOLDS):
            tree = fold == number
            bounds.append(
                _largest_bound((score[tree], labelled[tree]), (score[~tree], labelled[~tree]), frequency=frequency)
            )
        frequency = float(np.clip(np.mean(bounds), positive.size / score.size, 1.0))
    return min(1.0, positive.size / unlabelled.size * (1.0 / frequency - 1.0))


def lower_bound(labelled: int, images: int, frequency: float, delta: float) -> float:
    """What c is at least, by the labelled share of a part of the data: Chebyshev's inequality, which fails by `delta`.

    Args:
        frequency: an earlier estimate of c, for the variance.
    """
    return labelled / images - math.sqrt(frequency * (1.0 - frequency) * (1.0 - delta) / (delta * images))


def _largest_bound(
    tree: tuple[NDArray[np.float64], Mask], estimate: tuple[NDArray[np.float64], Mask], *, frequency: float
) -> float:
    """Split the most promising range first, by the tree's data, and take the largest bound by the others."""
    score, labelled = estimate
    delta = max(LEAST_DELTA, 1.0 / (1.0 + DELTA_RATE * score.size))
    root: Node = (float(min(tree[0].min(), score.min())), math.nextafter(max(tree[0].max(), score.max()), math.inf))
    best = lower_bound(int(labelled.sum()), score.size, frequency, delta)
    queue = [(0.0, root)]
    splits = 0
    while queue and splits < MOST_SPLITS:
        _, node = heapq.heappop(queue)
        splits += 1
        for part in _parts(tree[0], node):
            inside = (score >= part[0]) & (score < part[1])
            images = int(inside.sum())
            if images < LEAST_IMAGES:
                continue
            best = max(best, lower_bound(int(labelled[inside].sum()), images, frequency, delta))
            held = (tree[0] >= part[0]) & (tree[0] < part[1])
            if held.sum() >= LEAST_IMAGES:
                heapq.heappush(queue, (-float(tree[1][held].sum() / (held.sum() + SMOOTHING)), part))
    return best


def _parts(score: NDArray[np.float64], node: Node) -> list[Node]:
    """A range cut where the tree's images in it are cut into equal parts; none where it can't be cut."""
    inside = score[(score >= node[0]) & (score < node[1])]
    cuts = np.unique(np.quantile(inside, np.linspace(0, 1, PARTS + 1)[1:-1])) if inside.size else np.zeros(0)
    edges = [node[0], *(float(cut) for cut in cuts if node[0] < cut < node[1]), node[1]]
    return list(pairwise(edges)) if len(edges) > 2 else []
