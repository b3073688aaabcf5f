"""Mixup and CutMix of whole batches, labelled images among themselves and picked ones among themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Box = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixing:
    """How a batch is mixed, the whole of it at one share."""

    partner: Tensor  # int64 [N], of each image
    share: float  # of the image itself
    box: Box | None  # the partner's place in the image; None: the two are blended


def draw_mixing(groups: Sequence[int], size: int, mixup: float, cutmix: float, generator: Generator) -> Mixing:
    """A partner of its own group for each image, and their share; where both ways are on, by turns.

    Source: Zhang et al. 2018 (mixup), Yun et al. 2019 (CutMix).

    Args:
        groups: sizes of the groups, in order; they add up to N.
        size: of an image's side in pixels.
        mixup, cutmix: alpha of Beta(alpha, alpha), from which the share is drawn; 0: off.
    """
    starts = np.cumsum([0, *groups[:-1]])
    partner = torch.cat(
        [torch.randperm(n, generator=generator) + int(start) for start, n in zip(starts, groups, strict=True)]
    )
    cut = cutmix > 0 and (mixup == 0 or bool(torch.randint(0, 2, (1,), generator=generator)))
    share = _beta(cutmix if cut else mixup, generator)
    if not cut:
        return Mixing(partner=partner, share=share, box=None)
    side = round(size * math.sqrt(1.0 - share))
    centre = torch.randint(0, size, (2,), generator=generator).tolist()
    (top, bottom), (left, right) = ((max(0, c - side // 2), min(size, c - side // 2 + side)) for c in centre)
    # The share follows from the pixels that the box really covers.
    covered = (bottom - top) * (right - left) / size**2
    return Mixing(partner=partner, share=1.0 - covered, box=(slice(top, bottom), slice(left, right)))


def mix_images(images: Tensor, others: Tensor, mixing: Mixing) -> Tensor:
    """Images with their partners mixed in, uint8 [N, S, S, C] all three."""
    if mixing.box is None:
        return images.float().lerp(others.float(), 1.0 - mixing.share).round().to(torch.uint8)
    mixed = images.clone()
    mixed[:, *mixing.box] = others[:, *mixing.box]
    return mixed


def mix_targets(targets: Tensor, others: Tensor, share: float, temperature: float) -> Tensor:
    """Logits whose softmax at the temperature is the mixture of both images' softmaxes at it, [N, K]."""
    own = F.log_softmax(targets / temperature, dim=1) + math.log(max(share, 1e-12))
    other = F.log_softmax(others / temperature, dim=1) + math.log(max(1.0 - share, 1e-12))
    return torch.logaddexp(own, other) * temperature


def _beta(alpha: float, generator: Generator) -> float:
    seed = int(torch.randint(0, 2**63 - 1, (1,), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))
