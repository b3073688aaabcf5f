"""How alike two networks' logits are, and how sure an accuracy is: pure measures."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959963984540054
TINY = 1e-12


def argmax_agreement(before: NDArray[np.floating], after: NDArray[np.floating], *, tie: float = 0.0) -> float:
    """Share of images [N, K] that both name alike.

    Args:
        tie: relative to the largest logit; where `after` puts the class of `before` that close to its own
            best, the two count as alike (rounding may order equal logits either way).
    """
    _check(before, after)
    chosen = before.argmax(axis=1)
    allowed = tie * float(np.abs(before).max())
    return float((after[np.arange(len(after)), chosen] >= after.max(axis=1) - allowed).mean())


def mean_kl(before: NDArray[np.floating], after: NDArray[np.floating]) -> float:
    """Mean over images of KL(softmax(before) || softmax(after)), in nats."""
    _check(before, after)
    log_p, log_q = _log_softmax(before), _log_softmax(after)
    # Rounding can leave equal logits a hair below 0.
    return max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()))


def relative_max_error(before: NDArray[np.floating], after: NDArray[np.floating]) -> float:
    """Largest difference, relative to the largest logit of `before`; infinite where a value is not finite."""
    _check(before, after)
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return math.inf
    difference = np.abs(before.astype(np.float64) - after.astype(np.float64)).max()
    return float(difference / max(float(np.abs(before).max()), TINY))


def accuracy(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Share of images [N, K] whose argmax is the label [N]."""
    return float((logits.argmax(axis=1) == labels).mean())


def wilson_interval(share: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """Score interval of a share of n draws, 95 % by default; (0, 1) for none. Source: Wilson 1927."""
    if n == 0:
        return 0.0, 1.0
    square = z**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = z * math.sqrt(share * (1 - share) / n + square / (4 * n * n)) / (1 + square / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def _log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float64)


def _check(before: NDArray[np.floating], after: NDArray[np.floating]) -> None:
    if before.shape != after.shape or before.ndim != 2 or not len(before):
        raise ValueError(f"logits must be [N, K] of one shape, N >= 1, got {before.shape} and {after.shape}")
