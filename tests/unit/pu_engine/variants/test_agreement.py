from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pu_engine.variants.agreement import accuracy, argmax_agreement, mean_kl, relative_max_error, wilson_interval

BEFORE = np.array([[4.0, 1.0, 0.0, -1.0], [0.0, 3.0, 2.5, -2.0]], np.float32)
AFTER = np.array([[2.0, 1.0, 1.0, 0.0], [1.0, 1.0, 2.0, -1.0]], np.float32)


def test_agreement_is_the_share_of_equal_argmax() -> None:
    assert argmax_agreement(BEFORE, AFTER) == 0.5
    assert argmax_agreement(BEFORE, BEFORE) == 1.0


def test_a_tie_within_rounding_counts_as_agreement() -> None:
    before = np.array([[1.0, 1.0 - 1e-7]])
    after = before[:, ::-1]
    assert argmax_agreement(before, after) == 0.0
    assert argmax_agreement(before, after, tie=1e-4) == 1.0


def test_kl_has_the_golden_value_of_the_distillation_loss() -> None:
    assert mean_kl(BEFORE, AFTER) == pytest.approx(0.40691075, abs=1e-7)


def test_kl_of_equal_logits_is_zero_and_survives_large_ones() -> None:
    assert mean_kl(BEFORE * 1e4, BEFORE * 1e4) == 0.0
    assert math.isfinite(mean_kl(BEFORE * 1e4, AFTER * 1e4))


def test_error_is_relative_to_the_largest_logit() -> None:
    assert relative_max_error(BEFORE, AFTER) == pytest.approx(2.0 / 4.0)


def test_a_value_that_is_not_finite_is_an_infinite_error() -> None:
    assert relative_max_error(BEFORE, np.full_like(AFTER, np.nan)) == math.inf


def test_accuracy_counts_labels() -> None:
    assert accuracy(BEFORE, np.array([0, 2])) == 0.5


def test_measures_refuse_shapes_that_differ() -> None:
    with pytest.raises(ValueError, match=r"\(2, 4\) and \(1, 4\)"):
        argmax_agreement(BEFORE, AFTER[:1])


# 15 of 20: by hand, (0.75 + 1.9208/20) / (1 + 3.8415/20) -+ 0.1794.
def test_wilson_interval_has_its_textbook_value() -> None:
    low, high = wilson_interval(0.75, 20)
    assert low == pytest.approx(0.5313, abs=1e-4)
    assert high == pytest.approx(0.8881, abs=1e-4)


def test_wilson_interval_has_newcombes_values() -> None:
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


@given(right=st.integers(0, 50), more=st.integers(0, 50))
def test_wilson_interval_holds_the_share_within_zero_and_one(right: int, more: int) -> None:
    n = right + more
    share = right / n if n else 0.0
    low, high = wilson_interval(share, n)
    assert 0.0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1.0
