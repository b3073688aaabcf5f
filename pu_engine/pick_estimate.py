"""How many of the picked images are of the labelled images' source, by what the source classifier says of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pu_engine.pick_types import PickEstimate
from pu_engine.prior import PriorInterval
from pu_engine.pu_classifier import beliefs

LEAST_PRIOR, MOST_PRIOR = 1e-3, 0.95


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
    return beliefs(score, min(max(prior, LEAST_PRIOR), MOST_PRIOR))
