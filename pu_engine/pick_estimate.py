"""How many of the picked images are of the labelled images' source, by what the source classifier says of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pu_engine.pick_types import PickEstimate, ReliabilityBin
from pu_engine.prior import PriorInterval
from pu_engine.pu_classifier import belief_shift, beliefs, sigmoid

LEAST_PRIOR, MOST_PRIOR = 1e-3, 0.95
TENTHS = 10


def pick_estimate(
    score: NDArray[np.float64], picked: NDArray[np.bool_], prior: float, interval: PriorInterval
) -> PickEstimate:
    """Precision and recall of the picks from log-odds whose mean probability is the prior.

    Args:
        score: log-odds of labelled against pool, [N].
        picked: [N], at least one.
        prior: share of positives in the pool; with the interval it is brought to 0.001 to 0.95.
        interval: of the prior.
    """
    belief = believed(score, prior)
    low, high = (believed(score, share)[picked].mean() for share in (interval.low, interval.high))
    return PickEstimate(
        precision=float(belief[picked].mean()),
        precision_low=float(min(low, belief[picked].mean())),
        precision_high=float(max(high, belief[picked].mean())),
        recall=float(belief[picked].sum() / belief.sum()),
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
