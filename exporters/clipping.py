"""Where to clip a tensor before it is cut into 256 steps: the least squared error over its histogram. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEVELS = 256
SHARES = np.linspace(0.2, 1.0, 81)  # of the full range that are tried


def least_squares_range(counts: NDArray[np.int64], low: float, high: float, *, symmetric: bool) -> tuple[float, float]:
    """The range whose 256 steps have the least expected squared error for values of this histogram.

    The error of a value inside is that of rounding, step^2 / 12; outside it is the distance to the range's end.

    Args:
        counts: [B] of B equal bins from `low` to `high`.
        symmetric: the range is [-a, a]; else both ends are drawn in alike, and 0 stays inside.

    Returns:
        (low, high) with low <= 0 <= high.
    """
    ends = np.linspace(low, high, len(counts) + 1)
    centres, weights = (ends[:-1] + ends[1:]) / 2, counts / max(1, counts.sum())
    widest = (-max(-low, high), max(-low, high)) if symmetric else (min(low, 0.0), max(high, 0.0))
    bottoms, tops = SHARES[:, None] * widest[0], SHARES[:, None] * widest[1]
    outside = np.maximum(np.maximum(bottoms - centres, centres - tops), 0.0)
    steps = (tops - bottoms) / (LEVELS - 1)
    errors = np.where(outside > 0, outside**2, steps**2 / 12) @ weights
    best = SHARES[int(np.argmin(errors))]
    return float(best * widest[0]), float(best * widest[1])


def full_range(low: float, high: float, *, symmetric: bool) -> tuple[float, float]:
    """The range that clips nothing that was seen."""
    if symmetric:
        end = max(-low, high, 0.0)
        return -end, end
    return min(low, 0.0), max(high, 0.0)
