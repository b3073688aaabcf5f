from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pu_engine.variants.sample_images import calibration_and_validation
from tests.unit.pu_engine.conftest import teacher_result

PREPROCESSING = teacher_result().preprocessing


def test_the_two_samples_share_no_image_and_cover_the_picked_ones(small_job: Callable[..., Any]) -> None:
    folder = Path(small_job(picked=200).gathering.path)
    first, second = calibration_and_validation(folder, PREPROCESSING)
    assert len(first.parts) == 1
    assert sorted([*first.rows, *second.rows]) == list(range(200))


def test_labelled_images_help_out_where_few_were_picked(small_job: Callable[..., Any]) -> None:
    folder = Path(small_job(picked=7).gathering.path)
    first, second = calibration_and_validation(folder, PREPROCESSING)
    assert len(first) + len(second) == 7 + 30
    tensors = np.concatenate(list(first.batches(4)))
    assert tensors.shape == (19, 3, 16, 16)
    picked = np.load(folder / "picked.images.npy")
    np.testing.assert_allclose(tensors[1], picked[2].transpose(2, 0, 1) / np.float32(255), atol=1e-6)


def test_right_answers_are_the_teachers(small_job: Callable[..., Any]) -> None:
    folder = Path(small_job(picked=200).gathering.path)
    first, _ = calibration_and_validation(folder, PREPROCESSING)
    targets = np.load(folder / "picked.targets.npy")[first.rows, 0]
    np.testing.assert_array_equal(first.teacher_answers(), targets.argmax(axis=1))


def test_images_come_in_the_same_order_in_batches_of_any_size(small_job: Callable[..., Any]) -> None:
    first, _ = calibration_and_validation(Path(small_job(picked=200).gathering.path), PREPROCESSING)
    whole, parts = (np.concatenate(list(first.batches(size))) for size in (100, 7))
    np.testing.assert_array_equal(whole, parts)
