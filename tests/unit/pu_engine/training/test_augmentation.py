from __future__ import annotations

import pytest
import torch

from pu_engine.training.augmentation import augment, padding


def numbered(n: int, size: int, channels: int = 1) -> torch.Tensor:
    """Images without a zero in them, so that padding shows."""
    values = torch.arange(n * size * size * channels) % 251 + 1
    return values.to(torch.uint8).reshape(n, size, size, channels)


def two_targets(n: int) -> torch.Tensor:
    """Targets that say which view they are of: 0 for the image, 1 for the mirror."""
    return torch.tensor([[0.0], [1.0]]).expand(n, 2, 1)


def crops(image: torch.Tensor) -> list[bytes]:
    """Every crop that zero padding allows, by plain loops."""
    size, pad = len(image), padding(len(image))
    canvas = torch.zeros(size + 2 * pad, size + 2 * pad, image.shape[2], dtype=torch.uint8)
    canvas[pad : pad + size, pad : pad + size] = image
    places = range(2 * pad + 1)
    return [canvas[y : y + size, x : x + size].numpy().tobytes() for y in places for x in places]


def test_each_image_is_a_crop_of_itself_or_of_its_mirror_as_its_target_says() -> None:
    images = numbered(40, 8, 3)
    views, targets = augment(images, two_targets(40), torch.Generator().manual_seed(0))
    for image, view, target in zip(images, views, targets[:, 0], strict=True):
        upright = view.flip(1) if target == 1 else view
        assert upright.numpy().tobytes() in crops(image)
    assert 0 < targets.sum() < 40


def test_every_offset_is_drawn() -> None:
    images = numbered(1, 8).expand(400, 8, 8, 1)
    views, targets = augment(images, two_targets(400), torch.Generator().manual_seed(1))
    seen = {v.numpy().tobytes() for v, t in zip(views, targets[:, 0], strict=True) if t == 0}
    assert seen == set(crops(images[0]))


def test_a_seed_gives_the_same_views() -> None:
    images, targets = numbered(16, 8), two_targets(16)
    first, _ = augment(images, targets, torch.Generator().manual_seed(5))
    again, _ = augment(images, targets, torch.Generator().manual_seed(5))
    other, _ = augment(images, targets, torch.Generator().manual_seed(6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    augment(numbered(4, 8), two_targets(4), torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("size", "pad"), [(16, 2), (28, 4), (32, 4), (64, 8), (224, 28)])
def test_padding_grows_with_the_size(size: int, pad: int) -> None:
    assert padding(size) == pad


def test_shape_and_type_stay() -> None:
    views, targets = augment(numbered(3, 16, 3), torch.zeros(3, 2, 10), torch.Generator())
    assert views.shape == (3, 16, 16, 3)
    assert views.dtype == torch.uint8
    assert targets.shape == (3, 10)
