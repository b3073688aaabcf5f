"""From an order of the pool to the picked images: equal quota for each class, the best, or a threshold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]


def class_quotas(
    available: Counts, labelled: Mask, total: int, seed: int, *, floors: Counts | None = None,
    caps: Counts | None = None,
) -> Counts:  # fmt: skip
    """Equal quotas for the labelled classes: they are what the student will see.

    The teacher's other outputs share only what the labelled classes cannot fill, and without caps on these.

    Args:
        available: images of each class, [K].
        labelled: classes with labelled images, [K].
        total: images wanted in all.
        floors, caps: least and most of each class, [K]; floors of labelled classes only.
    """
    quotas = water_fill(np.where(labelled, available, 0), total, seed=seed, floors=floors, caps=caps)
    rest = 0 if (labelled & (quotas < available)).any() else total - int(quotas.sum())
    return quotas + water_fill(np.where(labelled, 0, available), rest, seed=seed, caps=caps)


def water_fill(
    available: Counts, total: int, *, seed: int, floors: Counts | None = None, caps: Counts | None = None
) -> Counts:
    """Quotas as equal as the classes allow: what a poor class lacks is shared by the others.

    Args:
        available: images of each class, [K].
        total: images wanted in all; less is returned where the classes hold less.
        seed: draws the classes that an indivisible rest goes to, one image each.
        floors, caps: least and most for each class, [K]; a floor above what is available means all of it.

    Returns:
        Quota of each class, [K].

    Raises:
        ValueError: floors that together exceed `total`.
    """
    most = available if caps is None else np.minimum(available, caps)
    least = np.zeros_like(most) if floors is None else np.minimum(floors, most)
    total = min(total, int(most.sum()))
    if least.sum() > total:
        raise ValueError(f"the floors want {int(least.sum())} images, more than {total}")
    low, high = 0, int(most.max(initial=0))  # the highest level that does not overflow
    while low < high:
        level = (low + high + 1) // 2
        if np.clip(level, least, most).sum() <= total:
            low = level
        else:
            high = level - 1
    quotas: Counts = np.clip(low, least, most)
    growing = np.flatnonzero(np.clip(low + 1, least, most) > quotas)
    lucky = np.random.default_rng(seed).permutation(growing)[: total - int(quotas.sum())]
    quotas[lucky] += 1
    return quotas


def pick_balanced(score: NDArray[np.float64], classes: NDArray[np.integer], quotas: Counts, eligible: Mask) -> Mask:
    """The best of each class up to its quota; equal scores in pool order.

    Args:
        score: higher is better, [N].
        classes: the teacher's class of each image, [N].
        quotas: images wanted of each class, [K].
        eligible: which images may be picked, [N].

    Returns:
        Picked images, [N].
    """
    candidates = np.flatnonzero(eligible)
    order = candidates[np.lexsort((candidates, -score[candidates], classes[candidates]))]
    ordered_classes = classes[order]
    starts = np.searchsorted(ordered_classes, np.arange(quotas.size))
    place = np.arange(order.size) - starts[ordered_classes]
    picked = np.zeros(score.size, dtype=np.bool_)
    picked[order[place < quotas[ordered_classes]]] = True
    return picked


def pick_top(score: NDArray[np.float64], count: int, eligible: Mask) -> Mask:
    """The `count` best eligible images, [N]; equal scores in pool order."""
    candidates = np.flatnonzero(eligible)
    best = candidates[np.argsort(-score[candidates], kind="stable")[:count]]
    picked = np.zeros(score.size, dtype=np.bool_)
    picked[best] = True
    return picked


def pick_above(score: NDArray[np.float64], quantile: float, eligible: Mask) -> Mask:
    """The eligible images at or above a quantile of the whole pool's scores, [N].

    Raises:
        ValueError: a quantile outside 0 to 1.
    """
    if not 0.0 <= quantile <= 1.0:
        raise ValueError(f"the threshold is a quantile of the score, 0 to 1; got {quantile}")
    return np.asarray((score >= np.quantile(score, quantile)) & eligible, dtype=np.bool_)


def random_score(count: int, seed: int) -> NDArray[np.float64]:
    """A score that is uniform noise, [count]: with it every rule picks at random, repeatably."""
    return np.random.default_rng(seed).random(count)
