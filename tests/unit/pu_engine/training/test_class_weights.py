"""Golden values: computed twice independently (closed form, brute force over 2 M Dirichlet draws); float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pu_engine.training.class_weights import (
    one_sided_perturbation,
    paper_weights,
    sample_weights,
    two_sided_perturbation,
    worst_case_chi2,
    worst_case_kl,
)

COUNTS = np.array([50.0, 30.0, 20.0])
SHARES = COUNTS / 100
PAPER = np.array([0.58064516, 0.96774194, 1.45161290])
LOSS = np.array([1.0, 2.0, 4.0])
BASE = np.array([0.5, 0.3, 0.2])


def test_paper_weights_are_the_normalised_inverse_counts() -> None:
    np.testing.assert_allclose(paper_weights(COUNTS), PAPER, atol=1e-7)


def test_a_class_without_picks_gets_a_bounded_weight() -> None:
    weights = paper_weights(np.array([100.0, 100.0, 0.0]))
    assert np.isfinite(weights).all()
    assert weights[2] / weights[0] == pytest.approx(100 / (200 / 3 / 50))


def test_paper_weights_of_no_images_raise() -> None:
    with pytest.raises(ValueError, match="positive sum"):
        paper_weights(np.zeros(3))


def test_one_sided_perturbation_has_the_published_values() -> None:
    moved = one_sided_perturbation(PAPER, np.array([0.2, 0.5, 0.9]), 0.1)
    np.testing.assert_allclose(moved, [0.60064516, 1.01774194, 1.54161290], atol=1e-7)


def test_one_sided_perturbation_always_raises_the_loss() -> None:
    moved = one_sided_perturbation(PAPER, np.array([0.2, 0.5, 0.9]), 0.1)
    np.testing.assert_allclose(SHARES @ (PAPER * LOSS), 2.03225806, atol=1e-7)
    np.testing.assert_allclose(SHARES @ (moved * LOSS), 2.14425806, atol=1e-7)


def test_two_sided_perturbation_keeps_the_mass() -> None:
    exact = paper_weights(COUNTS)
    moved = two_sided_perturbation(exact, SHARES, np.array([0.2, -0.5, 0.9]), 0.1)
    np.testing.assert_allclose(moved, [0.57969793, 0.90084462, 1.55432694], atol=1e-7)
    assert SHARES @ moved == pytest.approx(0.87096774, abs=1e-7)
    assert SHARES @ (moved * LOSS) == pytest.approx(2.07381729, abs=1e-7)


@pytest.mark.parametrize(
    ("radius", "expected", "value"),
    [
        (0.01, [0.46037971, 0.30264135, 0.23697894], 2.01357817),
        (0.1, [0.37470964, 0.30835269, 0.31693767], 2.25916570),
        (2.0, [0.0, 0.25358984, 0.74641016], 3.49282032),
    ],
)
def test_worst_case_over_a_chi2_ball(radius: float, expected: list[float], value: float) -> None:
    worst = worst_case_chi2(BASE, LOSS, radius)
    np.testing.assert_allclose(worst, expected, atol=1e-7)
    assert worst @ LOSS == pytest.approx(value, abs=1e-7)


@pytest.mark.parametrize(
    ("radius", "expected", "value"),
    [
        (0.01, [0.44479044, 0.30070140, 0.25450816], 2.06422587),
        (0.1, [0.33127982, 0.28364567, 0.38507451], 2.43886919),
        (0.5, [0.15162145, 0.20036968, 0.64800887], 3.14439629),
    ],
)
def test_worst_case_over_a_kl_ball(radius: float, expected: list[float], value: float) -> None:
    worst = worst_case_kl(BASE, LOSS, radius)
    np.testing.assert_allclose(worst, expected, atol=1e-7)
    assert worst @ LOSS == pytest.approx(value, abs=1e-7)


@pytest.mark.parametrize("worst_case", [worst_case_chi2, worst_case_kl])
def test_a_large_ball_puts_all_mass_on_the_worst_class(worst_case: object) -> None:
    np.testing.assert_allclose(worst_case(BASE, LOSS, 4.1), [0, 0, 1])  # type: ignore[operator]


@pytest.mark.parametrize("worst_case", [worst_case_chi2, worst_case_kl])
def test_equal_losses_leave_the_base(worst_case: object) -> None:
    np.testing.assert_allclose(worst_case(BASE, np.full(3, 1.7), 0.5), BASE)  # type: ignore[operator]


@pytest.mark.parametrize("worst_case", [worst_case_chi2, worst_case_kl])
def test_radius_zero_leaves_the_base(worst_case: object) -> None:
    np.testing.assert_allclose(worst_case(BASE, LOSS, 0.0), BASE)  # type: ignore[operator]


def test_a_base_that_is_no_distribution_raises() -> None:
    with pytest.raises(ValueError, match="distribution"):
        worst_case_kl(np.array([0.5, 0.2]), np.array([1.0, 2.0]), 0.1)


@given(
    st.lists(st.floats(0.01, 1.0), min_size=2, max_size=8),
    st.integers(0, 2**31),
    st.floats(1e-4, 3.0),
)
@settings(max_examples=60, deadline=None)
def test_worst_case_stays_in_its_ball_and_no_point_of_the_ball_is_worse(
    masses: list[float], seed: int, radius: float
) -> None:
    generator = np.random.default_rng(seed)
    base = np.array(masses) / sum(masses)
    loss = generator.exponential(size=base.size)
    chi2, kl = worst_case_chi2(base, loss, radius), worst_case_kl(base, loss, radius)
    for worst in (chi2, kl):
        assert worst.min() >= 0
        assert worst.sum() == pytest.approx(1.0)
        assert worst @ loss >= base @ loss - 1e-9
    assert ((chi2 - base) ** 2 / base).sum() <= radius * (1 + 1e-6) + 1e-9
    inside = kl > 0
    assert kl[inside] @ np.log(kl[inside] / base[inside]) <= radius * (1 + 1e-6) + 1e-9
    points = generator.dirichlet(base * 20, size=2000)
    points = np.maximum(points, 1e-300)
    in_chi2 = ((points - base) ** 2 / base).sum(axis=1) <= radius
    in_kl = (points * np.log(points / base)).sum(axis=1) <= radius
    assert (points[in_chi2] @ loss <= chi2 @ loss + 1e-6).all()
    assert (points[in_kl] @ loss <= kl @ loss + 1e-6).all()


def test_sample_weights_turn_the_class_shares_into_the_worst_case() -> None:
    worst = worst_case_chi2(BASE, LOSS, 0.1)
    weights = sample_weights(worst, SHARES)
    np.testing.assert_allclose(SHARES * weights, worst)
    assert sample_weights(np.array([0.4, 0.6]), np.array([1.0, 0.0])).tolist() == [0.4, 0.0]
