"""How many of the picked images are of the labelled images' source, by what the source classifier says of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pu_engine.prior import PriorInterval
from pu_engine.pu_classifier import beliefs

LEAST_PRIOR, MOST_PRIOR = 1e-3, 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class PickEstimate:
    """Expected share of positives among the picks, with what it is at both ends of the prior's interval; and the share
    of the pool's positives that were picked.
    """

    precision: float
    precision_low: float
    precision_high: float
    recall: float


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
    belief = _believed(score, prior)
    low, high = (_believed(score, share)[picked].mean() for share in (interval.low, interval.high))
    return PickEstimate(
        precision=float(belief[picked].mean()),
        precision_low=float(min(low, belief[picked].mean())),
        precision_high=float(max(high, belief[picked].mean())),
        recall=float(belief[picked].sum() / belief.sum()),
    )


def _believed(score: NDArray[np.float64], prior: float) -> NDArray[np.float64]:
    return beliefs(score, min(max(prior, LEAST_PRIOR), MOST_PRIOR))
