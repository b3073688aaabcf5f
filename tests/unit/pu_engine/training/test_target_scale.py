from __future__ import annotations

import numpy as np
import pytest

from pu_engine.training.target_scale import target_scale

LABELS = np.arange(60) % 3


def teacher(size: float, right: float = 0.9) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Logits that name the label of most images, with some noise."""
    rng = np.random.default_rng(0)
    answers = np.where(rng.random(60) < right, LABELS, (LABELS + 1) % 3)
    return size * (4.0 * np.eye(3)[answers] + rng.normal(size=(60, 3)))


@pytest.mark.parametrize("size", [0.5, 1.0, 2.0])
def test_an_ordinary_teacher_is_left_as_it_is(size: float) -> None:
    assert target_scale(teacher(size), LABELS) == 1.0


@pytest.mark.parametrize("size", [1000.0, 0.001])
def test_a_teacher_of_another_scale_comes_to_the_ordinary_one(size: float) -> None:
    scale = target_scale(teacher(size), LABELS)
    assert target_scale(teacher(size) * scale, LABELS) == 1.0
    assert 0.2 < scale * size < 5


def test_a_teacher_that_is_always_right_is_not_sharpened_without_end() -> None:
    assert target_scale(teacher(1.0, right=1.0), LABELS) == 1.0
    assert target_scale(teacher(0.001, right=1.0), LABELS) < 10_000


def test_without_labelled_images_nothing_is_scaled() -> None:
    assert target_scale(np.zeros((0, 3)), np.zeros(0, np.int64)) == 1.0
