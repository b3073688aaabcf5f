"""Classes that a pool can't fill."""

from __future__ import annotations

import numpy as np
import pytest

from pu_engine.picking.pick_types import PoorClass
from pu_engine.picking.poor_classes import poor_class_warning, poor_classes

NAMES = ("ant", "bee", "cow")


def logits(*rows: tuple[float, float, float]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.repeat(np.array(rows, np.float32)[:, None], 2, axis=1)


def test_the_nearest_is_the_likeliest_image_of_another_class() -> None:
    chunks = [logits((5, 0, 1), (0, 5, 4)), logits((3, 0, 0), (0, 9, 8.9), (0, 0, 6))]
    found = poor_classes(
        np.array([2, 2, 2]), np.array([0, 1, 0, 1, 2], np.int32), chunks, keys=list("abcde"), names=NAMES
    )
    assert [(poor.name, poor.available, poor.wanted, poor.nearest, poor.nearest_class) for poor in found] == [
        ("cow", 1, 2, "d", "bee")
    ]
    probability = np.exp(8.9) / (1 + np.exp(9) + np.exp(8.9))
    assert found[0].nearest_probability == pytest.approx(probability, rel=1e-4)


def test_the_poorest_comes_first_and_full_classes_are_left_out() -> None:
    classes = np.array([0, 0, 0, 1], np.int32)
    found = poor_classes(
        np.array([3, 3, 3]), classes, [logits(*[(1, 0, 0)] * 3, (0, 1, 0))], keys=list("abcd"), names=NAMES
    )
    assert [(poor.name, poor.available) for poor in found] == [("cow", 0), ("bee", 1)]


def test_a_pool_of_one_class_alone_has_nothing_nearer() -> None:
    found = poor_classes(np.array([5, 0, 0]), np.zeros(2, np.int32), [logits(*[(1, 0, 0)] * 2)], keys="ab", names=NAMES)
    assert (found[0].nearest, found[0].nearest_class, found[0].nearest_probability) == (None, None, None)


def test_the_warning_names_eight_and_counts_the_rest() -> None:
    poor = [
        PoorClass(name=f"c{i}", available=i, wanted=20, nearest="k", nearest_class="d", nearest_probability=0.1)
        for i in range(10)
    ]
    (text,) = poor_class_warning(poor)
    assert "c0 (0 of 20; nearest k, taken for d)" in text
    assert text.endswith("and 2 more.")
    assert poor_class_warning([]) == []
