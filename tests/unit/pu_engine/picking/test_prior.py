"""Golden values of best bin estimation, and its behaviour on mixtures whose share is known."""

from __future__ import annotations

import numpy as np
import pytest

from pu_engine.picking.prior import (
    best_bin_estimate,
    density_ratio_estimate,
    prior_interval,
    rising,
    share_excess,
)

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


RATIO = np.array([4, 2, 1, 0.5, 0.5, 0.5, 0.4, 0.4, 0.4, 0.3])


@pytest.mark.parametrize(("share", "expected"), [(0.1, 0.0), (0.2, 0.0), (0.5, 0.1)])
def test_the_excess_leaves_zero_where_an_image_would_be_more_than_positive(share: float, expected: float) -> None:
    assert share_excess(share, RATIO, np.full(10, 0.1)) == pytest.approx(expected, abs=1e-7)


def test_values_that_fall_are_levelled_to_their_weighted_mean() -> None:
    values, weight = np.array([1.0, 3.0, 2.0, 2.0, 5.0, 4.0]), np.array([1.0, 1.0, 1.0, 2.0, 1.0, 3.0])
    np.testing.assert_allclose(rising(values, weight), [1.0, 2.25, 2.25, 2.25, 4.25, 4.25])
    np.testing.assert_allclose(rising(np.arange(4.0), np.ones(4)), np.arange(4.0))


def mixture(share: float, labelled: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    drawn = generator.random(8000) < share
    pool = np.where(drawn, generator.normal(4, 1, 8000), generator.normal(-1, 1, 8000))
    return generator.normal(4, 1, labelled), pool


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_the_density_ratio_finds_the_share_of_a_known_mixture(share: float) -> None:
    assert density_ratio_estimate(*mixture(share)) == pytest.approx(share, abs=0.03)


def test_the_density_ratio_refuses_what_the_best_bin_refuses() -> None:
    with pytest.raises(ValueError, match="U=0"):
        density_ratio_estimate(POSITIVE, np.zeros(0))
    with pytest.raises(ValueError, match="finite"):
        density_ratio_estimate(POSITIVE, np.array([np.inf]))


def test_more_labelled_images_narrow_the_interval_around_the_share() -> None:
    few, many = (prior_interval(*mixture(0.2, n), np.random.default_rng(0), draws=40) for n in (60, 3000))
    assert many.low - 0.02 < 0.2 < many.high + 0.02
    assert many.high - many.low < few.high - few.low < 0.3


def test_the_interval_follows_from_the_generator() -> None:
    first, again = (prior_interval(*mixture(0.2), np.random.default_rng(1), draws=5) for _ in range(2))
    assert first == again
