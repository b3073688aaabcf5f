"""Golden values of best bin estimation, and its behaviour on mixtures whose share is known."""

from __future__ import annotations

import numpy as np
import pytest

from pu_engine.prior import best_bin_estimate

POSITIVE = np.array([0.95, 0.9, 0.8, 0.6, 0.3])
UNLABELLED = np.array([0.97, 0.85, 0.5, 0.4, 0.35, 0.2, 0.15, 0.1, 0.05, 0.02])


def test_small_lists_take_the_widest_bin() -> None:
    estimate = best_bin_estimate(POSITIVE, UNLABELLED)
    assert estimate.threshold == 0.3
    assert estimate.alpha == pytest.approx(0.5, abs=1e-7)
    assert estimate.bound == pytest.approx(1.54719918, abs=1e-7)


def test_more_images_allow_a_cleaner_bin() -> None:
    estimate = best_bin_estimate(np.tile(POSITIVE, 100), np.tile(UNLABELLED, 100))
    assert estimate.threshold == 0.6
    assert estimate.alpha == pytest.approx(0.25, abs=1e-7)
    assert estimate.bound == pytest.approx(0.38089990, abs=1e-7)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_the_share_of_a_known_mixture_is_found(share: float) -> None:
    generator = np.random.default_rng(3)
    positive = generator.normal(4, 1, 500)
    drawn = generator.random(20_000) < share
    unlabelled = np.where(drawn, generator.normal(4, 1, 20_000), generator.normal(-1, 1, 20_000))
    assert best_bin_estimate(positive, unlabelled).alpha == pytest.approx(share, abs=0.03)


def test_a_pool_without_positives_has_a_prior_near_zero() -> None:
    generator = np.random.default_rng(3)
    estimate = best_bin_estimate(generator.normal(4, 1, 500), generator.normal(-2, 1, 20_000))
    assert estimate.alpha < 0.01


def test_a_pool_of_positives_has_a_prior_near_one() -> None:
    generator = np.random.default_rng(3)
    estimate = best_bin_estimate(generator.normal(0, 1, 2000), generator.normal(0, 1, 20_000))
    assert 0.9 < estimate.alpha <= 1.0


def test_alpha_never_exceeds_one() -> None:
    assert best_bin_estimate(np.array([0.0, 1.0]), np.array([5.0, 6.0])).alpha == 1.0


def test_order_of_the_scores_does_not_matter() -> None:
    assert best_bin_estimate(POSITIVE[::-1], UNLABELLED[::-1]) == best_bin_estimate(POSITIVE, UNLABELLED)


def test_an_empty_group_raises() -> None:
    with pytest.raises(ValueError, match="P=0"):
        best_bin_estimate(np.zeros(0), UNLABELLED)


def test_a_score_that_is_not_finite_raises() -> None:
    with pytest.raises(ValueError, match="finite"):
        best_bin_estimate(np.array([np.nan]), UNLABELLED)
