"""Random crops and mirrors of whole batches, on uint8."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from pu_engine.training.device_copy import sent

PAD_SHARE = 4 / 32  # the CIFAR recipe pads 4 pixels at a side of 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Crops:
    """Where images are cropped, and which are mirrored."""

    offsets: Tensor  # int64 [2, N]: rows and columns of the padded image
    mirrored: Tensor  # int64 [N], 0 or 1

    def at(self, places: Tensor) -> Crops:
        """Those of some of the images."""
        return Crops(offsets=self.offsets[:, places], mirrored=self.mirrored[places])


def draw_crops(n: int, size: int, generator: Generator) -> Crops:
    """Crops and mirrors of n images, each as likely as any other."""
    offsets = torch.randint(0, 2 * padding(size) + 1, (2, n), generator=generator)
    return Crops(offsets=offsets, mirrored=torch.randint(0, 2, (n,), generator=generator))


def crop(images: Tensor, crops: Crops) -> Tensor:
    """Zero-pad, crop and mirror, uint8 [N, S, S, C], on the images' device."""
    n, size = images.shape[:2]
    pad, device = padding(size), images.device
    along = torch.arange(size, device=device)
    offsets, mirrored = sent(crops.offsets, device), sent(crops.mirrored, device)
    rows = offsets[0][:, None] + along
    columns = offsets[1][:, None] + torch.where(mirrored[:, None] == 1, size - 1 - along, along)
    padded = F.pad(images, (0, 0, pad, pad, pad, pad))
    each = torch.arange(n, device=device)
    return padded[each[:, None, None], rows[:, :, None], columns[:, None, :]]


def augment(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Zero-pad, crop at a random place, mirror at random, and pick the teacher's logits of image or mirror.

    Args:
        images: uint8 [N, S, S, C].
        targets: float [N, 2, K], the teacher's logits of image and mirror.

    Returns:
        images uint8 [N, S, S, C], targets float [N, K].
    """
    n, size = images.shape[:2]
    crops = draw_crops(n, size, generator)
    return crop(images, crops), targets[torch.arange(n), crops.mirrored]


def padding(size: int) -> int:
    """Zero pixels on each side, in proportion to the image."""
    return round(size * PAD_SHARE)
