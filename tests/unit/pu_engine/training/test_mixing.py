from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pu_engine.training.mixing import draw_mixing, mix_images, mix_targets


def plain(n: int) -> torch.Tensor:
    """Images of one value each."""
    return torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 8, 8, 3).contiguous() * 10


def mixed_batch(
    images: torch.Tensor, groups: tuple[int, ...], mixup: float, cutmix: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mixed images, the partner of each, and the share of the image itself."""
    mixing = draw_mixing(groups, images.shape[1], mixup, cutmix, torch.Generator().manual_seed(seed))
    return mix_images(images, images[mixing.partner], mixing), mixing.partner, mixing.share


def test_mixup_blends_each_image_with_its_partner() -> None:
    images = plain(10)
    mixed, partner, share = mixed_batch(images, (4, 6), 1.0, 0.0, 0)
    expected = (share * images.double() + (1 - share) * images[partner].double()).round()
    assert 0 < share < 1
    assert (mixed.double() - expected).abs().max() <= 1


def test_partners_come_from_the_same_group() -> None:
    _, partner, _ = mixed_batch(plain(10), (4, 6), 1.0, 0.0, 1)
    assert sorted(partner[:4].tolist()) == [0, 1, 2, 3]
    assert sorted(partner[4:].tolist()) == [4, 5, 6, 7, 8, 9]


def test_cutmix_pastes_one_box_and_says_what_it_covers() -> None:
    images = plain(12)
    mixed, partner, share = mixed_batch(images, (0, 12), 0.0, 1.0, 3)
    moved = partner != torch.arange(12)
    own = (mixed == images).all(dim=3).float().mean(dim=(1, 2))[moved]
    assert own.tolist() == pytest.approx([share] * int(moved.sum()))
    assert ((mixed == images) | (mixed == images[partner])).all()


def test_both_ways_take_turns() -> None:
    images = plain(12)
    cut = []
    for seed in range(20):
        mixed, partner, _ = mixed_batch(images, (0, 12), 1.0, 1.0, seed)
        cut.append(bool(((mixed == images) | (mixed == images[partner])).all()))
    assert 2 < sum(cut) < 18


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_mixed_targets_are_the_mixture_of_the_softmaxes(temperature: float) -> None:
    targets = torch.tensor([[4.0, 1.0, 0.0], [0.0, 3.0, 2.5]], dtype=torch.float64)
    mixed = mix_targets(targets, targets[[1, 0]], 0.7, temperature)
    p = F.softmax(targets / temperature, dim=1)
    torch.testing.assert_close(F.softmax(mixed / temperature, dim=1), 0.7 * p + 0.3 * p[[1, 0]])


def test_a_share_of_one_leaves_the_targets() -> None:
    targets = torch.tensor([[4.0, 1.0, 0.0], [0.0, 3.0, 2.5]], dtype=torch.float64)
    mixed = mix_targets(targets, targets[[1, 0]], 1.0, 4.0)
    torch.testing.assert_close(F.softmax(mixed, dim=1), F.softmax(targets, dim=1))
