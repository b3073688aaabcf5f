"""What the perceptual hash takes for the same image, and what not."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pu_engine.imaging.images import decode, resize
from pu_engine.imaging.perceptual_hash import NEAR_BITS, SIDE, distance, near, perceptual_hash

PHOTOGRAPHS = 12


def photograph(seed: int, height: int = 96, width: int = 128) -> NDArray[np.uint8]:
    """Smooth coloured shapes with fine noise: a spectrum that falls like that of a photograph."""
    generator = np.random.default_rng(seed)
    layers = [
        resize(generator.integers(0, 256, (n, n, 3), np.uint8), height, width).astype(float) / n for n in (3, 6, 12, 48)
    ]
    mixed = np.sum(layers, axis=0)
    scaled: NDArray[np.uint8] = (255 * (mixed - mixed.min()) / np.ptp(mixed)).astype(np.uint8)
    return scaled


def recompressed(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return decode(buffer.getvalue(), 3)


@pytest.mark.parametrize("quality", [50, 75, 90])
def test_jpeg_recompression_stays_near(quality: int) -> None:
    images = [photograph(seed) for seed in range(PHOTOGRAPHS)]
    found = [distance(perceptual_hash(i), perceptual_hash(recompressed(i, quality))) for i in images]
    assert max(found) <= NEAR_BITS


@pytest.mark.parametrize("scale", [0.5, 0.75, 0.9, 1.1, 1.25])
def test_small_resizes_stay_near(scale: float) -> None:
    for seed in range(PHOTOGRAPHS):
        image = photograph(seed)
        resized = resize(image, round(96 * scale), round(128 * scale))
        assert distance(perceptual_hash(image), perceptual_hash(resized)) <= NEAR_BITS


def test_brightness_and_contrast_stay_near() -> None:
    image = photograph(1)
    dimmed = (20 + 0.7 * image).astype(np.uint8)
    assert distance(perceptual_hash(image), perceptual_hash(dimmed)) <= NEAR_BITS


def test_different_images_are_far_apart() -> None:
    hashes = [perceptual_hash(photograph(seed)) for seed in range(40)]
    assert min(distance(a, b) for a, b in itertools.combinations(hashes, 2)) > 2 * NEAR_BITS


def test_image_without_structure_has_the_hash_zero() -> None:
    for level in (0, 77, 255):
        assert perceptual_hash(np.full((20, 30, 3), level, np.uint8)) == 0


def test_one_wave_sets_its_own_bit() -> None:
    """A cosine of the first frequency along both axes has one large coefficient, bit 0 (row 1, column 1)."""
    wave = np.cos(np.pi * (2 * np.arange(SIDE) + 1) / (2 * SIDE))
    image = np.repeat(np.rint(128 + 100 * np.outer(wave, wave)).astype(np.uint8)[..., None], 3, axis=2)
    assert perceptual_hash(image) & 1


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_distance_is_a_metric_of_bits(one: int, other: int) -> None:
    assert distance(one, other) == distance(other, one) == bin(one ^ other).count("1")
    assert distance(one, one) == 0


def test_near_hashes_are_found_as_by_comparing_all() -> None:
    generator = np.random.default_rng(3)
    hashes = generator.integers(0, 2**63, 300, dtype=np.uint64)
    wanted = hashes[::30].copy()
    for row, flips in enumerate(range(10)):
        for bit in generator.permutation(64)[:flips]:
            wanted[row] ^= np.uint64(1) << np.uint64(bit)
    expected = [any(distance(int(h), int(w)) <= NEAR_BITS for w in wanted) for h in hashes]
    assert sum(expected) == 5
    assert near(hashes, wanted).tolist() == expected
    assert not near(hashes, np.zeros(0, np.uint64)).any()
