"""Mixup and CutMix of whole batches, labelled images among themselves and picked ones among themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def mix_images(
    images: Tensor, groups: Sequence[int], mixup: float, cutmix: float, generator: Generator
) -> tuple[Tensor, Tensor, float]:
    """Mix each image with another one of its group, the whole batch at one share; where both ways are on, by turns.

    Source: Zhang et al. 2018 (mixup), Yun et al. 2019 (CutMix).

    Args:
        images: uint8 [N, S, S, C].
        groups: sizes of the groups, in order; they add up to N.
        mixup, cutmix: alpha of Beta(alpha, alpha), from which the share is drawn; 0: off.

    Returns:
        mixed uint8 [N, S, S, C], the partner of each image, int64 [N], and the share of the image itself.
    """
    starts = np.cumsum([0, *groups[:-1]])
    partner = torch.cat(
        [torch.randperm(n, generator=generator) + int(start) for start, n in zip(starts, groups, strict=True)]
    )
    cut = cutmix > 0 and (mixup == 0 or bool(torch.randint(0, 2, (1,), generator=generator)))
    share = _beta(cutmix if cut else mixup, generator)
    if cut:
        return _pasted(images, partner, share, generator)
    mixed = images.float().lerp(images[partner].float(), 1.0 - share).round()
    return mixed.to(torch.uint8), partner, share


def mix_targets(targets: Tensor, partner: Tensor, share: float, temperature: float) -> Tensor:
    """Logits whose softmax at the temperature is the mixture of both images' softmaxes at it, [N, K]."""
    log_p = F.log_softmax(targets / temperature, dim=1)
    own, other = log_p + math.log(max(share, 1e-12)), log_p[partner] + math.log(max(1.0 - share, 1e-12))
    return torch.logaddexp(own, other) * temperature


def _pasted(images: Tensor, partner: Tensor, share: float, generator: Generator) -> tuple[Tensor, Tensor, float]:
    """A box of the partner in the image's place; the share follows from the pixels that it really covers."""
    size = images.shape[1]
    side = round(size * math.sqrt(1.0 - share))
    centre = torch.randint(0, size, (2,), generator=generator).tolist()
    (top, bottom), (left, right) = ((max(0, c - side // 2), min(size, c - side // 2 + side)) for c in centre)
    mixed = images.clone()
    mixed[:, top:bottom, left:right] = images[partner, top:bottom, left:right]
    return mixed, partner, 1.0 - (bottom - top) * (right - left) / size**2


def _beta(alpha: float, generator: Generator) -> float:
    seed = int(torch.randint(0, 2**63 - 1, (1,), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))
