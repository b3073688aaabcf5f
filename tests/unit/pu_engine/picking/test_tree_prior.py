"""TIcE on one score."""

from __future__ import annotations

import numpy as np
import pytest

from pu_engine.picking.tree_prior import lower_bound, tree_induction_estimate


def test_the_bound_is_chebyshevs() -> None:
    # 80 of 100 labelled, variance of c = .5: .8 - sqrt(.25 * .975 / 2.5).
    assert lower_bound(80, 100, 0.5, 0.025) == pytest.approx(0.48775010, abs=1e-8)
    # 45 of 50, c = .9, delta = .1: .9 - sqrt(.09 * .9 / 5).
    assert lower_bound(45, 50, 0.9, 0.1) == pytest.approx(0.77272078, abs=1e-8)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_a_share_that_the_score_shows_is_found(share: float) -> None:
    generator = np.random.default_rng(4)
    own = generator.random(5000) < share
    pool = generator.normal(size=5000) + 5.0 * own
    found = tree_induction_estimate(generator.normal(5.0, 1.0, 1000), pool, generator)
    assert share < found < 1.5 * share  # c is bounded from below, so the share is from above


def test_a_score_that_says_nothing_leaves_most_of_the_pool_positive() -> None:
    generator = np.random.default_rng(4)
    assert tree_induction_estimate(generator.normal(size=300), generator.normal(size=900), generator) > 0.6


def test_a_constant_score_is_no_error() -> None:
    assert tree_induction_estimate(np.zeros(20), np.zeros(80), np.random.default_rng(0)) == 1.0


@pytest.mark.parametrize(("positive", "pool"), [([], [1.0]), ([1.0], []), ([np.nan], [1.0])])
def test_empty_groups_and_no_numbers_are_refused(positive: list[float], pool: list[float]) -> None:
    with pytest.raises(ValueError, match="scores"):
        tree_induction_estimate(np.array(positive), np.array(pool), np.random.default_rng(0))
