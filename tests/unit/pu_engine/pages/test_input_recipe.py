"""The lines of Python that the page shows do what the engine does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pu_engine.imaging.preprocessing import image_channels, model_input
from pu_engine.pages.input_recipe import recipe, value_range
from pu_engine.types import Preprocessing

UNIT = Preprocessing(
    layout="NCHW", channels="RGB", scale=1 / 255, mean=(0.0,) * 3, std=(1.0,) * 3, dtype="float32", height=4, width=6
)
IMAGENET = replace(UNIT, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
BYTES = replace(UNIT, layout="NHWC", dtype="uint8", scale=1.0)
GRAY = replace(UNIT, channels="GRAY", layout="flat", mean=(0.1307,), std=(0.3081,))


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


def test_crop_is_said() -> None:
    assert "the centre (7/8 of the shorter side)" in recipe(replace(UNIT, fit="crop"))
