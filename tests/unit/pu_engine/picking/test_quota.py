from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pu_engine.picking.quota import class_quotas, pick_above, pick_balanced, pick_top, random_score, water_fill


def counts(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)


def test_rich_classes_get_equal_quotas() -> None:
    assert water_fill(counts(50, 80, 90), 60, seed=0).tolist() == [20, 20, 20]


def test_what_a_poor_class_lacks_is_shared_by_the_others() -> None:
    assert water_fill(counts(4, 80, 90), 60, seed=0).tolist() == [4, 28, 28]


def test_an_indivisible_rest_goes_to_classes_drawn_by_seed() -> None:
    found = [water_fill(counts(9, 9, 9, 9), 6, seed=seed).tolist() for seed in range(20)]
    assert {tuple(sorted(quotas)) for quotas in found} == {(1, 1, 2, 2)}
    assert len({tuple(quotas) for quotas in found}) > 3
    assert water_fill(counts(9, 9, 9, 9), 6, seed=3).tolist() == found[3]


def test_labelled_classes_share_the_quota_alone() -> None:
    labelled = np.arange(1000) % 50 == 0
    quotas = class_quotas(np.full(1000, 900), labelled, 8000, seed=0)
    assert set(quotas[labelled].tolist()) == {400}
    assert quotas[~labelled].sum() == 0


def test_other_classes_share_what_the_labelled_cannot_fill() -> None:
    quotas = class_quotas(counts(10, 40, 40, 3), np.array([True, False, False, True]), 33, seed=0)
    assert quotas.tolist() == [10, 10, 10, 3]


def test_a_poor_pool_is_taken_whole() -> None:
    assert water_fill(counts(3, 0, 5), 100, seed=0).tolist() == [3, 0, 5]


def test_floors_and_caps_hold() -> None:
    assert water_fill(counts(90, 90, 90), 30, seed=0, floors=counts(20, 0, 0), caps=counts(90, 3, 90)).tolist() == [
        20,
        3,
        7,
    ]


def test_a_floor_above_what_there_is_takes_all_of_it() -> None:
    assert water_fill(counts(5, 90), 20, seed=0, floors=counts(10, 0)).tolist() == [5, 15]


def test_floors_above_the_total_raise() -> None:
    with pytest.raises(ValueError, match="floors want 30"):
        water_fill(counts(50, 50), 20, seed=0, floors=counts(15, 15))


@given(st.lists(st.integers(0, 60), min_size=1, max_size=12), st.integers(0, 400))
def test_quotas_add_up_and_only_what_is_missing_makes_them_unequal(available: list[int], total: int) -> None:
    quotas = water_fill(counts(*available), total, seed=total)
    assert quotas.sum() == min(total, sum(available))
    assert (quotas <= available).all()
    level = quotas.max()
    for quota, there in zip(quotas, available, strict=True):
        assert quota == there or quota >= level - 1


def test_balanced_takes_the_best_of_each_class() -> None:
    score = np.array([0.1, 0.9, 0.5, 0.8, 0.7])
    classes = np.array([0, 0, 0, 1, 1])
    picked = pick_balanced(score, classes, counts(2, 1), np.ones(5, dtype=bool))
    assert picked.tolist() == [False, True, True, True, False]


def test_balanced_skips_what_may_not_be_picked() -> None:
    picked = pick_balanced(np.array([3.0, 2.0, 1.0]), np.zeros(3, dtype=int), counts(1), np.array([False, True, True]))
    assert picked.tolist() == [False, True, False]


def test_balanced_copes_with_classes_that_nobody_has() -> None:
    picked = pick_balanced(np.array([3.0, 2.0]), np.array([4, 1]), counts(0, 1, 0, 0, 1), np.ones(2, dtype=bool))
    assert picked.all()


def test_equal_scores_are_picked_in_pool_order() -> None:
    everything = np.ones(6, dtype=bool)
    assert np.flatnonzero(pick_top(np.ones(6), 2, everything)).tolist() == [0, 1]
    assert np.flatnonzero(pick_balanced(np.ones(6), np.array([1, 0] * 3), counts(1, 2), everything)).tolist() == [
        0,
        1,
        2,
    ]


def test_top_picks_the_best_whatever_their_class() -> None:
    assert pick_top(np.array([1.0, 5.0, 3.0]), 2, np.ones(3, dtype=bool)).tolist() == [False, True, True]


def test_threshold_is_a_quantile_of_the_whole_pool() -> None:
    picked = pick_above(np.arange(11.0), 0.8, np.ones(11, dtype=bool))
    assert np.flatnonzero(picked).tolist() == [8, 9, 10]


def test_a_threshold_outside_zero_to_one_raises() -> None:
    with pytest.raises(ValueError, match="quantile"):
        pick_above(np.arange(3.0), 1.5, np.ones(3, dtype=bool))


def test_random_scores_follow_from_the_seed() -> None:
    assert (random_score(100, 4) == random_score(100, 4)).all()
    assert (random_score(100, 4) != random_score(100, 5)).any()


def test_a_cap_leaves_fewer_picks_rather_than_other_classes() -> None:
    labelled, caps = np.array([True, True, False]), counts(30, 500, 500)
    assert class_quotas(counts(90, 40, 90), labelled, 120, seed=0, caps=caps).tolist() == [30, 40, 0]
    assert class_quotas(counts(20, 40, 90), labelled, 120, seed=0, caps=caps).tolist() == [20, 40, 60]


def test_a_floor_is_taken_before_the_rest_is_shared() -> None:
    labelled = np.array([True, True, True])
    assert class_quotas(counts(90, 90, 90), labelled, 60, seed=0, floors=counts(40, 0, 0)).tolist() == [40, 10, 10]
