"""Conventions are called what people call them, and the lines of Python do what the engine does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pu_engine import conventions
from pu_engine.convention_names import convention_name, recipe, scaling_name, value_range
from pu_engine.preprocessing import image_channels, model_input
from pu_engine.types import Preprocessing, StatedPreprocessing

UNIT = Preprocessing(
    layout="NCHW", channels="RGB", scale=1 / 255, mean=(0.0,) * 3, std=(1.0,) * 3, dtype="float32", height=4, width=6
)
IMAGENET = replace(UNIT, mean=conventions.IMAGENET_MEAN, std=conventions.IMAGENET_STD)
BYTES = replace(UNIT, layout="NHWC", dtype="uint8", scale=1.0)
GRAY = replace(UNIT, channels="GRAY", layout="flat", mean=(0.1307,), std=(0.3081,))


@pytest.mark.parametrize(
    ("preprocessing", "name"),
    [
        (UNIT, "0 to 1"),
        (replace(UNIT, scale=1.0), "0 to 255"),
        (replace(UNIT, scale=1 / 127.5, mean=(1.0,) * 3), "-1 to 1"),
        (replace(UNIT, mean=(0.5,) * 3, std=(0.5,) * 3), "-1 to 1"),
        (IMAGENET, "ImageNet's mean and std"),
        (
            replace(IMAGENET, channels="BGR", mean=IMAGENET.mean[::-1], std=IMAGENET.std[::-1]),
            "ImageNet's mean and std",
        ),
        (BYTES, "raw pixels, 0 to 255"),
        (replace(BYTES, dtype="int8", mean=(128.0,) * 3), "raw pixels, -128 to 127"),
        (GRAY, "MNIST's mean and std"),
        (replace(UNIT, mean=(0.1, 0.2, 0.3)), "RGB (pixel * 0.00392157 - [0.1, 0.2, 0.3]) / [1, 1, 1]"),
    ],
)
def test_scaling_has_the_name_that_it_is_known_by(preprocessing: Preprocessing, name: str) -> None:
    assert scaling_name(preprocessing) == name


def test_every_convention_that_is_tried_has_a_name_of_its_own() -> None:
    for channels, shape in ((3, (8, 8, 3)), (1, (8, 8, 1))):
        tried = conventions.hypotheses("NCHW", "float32", shape, StatedPreprocessing())
        names = [convention_name(item) for item in tried]
        assert len(set(names)) == len(names)
        assert not any("pixel" in name for name in names), (channels, names)


def test_range_is_that_of_the_darkest_and_brightest_pixel() -> None:
    low, high = value_range(IMAGENET)
    assert (round(low, 4), round(high, 4)) == (-2.1179, 2.64)
    assert str(value_range(replace(UNIT, mean=(-0.0,) * 3))[0]) == "0.0"


@pytest.mark.parametrize(
    "preprocessing",
    [UNIT, replace(IMAGENET, channels="BGR"), BYTES, replace(BYTES, dtype="int8", mean=(128.0,) * 3), GRAY,
     replace(UNIT, dtype="float16")],
)  # fmt: skip
def test_recipe_gives_the_input_that_the_engine_gives(preprocessing: Preprocessing) -> None:
    shape = (2, 4, 6, image_channels(preprocessing))
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    names = {"pixels": pixels}
    exec(recipe(preprocessing), names)
    expected = model_input(pixels, preprocessing)
    assert names["x"].dtype == expected.dtype
    np.testing.assert_allclose(names["x"].astype(np.float64), expected.astype(np.float64), rtol=1e-6, atol=1e-6)
