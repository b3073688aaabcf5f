"""Estimated precision and recall of the picks."""

from __future__ import annotations

import numpy as np
import pytest

from pu_engine.picking.pick_estimate import pick_estimate, reliability
from pu_engine.picking.prior import PriorInterval

INTERVAL = PriorInterval(low=0.15, high=0.25)


def mixture() -> tuple[np.ndarray, np.ndarray]:
    """Log-odds ln(f_P / f_U) of a known mixture: a fifth N(2, 1), the others N(0, 1)."""
    generator = np.random.default_rng(0)
    own = np.arange(20_000) < 4000
    x = generator.normal(2.0 * own, 1)
    return 2.0 * x - 2.0, own


LABELLED = 2.0 * np.random.default_rng(1).normal(2.0, 1, 20_000) - 2.0


def test_precision_and_recall_of_a_known_mixture_are_found() -> None:
    score, own = mixture()
    for count in (1000, 4000, 8000):
        picked = np.zeros(score.size, dtype=np.bool_)
        picked[np.argsort(-score)[:count]] = True
        found = pick_estimate(LABELLED, score, picked, 0.2, INTERVAL)
        assert found.precision == pytest.approx(own[picked].mean(), abs=0.02)
        assert found.recall == pytest.approx(own[picked].sum() / own.sum(), abs=0.02)
        assert found.precision_low < found.precision <= found.precision_high


def test_log_odds_of_another_scale_change_no_estimate() -> None:
    score, _ = mixture()
    picked = score > 1
    found = [pick_estimate(k * LABELLED, k * score, picked, 0.2, INTERVAL) for k in (1.0, 0.5, 3.0)]
    assert found[0] == found[1] == found[2]


def test_all_of_the_pool_has_the_prior_as_precision_and_full_recall() -> None:
    score, _ = mixture()
    found = pick_estimate(LABELLED, score, np.ones(score.size, dtype=np.bool_), 0.2, INTERVAL)
    assert [found.precision, found.recall] == pytest.approx([0.2, 1.0], abs=0.01)
    assert [found.precision_low, found.precision_high] == pytest.approx([0.15, 0.25], abs=0.03)


@pytest.mark.parametrize("prior", [0.0, 1.0])
def test_an_extreme_prior_stays_a_probability(prior: float) -> None:
    score, _ = mixture()
    found = pick_estimate(LABELLED, score, score > 1, prior, PriorInterval(low=prior, high=prior))
    assert 0.0 < found.precision_low <= found.precision <= found.precision_high <= 1.0


def test_right_log_odds_are_reliable_in_every_tenth() -> None:
    score, _ = mixture()
    bins = reliability(LABELLED, score, 0.2)
    assert sum(b.pool for b in bins) == score.size
    assert sum(b.labelled for b in bins) == LABELLED.size
    assert len(bins) == 10
    for b in bins:
        assert b.read == pytest.approx(b.believed, abs=0.06)


def test_log_odds_that_are_too_large_are_found_out() -> None:
    score, _ = mixture()
    bins = reliability(3.0 * LABELLED, 3.0 * score, 0.2)
    assert bins[-1].believed > bins[-1].read + 0.05
