"""The source test: does the pool hold images of the labelled images' own source, so that a PU order finds them?

A classifier of labelled against pool images reads the share of that source, the prior, off its best scores. Pool images
that it cannot tell from labelled ones count as positives, so a weak classifier reads too much: the test is made on
every view of the pool, and the one that tells most apart, by the least upper bound, speaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pu_engine.picking.content_scores import separation
from pu_engine.picking.prior import PriorEstimate, best_bin_estimate

# Below it no part of the pool looks like the labelled images' own source.
GATE_PRIOR = 0.02
# Few labelled images or weak features push the estimate up, and its bound with it. Without any image of the source it
# was at most .30 of the bound (three teachers, 20 and 100 labelled images a class), with a fifth of them at least .56.
GATE_SHARE_OF_BOUND = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTest:
    """What one view says. `separated`: how often a labelled image scores above a pool image, by classifiers that saw
    neither; 0.5 where nothing tells them apart.
    """

    view: int
    prior: PriorEstimate
    separated: float


def source_test(view: int, labelled: NDArray[np.float64], pool: NDArray[np.float64]) -> SourceTest:
    """The test of one view, from out-of-fold scores of labelled images [P] and pool images [N]."""
    return SourceTest(view=view, prior=best_bin_estimate(labelled, pool), separated=separation(labelled, pool))


def sharpest(tests: Sequence[SourceTest]) -> SourceTest:
    """The test with the least upper bound: each view's estimate is at least the true share, but for chance.

    Raises:
        ValueError: no tests.
    """
    if not tests:
        raise ValueError("at least one view has to be tested")
    return min(tests, key=lambda test: test.prior.bound)


def gate_is_open(estimate: PriorEstimate) -> bool:
    """Whether the pool holds images of the labelled images' own source, so that the PU order can be trusted."""
    return estimate.alpha >= GATE_PRIOR and estimate.alpha >= GATE_SHARE_OF_BOUND * estimate.bound
