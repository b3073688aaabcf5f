"""Pixels become exactly the tensor that the convention says."""

from __future__ import annotations

import numpy as np
import pytest

from pu_engine.imaging.preprocessing import mirrored_input, model_input
from pu_engine.types import Preprocessing

IMAGES = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)


def convention(**changes: object) -> Preprocessing:
    values: dict[str, object] = {
        "layout": "NCHW",
        "channels": "RGB",
        "scale": 1 / 255,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "dtype": "float32",
        "height": 3,
        "width": 4,
    }
    return Preprocessing(**(values | changes))  # type: ignore[arg-type]


def test_mean_and_std_apply_to_the_scaled_pixel() -> None:
    pixel = IMAGES[1, 2, 3, 1]
    value = model_input(IMAGES, convention())[1, 1, 2, 3]
    assert value == pytest.approx((pixel / 255 - 0.456) / 0.224, rel=1e-5)


def test_bgr_reverses_the_channels_before_the_means_are_taken() -> None:
    value = model_input(IMAGES, convention(channels="BGR", scale=1.0, mean=(103.0, 116.0, 123.0), std=(1.0, 1.0, 1.0)))
    assert value[0, 0, 0, 0] == pytest.approx(float(IMAGES[0, 0, 0, 2]) - 103.0)


def test_nhwc_keeps_the_axes_and_flat_joins_them() -> None:
    assert model_input(IMAGES, convention(layout="NHWC")).shape == (2, 3, 4, 3)
    assert model_input(IMAGES, convention(layout="flat")).shape == (2, 36)


def test_integer_inputs_are_rounded_and_clipped() -> None:
    identity = {"scale": 1.0, "std": (1.0, 1.0, 1.0)}
    plain = model_input(IMAGES, convention(dtype="uint8", mean=(0.0, 0.0, 0.0), layout="NHWC", **identity))
    assert plain.dtype == np.uint8
    assert (plain == IMAGES).all()
    shifted = model_input(np.full((1, 3, 4, 3), 255, np.uint8), convention(dtype="int8", mean=(0.0,) * 3, **identity))
    assert int(shifted.max()) == 127


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images are \(3, 4, 3\), the model takes \(8, 8, 3\)"):
        model_input(IMAGES, convention(height=8, width=8))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "flat"])
@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_values_are_bit_for_bit_those_of_the_formula(layout: str, channels: str) -> None:
    """Also of a mirrored view, whose rows lie backwards in memory."""
    how = Preprocessing(
        layout=layout, channels=channels, scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        dtype="float32", height=5, width=7,
    )  # fmt: skip
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8)[:, :, ::-1]
    ordered = images[..., ::-1] if channels == "BGR" else images
    mean, std = np.array(how.mean, np.float32), np.array(how.std, np.float32)
    expected = (ordered.astype(np.float32) * np.float32(how.scale) - mean) / std
    expected = {"NCHW": expected.transpose(0, 3, 1, 2), "NHWC": expected, "flat": expected.reshape(3, -1)}[layout]
    np.testing.assert_array_equal(model_input(images, how), expected)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "flat"])
@pytest.mark.parametrize(("channels", "dtype"), [("BGR", "float32"), ("GRAY", "float16"), ("RGB", "uint8")])
def test_mirrored_tensor_is_that_of_the_mirrored_images(layout: str, channels: str, dtype: str) -> None:
    images = IMAGES[..., :1] if channels == "GRAY" else IMAGES
    three = {} if channels != "GRAY" else {"mean": (0.5,), "std": (0.25,)}
    how = convention(layout=layout, channels=channels, dtype=dtype, **three)
    mirrored = mirrored_input(model_input(images, how), how)
    np.testing.assert_array_equal(mirrored, model_input(images[:, :, ::-1], how))
    assert mirrored.flags.c_contiguous
