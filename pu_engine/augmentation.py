"""Random crops and mirrors of whole batches, on uint8."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

PAD_SHARE = 4 / 32  # the CIFAR recipe pads 4 pixels at a side of 32


def augment(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Zero-pad, crop at a random place, mirror at random, and pick the teacher's logits of image or mirror.

    Args:
        images: uint8 [N, S, S, C].
        targets: float [N, 2, K], the teacher's logits of image and mirror.

    Returns:
        images uint8 [N, S, S, C], targets float [N, K].
    """
    n, size = images.shape[:2]
    pad = padding(size)
    offsets = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=generator)
    mirrored = torch.randint(0, 2, (n,), generator=generator)
    along = torch.arange(size)
    rows = offsets[0] + along
    columns = offsets[1] + torch.where(mirrored[:, None] == 1, size - 1 - along, along)
    padded = F.pad(images, (0, 0, pad, pad, pad, pad))
    each = torch.arange(n)
    return padded[each[:, None, None], rows[:, :, None], columns[:, None, :]], targets[each, mirrored]


def padding(size: int) -> int:
    """Zero pixels on each side, in proportion to the image."""
    return round(size * PAD_SHARE)
