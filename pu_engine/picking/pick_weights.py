"""How often each picked image is drawn in training: every one is kept, the likely ones come more often."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Of an image that the PU side takes for a stranger, beside one that it is sure of.
LEAST_WEIGHT = 0.1


def pick_weights(probability: NDArray[np.float64] | None, picked: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Weights of the pool's images, [N]; 0 for those that are not picked.

    Args:
        probability: of being of the labelled images' source, by the PU side, [N]; without it picked images weigh 1.
        picked: [N].
    """
    if probability is None:
        return picked.astype(np.float32)
    return np.where(picked, LEAST_WEIGHT + (1.0 - LEAST_WEIGHT) * probability, 0.0).astype(np.float32)
