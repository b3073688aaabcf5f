from __future__ import annotations

import numpy as np
import pytest

from exporters.clipping import full_range, least_squares_range


def expected_error(values: np.ndarray, low: float, high: float) -> float:
    """Squared error of cutting values into 256 steps, by doing it."""
    step = (high - low) / 255
    cut = np.clip(np.round((values - low) / step), 0, 255) * step + low
    return float(((values - cut) ** 2).mean())


def test_an_even_histogram_is_not_clipped() -> None:
    counts = np.ones(1024, np.int64)
    assert least_squares_range(counts, 0.0, 6.0, symmetric=False) == (0.0, 6.0)
    assert least_squares_range(counts, -6.0, 6.0, symmetric=True) == (-6.0, 6.0)


def test_a_single_far_value_is_clipped_away() -> None:
    counts = np.zeros(1024, np.int64)
    counts[:100], counts[-1] = 10_000, 1
    low, high = least_squares_range(counts, 0.0, 10.0, symmetric=False)
    assert low == 0.0
    assert 1.0 <= high < 10.0


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_range_found_is_better_than_the_full_one_on_the_values_themselves(symmetric: bool) -> None:
    values = np.random.default_rng(0).standard_t(df=3, size=200_000)
    counts, _ = np.histogram(values, 1024)
    ends = float(values.min()), float(values.max())
    found = least_squares_range(counts, *ends, symmetric=symmetric)
    assert expected_error(values, *found) < expected_error(values, *full_range(*ends, symmetric=symmetric))


def test_zero_stays_inside_and_symmetric_ranges_are_symmetric() -> None:
    counts = np.ones(64, np.int64)
    low, high = least_squares_range(counts, 2.0, 3.0, symmetric=False)
    assert (low, high) == (0.0, 3.0)
    low, high = least_squares_range(counts, -1.0, 3.0, symmetric=True)
    assert low == -high
    assert full_range(2.0, 3.0, symmetric=False) == (0.0, 3.0)
    assert full_range(-4.0, 3.0, symmetric=True) == (-4.0, 4.0)
