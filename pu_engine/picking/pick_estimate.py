"""How many of the picked images are of the labelled images' source, by what the source classifier says of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pu_engine.picking.pick_types import PickEstimate, ReliabilityBin
from pu_engine.picking.prior import PriorInterval, density_ratios
from pu_engine.picking.pu_classifier import belief_shift, beliefs, sigmoid

LEAST_PRIOR, MOST_PRIOR = 1e-3, 0.95
TENTHS = 10


def pick_estimate(
    labelled: NDArray[np.float64], pool: NDArray[np.float64], picked: NDArray[np.bool_], prior: float,
    interval: PriorInterval,
) -> PickEstimate:  # fmt: skip
    """Precision and recall of the picks: an image is of the source with min(1, prior x density ratio of its score).

    The classifier's own probabilities are too low at the top (see `reliability`), where the picks are.

    Args:
        labelled, pool: log-odds by classifiers that saw neither, [P] and [N].
        picked: [N], at least one.
        prior: share of positives in the pool; with the interval it is brought to 0.001 to 0.95.
        interval: of the prior.
    """
    ratio, place = density_ratios(labelled, pool)
    own, low, high = (np.minimum(1.0, _bounded(share) * ratio)[place] for share in (prior, interval.low, interval.high))
    precision = float(own[picked].mean())
    return PickEstimate(
        precision=precision,
        precision_low=min(float(low[picked].mean()), precision),
        precision_high=max(float(high[picked].mean()), precision),
        recall=float(own[picked].sum() / max(own.sum(), 1e-9)),
    )


def believed(score: NDArray[np.float64], prior: float) -> NDArray[np.float64]:
    """The probability of each pool image to be of the labelled images' source, [N]; their mean is the bounded prior."""
    return beliefs(score, _bounded(prior))


def reliability(labelled: NDArray[np.float64], pool: NDArray[np.float64], prior: float) -> tuple[ReliabilityBin, ...]:
    """Believed probabilities beside what the labelled images' scores say of them, in tenths of the probability.

    Both sides know no true label, but only one of them rests on the classifier's log-odds: where it is too sure of
    itself they part. Tenths without a pool image are left out.

    Args:
        labelled, pool: log-odds by classifiers that saw neither, [P] and [N].
        prior: share of positives in the pool, bounded as in `pick_estimate`.
    """
    share = _bounded(prior)
    shift = belief_shift(pool, share)
    believed_pool, believed_labelled = sigmoid(pool + shift), sigmoid(labelled + shift)
    place, labelled_place = (_tenth(values) for values in (believed_pool, believed_labelled))
    found = []
    for tenth in range(TENTHS):
        inside = place == tenth
        images, own = int(inside.sum()), int((labelled_place == tenth).sum())
        if images:
            read = min(1.0, share * (own / labelled.size) / (images / pool.size))
            mean = float(believed_pool[inside].mean())
            found.append(ReliabilityBin(pool=images, labelled=own, believed=mean, read=read))
    return tuple(found)


def _tenth(probability: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.minimum(TENTHS * probability, TENTHS - 1).astype(np.int64)


def _bounded(prior: float) -> float:
    return min(max(prior, LEAST_PRIOR), MOST_PRIOR)
