"""Teachers' logits on a common scale: some reach 9,000, and at T = 4 their softened answers would still be hard."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Labels are softened a little: of a teacher that is right on all labelled images the likeliest scale is infinite.
SOFTENING = 0.05
COARSE = np.arange(-8.0, 16.0)  # octaves of the temperature
FINE = np.linspace(-1.0, 1.0, 17)
# A teacher within two octaves is an ordinary one, as the recipe's temperature was measured with: left as it is.
ORDINARY_OCTAVES = 2.0


def target_scale(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """What to multiply a teacher's logits by, from the likelihood of the labelled images; 1 for ordinary ones.

    Args:
        logits: [N, K].
        labels: [N].
    """
    if not len(labels):
        return 1.0
    best = min(COARSE, key=lambda octave: _cost(logits, labels, octave))
    best = min(best + FINE, key=lambda octave: _cost(logits, labels, octave))
    return 1.0 if abs(best) <= ORDINARY_OCTAVES else float(2.0**-best)


def _cost(logits: NDArray[np.floating], labels: NDArray[np.int64], octave: float) -> float:
    """Mean cross-entropy of the softened labels at the temperature 2^octave, in nats."""
    scaled = logits.astype(np.float64) / 2.0**octave
    shifted = scaled - scaled.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    right = log_p[np.arange(len(labels)), labels]
    return float(-((1.0 - SOFTENING) * right + SOFTENING * log_p.mean(axis=1)).mean())
