"""How often each picked image is drawn in training: every one is kept, the likely ones come more often."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Of an image that the PU side takes for a stranger, beside one that it is sure of.
LEAST_WEIGHT = 0.1


def pick_weights(score: NDArray[np.float64], picked: NDArray[np.bool_], by_probability: bool) -> NDArray[np.float32]:
    """Weights of the pool's images, [N]; 0 for those that are not picked.

    Args:
        score: the PU side's where `by_probability`; its sigmoid is the probability that the risk was written in.
        picked: [N].
        by_probability: weigh by it; else picked images weigh 1.
    """
    if not by_probability:
        return picked.astype(np.float32)
    probability = 1.0 / (1.0 + np.exp(-np.clip(score, -50.0, 50.0)))
    return np.where(picked, LEAST_WEIGHT + (1.0 - LEAST_WEIGHT) * probability, 0.0).astype(np.float32)
