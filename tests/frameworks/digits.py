"""scikit-learn's handwritten digits as images, and what an exported model says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pu_engine.types import Preprocessing

CLASSES = 10
SIDE, GRAY_SIDE = 16, 8
TRAINED = 1198  # the rest stays unseen, as in the teachers' index
LEVELS = 16  # gray levels of the data set
# Ink of odd digits is cold and that of even ones warm, so a teacher that is given BGR takes one for the other.
WARM, COLD = (235.0, 120.0, 45.0), (45.0, 120.0, 235.0)
TINT_SPREAD, NOISE = 25.0, 6.0

Pixels = NDArray[np.uint8]
Predict = Callable[[Pixels], NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Digits:
    """Images [N, H, W, C] uint8 and labels [N] of the part to train on and of the unseen one."""

    images: Pixels
    labels: NDArray[np.int64]
    unseen_images: Pixels
    unseen_labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What intake has to find out about an exported model."""

    documented: Preprocessing
    output: str  # logits | probabilities | log_probabilities
    batch: int | None
    taps: int  # at least so many
    normaliser: str = "softmax"  # of probabilities: softmax | sigmoid
    error: float = 1e-4  # of the canonical model's scores against the framework's, relative to the largest


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported(Truth):
    """A trained model as its framework's exporter wrote it."""

    file: bytes
    predict: Predict  # the framework's own scores [N, 10] of images [N, H, W, C] uint8

    @property
    def truth(self) -> Truth:
        return Truth(**{field.name: getattr(self, field.name) for field in fields(Truth)})


@cache
def gray_digits() -> Digits:
    """8 x 8 pixels, one channel."""
    intensity, labels = _intensity()
    return _split(np.round(intensity * 255).astype(np.uint8)[..., None], labels)


@cache
def coloured_digits() -> Digits:
    """16 x 16 pixels in colour: enlarged, tinted by parity, on a noisy dark ground."""
    intensity, labels = _intensity()
    generator = np.random.default_rng(11)
    ink = np.where((labels % 2)[:, None] == 1, COLD, WARM) + generator.normal(0, TINT_SPREAD, (len(labels), 3))
    large = intensity.repeat(SIDE // GRAY_SIDE, 1).repeat(SIDE // GRAY_SIDE, 2)[..., None]
    pixels = 20 + large * (ink[:, None, None, :] - 20) + generator.normal(0, NOISE, (*large.shape[:3], 3))
    return _split(np.clip(np.round(pixels), 0, 255).astype(np.uint8), labels)


def _intensity() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images / LEVELS, data.target.astype(np.int64)


def _split(images: Pixels, labels: NDArray[np.int64]) -> Digits:
    return Digits(
        images=images[:TRAINED],
        labels=labels[:TRAINED],
        unseen_images=images[TRAINED:],
        unseen_labels=labels[TRAINED:],
    )


def convention(
    layout: str,
    channels: str,
    scale: float,
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
    *,
    dtype: str = "float32",
) -> Preprocessing:
    """A documented preprocessing; one mean or std stands for all channels, which come in the order of `channels`."""
    count, side = (1, GRAY_SIDE) if channels == "GRAY" else (3, SIDE)
    mean, std = (values if len(values) == count else values * count for values in (mean, std))
    return Preprocessing(
        layout=layout, channels=channels, scale=scale, mean=mean, std=std, dtype=dtype, height=side, width=side
    )
