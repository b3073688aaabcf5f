"""Conventions in the words that people know them by."""

from __future__ import annotations

from pu_engine.conventions import (
    CAFFE_MEAN,
    CIFAR_MEAN,
    CIFAR_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    INTEGER_SCALINGS,
    OTHER_CIFAR_STD,
    UNIT,
    describe,
)
from pu_engine.types import Preprocessing

DIGITS = 6  # a preprocessing that came through JSON, or was typed, is the same in so many digits
COLOUR_NAMES = {
    (UNIT, IMAGENET_MEAN, IMAGENET_STD): "ImageNet's mean and std",
    (UNIT, IMAGENET_MEAN, (0.225,) * 3): "ImageNet's mean, one std",
    (UNIT, CIFAR_MEAN, CIFAR_STD): "CIFAR-10's mean and std",
    (UNIT, CIFAR_MEAN, OTHER_CIFAR_STD): "CIFAR-10's mean, the other std",
    (1.0, CAFFE_MEAN, (1.0,) * 3): "Caffe: 0 to 255 less ImageNet's mean",
}
GRAY_NAMES = {
    (UNIT, 0.1307, 0.3081): "MNIST's mean and std",
    (UNIT, 0.2860, 0.3530): "Fashion-MNIST's mean and std",
}


def scaling_name(preprocessing: Preprocessing) -> str:
    """For instance "0 to 1" or "ImageNet's mean and std"; the formula where it has no name."""
    found = preprocessing
    if found.dtype in INTEGER_SCALINGS and (found.scale, found.mean[0], found.std[0]) == INTEGER_SCALINGS[found.dtype]:
        return "raw pixels, 0 to 255" if found.dtype == "uint8" else "raw pixels, -128 to 127"
    mean, std = (values[::-1] if found.channels == "BGR" else values for values in (found.mean, found.std))
    for (scale, *known), name in COLOUR_NAMES.items():
        if _same((found.scale, *mean, *std), (scale, *known[0], *known[1])):
            return name
    for values, name in GRAY_NAMES.items():
        if len(mean) == 1 and _same((found.scale, *mean, *std), values):
            return name
    low, high = value_range(found)
    if len(set(mean)) == len(set(std)) == 1:
        return f"{low:.6g} to {high:.6g}"
    return describe(found)


def convention_name(preprocessing: Preprocessing) -> str:
    """Channel order and scaling."""
    return f"{preprocessing.channels}, {scaling_name(preprocessing)}"


def value_range(preprocessing: Preprocessing) -> tuple[float, float]:
    """What the darkest and the brightest pixel become, over all channels."""
    ends = [
        (pixel * preprocessing.scale - mean) / std
        for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)
        for pixel in (0, 255)
    ]
    low, high = min(ends), max(ends)
    return low + 0.0, high + 0.0  # no minus zero


def recipe(preprocessing: Preprocessing) -> str:
    """Lines of Python that turn uint8 RGB (or gray) images into the model's input."""
    found = preprocessing
    shape = "[N, H, W, 1] uint8, gray" if found.channels == "GRAY" else "[N, H, W, 3] uint8, RGB"
    order = "[..., ::-1]" if found.channels == "BGR" else ""
    lines = [
        "import numpy as np",
        "",
        f"# pixels: {shape}, resized to H = {found.height}, W = {found.width}",
        f"x = pixels{order}.astype(np.float32)",
        f"x = (x * {found.scale!r} - np.float32({list(found.mean)})) / np.float32({list(found.std)})",
    ]
    if found.layout == "NCHW":
        lines.append("x = x.transpose(0, 3, 1, 2)")
    elif found.layout == "flat":
        lines.append("x = x.reshape(len(x), -1)")
    if found.dtype in INTEGER_SCALINGS:
        low, high = (0, 255) if found.dtype == "uint8" else (-128, 127)
        lines.append(f"x = np.clip(np.rint(x), {low}, {high}).astype(np.{found.dtype})")
    else:
        lines.append(f"x = np.ascontiguousarray(x, np.{found.dtype})")
    return "\n".join(lines)


def _same(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return len(one) == len(other) and all(round(a - b, DIGITS) == 0 for a, b in zip(one, other, strict=True))
