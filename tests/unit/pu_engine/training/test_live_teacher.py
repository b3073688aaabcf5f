"""A live teacher's input is computed where the student's views are, as intake proved it on the host."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pu_engine.imaging.images import resize
from pu_engine.imaging.preprocessing import model_input
from pu_engine.training.live_teacher import normalised, teacher_input
from pu_engine.types import Preprocessing

CPU = torch.device("cpu")
PLAIN = Preprocessing(
    layout="NCHW", channels="RGB", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    dtype="float32", height=8, width=8, fit="stretch",
)  # fmt: skip
GRAY = replace(PLAIN, channels="GRAY", mean=(0.13,), std=(0.31,))


def images(size: int, channels: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (5, size, size, channels), np.uint8)


@pytest.mark.parametrize(
    "how",
    [
        PLAIN,
        GRAY,
        replace(PLAIN, layout="NHWC", channels="BGR"),
        replace(PLAIN, layout="flat", scale=1.0, mean=(127.5,) * 3, std=(127.5,) * 3),
        replace(PLAIN, dtype="float16"),
        replace(PLAIN, dtype="uint8", scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3),
        replace(PLAIN, dtype="int8", scale=1.0, mean=(128.0,) * 3, std=(1.0,) * 3),
    ],
)
def test_normalised_in_torch_is_the_hosts_input_to_the_bit(how: Preprocessing) -> None:
    pixels = images(8, 1 if how.channels == "GRAY" else 3)
    expected = model_input(pixels, how)
    found = normalised(torch.from_numpy(pixels), how)
    assert found.numpy().dtype == expected.dtype
    assert np.array_equal(found.numpy(), expected)


def test_images_of_another_size_go_through_the_one_resize_kernel() -> None:
    pixels = images(12, 3)
    found = teacher_input(torch.from_numpy(pixels), PLAIN, CPU)
    assert np.array_equal(found.numpy(), model_input(np.stack([resize(image, 8, 8) for image in pixels]), PLAIN))
