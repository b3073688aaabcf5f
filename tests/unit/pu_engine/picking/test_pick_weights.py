from __future__ import annotations

import numpy as np
import pytest

from pu_engine.picking.pick_weights import LEAST_WEIGHT, pick_weights

PROBABILITY = np.array([0.0, 0.2, 0.5, 0.7, 1.0])


def test_picked_images_weigh_one_where_no_probability_is_known() -> None:
    picked = np.array([True, False, True, False, True])
    assert pick_weights(None, picked).tolist() == [1, 0, 1, 0, 1]


def test_likely_images_weigh_more_and_strangers_something() -> None:
    weights = pick_weights(PROBABILITY, np.ones(5, np.bool_))
    assert (np.diff(weights) > 0).all()
    assert weights[[0, 2, 4]].tolist() == pytest.approx([LEAST_WEIGHT, 0.55, 1.0])


def test_unpicked_images_weigh_nothing() -> None:
    assert pick_weights(PROBABILITY, np.zeros(5, np.bool_)).tolist() == [0.0] * 5
