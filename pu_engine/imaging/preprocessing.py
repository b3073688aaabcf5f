"""Pixels to the teacher's input tensor, by a `Preprocessing`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pu_engine.types import Preprocessing

DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "uint8": np.uint8, "int8": np.int8}
INTEGER_RANGES = {"uint8": (0, 255), "int8": (-128, 127)}


def image_channels(preprocessing: Preprocessing) -> int:
    """Channels that images are decoded with: 1 for a gray model, else 3."""
    return 1 if preprocessing.channels == "GRAY" else 3


def model_input(images: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.generic]:
    """Input tensor of a batch: (pixel * scale - mean) / std in the model's channel order, layout and type.

    Args:
        images: [N, H, W, C] uint8 at the model's size; RGB where C is 3, gray where C is 1.

    Returns:
        [N, C, H, W], [N, H, W, C] or [N, C*H*W] by `preprocessing.layout`. Integer types are rounded and clipped.
    """
    expected = (preprocessing.height, preprocessing.width, image_channels(preprocessing))
    if images.shape[1:] != expected:
        raise ValueError(f"images are {images.shape[1:]}, the model takes {expected}")
    ordered = images[..., ::-1] if preprocessing.channels == "BGR" else images
    mean = np.asarray(preprocessing.mean, np.float32)
    std = np.asarray(preprocessing.std, np.float32)
    count, height, width, channels = images.shape
    # Over long rows and in place: over a last axis of three the same arithmetic took seven times as long, at 224 pixels
    # as long as a small network.
    if preprocessing.layout == "NCHW":
        values = np.ascontiguousarray(ordered.transpose(0, 3, 1, 2)).astype(np.float32)
        mean, std, shape = mean.reshape(-1, 1, 1), std.reshape(-1, 1, 1), values.shape
    else:
        values = ordered.astype(np.float32, order="C").reshape(count, height, width * channels)
        mean, std, shape = np.tile(mean, width), np.tile(std, width), (count, height, width, channels)
    values *= np.float32(preprocessing.scale)
    values -= mean
    values /= std
    values = values.reshape((count, -1) if preprocessing.layout == "flat" else shape)
    if preprocessing.dtype in INTEGER_RANGES:
        values = np.clip(np.rint(values), *INTEGER_RANGES[preprocessing.dtype])
    return np.ascontiguousarray(values, dtype=DTYPES[preprocessing.dtype])


def mirrored_input(values: NDArray[np.generic], preprocessing: Preprocessing) -> NDArray[np.generic]:
    """The input tensor of the mirrored images, from that of the images: bit for bit what `model_input` gives of them.

    Args:
        values: what `model_input` returned.
    """
    if preprocessing.layout == "NCHW":
        return np.ascontiguousarray(values[..., ::-1])
    shape = (len(values), preprocessing.height, preprocessing.width, image_channels(preprocessing))
    images = values.reshape(shape)
    mirrored = np.empty(shape, values.dtype)
    for channel in range(shape[3]):  # a copy over a last axis of three takes four times as long
        mirrored[..., channel] = images[:, :, ::-1, channel]
    return mirrored.reshape(values.shape)
