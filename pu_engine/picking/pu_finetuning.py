"""The published PU classifier end to end: the teacher's torch twin and the attention head on its taps, trained together
by the nnPU risk.

Where the published code can't be repeated this one differs as `pu_engine.picking.attention_head` does: labelled and
pool images are drawn apart, no image is scored by a network that was trained on it, and images are scored as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pu_engine.picking.attention_head import LEAST_PRIOR, MOST_PRIOR, AttentionHead, attention_score, initial_head
from pu_engine.picking.risk import nnpu_risk
from pu_engine.progress import Progress
from pu_engine.training.augmentation import augment
from pu_engine.training.live_teacher import teacher_input
from pu_engine.twin.torch_twin import Twin
from pu_engine.types import SPREAD_SUFFIX, Preprocessing

FOLDS = 2
SCORED_BATCH = 512
SCALED_BY = 2_000  # pool images from which the taps' mean and deviation are taken

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuning:
    """How the classifier is trained; the rates fall to 0 by half a cosine."""

    steps: int = 600  # of each fold
    positive_batch: int = 128
    pool_batch: int = 256
    backbone_rate: float = 1e-4
    head_rate: float = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Classifier:
    """A twin with a head on its standardised taps."""

    twin: Twin
    head: AttentionHead
    mean: Tensor  # [W]
    deviation: Tensor  # [W]
    preprocessing: Preprocessing
    device: torch.device

    def __call__(self, images: Tensor) -> Tensor:
        """Scores [N] of uint8 images [N, H, W, C]."""
        return attention_score((self.taps(images) - self.mean) / self.deviation, self.head)

    def taps(self, images: Tensor) -> Tensor:
        """All taps side by side, [N, W]."""
        return joined_taps(self.twin, teacher_input(images, self.preprocessing, self.device))


def joined_taps(twin: Twin, inputs: Tensor) -> Tensor:
    """The taps of a twin's inputs side by side, [N, W] float32; neither the logits nor the spreads are taps."""
    values = list(twin.outputs(inputs).items())[1:]
    return torch.cat([value.float() for name, value in values if not name.endswith(SPREAD_SUFFIX)], dim=1)


def finetuned_scores(
    load: Callable[[], Twin], labelled: Pixels, pool: Pixels, preprocessing: Preprocessing, progress: Progress, *,
    prior: float, seed: int, device: torch.device, options: FineTuning,
) -> NDArray[np.float64]:  # fmt: skip
    """Scores of the pool, [N], each by the network that was trained on the other half of it.

    Args:
        load: gives the teacher's twin, each time afresh.
        labelled, pool: uint8 [P, H, W, C] and [N, H, W, C] at the teacher's size or another.
        prior: share of positives in the pool; below 0.02 that is used, above 0.95 that.

    Source: Xu et al., Positive-Unlabeled Compression on the Cloud (NeurIPS 2019), section 3.1.
    """
    bounded = min(max(prior, LEAST_PRIOR), MOST_PRIOR)
    generator = np.random.default_rng([seed, len(pool)])
    labelled_fold = generator.permutation(len(labelled)) % FOLDS
    pool_fold = generator.permutation(len(pool)) % FOLDS
    scores = np.zeros(len(pool))
    for fold in range(FOLDS):
        torch.manual_seed(seed * FOLDS + fold)
        own, others = labelled[labelled_fold != fold], pool[pool_fold != fold]
        found = classifier(load(), others, preprocessing, seed, device)

        def update(step: int, fold: int = fold) -> None:
            progress.update(fold * options.steps + step, FOLDS * options.steps, "steps")

        fit(found, own, others, update, prior=bounded, options=options)
        held_out = pool[pool_fold == fold]
        scores[pool_fold == fold] = scored(found, held_out)
    return scores


def classifier(
    twin: Twin, pool: Pixels, preprocessing: Preprocessing, seed: int, device: torch.device
) -> Classifier:  # fmt: skip
    """A new head on a twin, its taps standardised by images of the pool."""
    twin = twin.to(device)
    rows = np.linspace(0, len(pool) - 1, min(SCALED_BY, len(pool))).astype(np.int64)
    with torch.no_grad():
        taps = torch.cat([
            joined_taps(twin, teacher_input(torch.from_numpy(pool[part]), preprocessing, device))
            for part in np.array_split(rows, math.ceil(len(rows) / SCORED_BATCH))
        ])  # fmt: skip
    head = initial_head(taps.shape[1], torch.Generator().manual_seed(seed))
    on_device = [weight.detach().to(device).requires_grad_() for weight in head.parameters]
    return Classifier(
        twin=twin, head=AttentionHead(squeeze=on_device[0], excite=on_device[1], last=on_device[2], bias=on_device[3]),
        mean=taps.mean(dim=0), deviation=taps.std(dim=0).clamp_min(1e-6), preprocessing=preprocessing, device=device,
    )  # fmt: skip


def fit(
    found: Classifier, labelled: Pixels, pool: Pixels, update: Callable[[int], None], *, prior: float,
    options: FineTuning,
) -> None:  # fmt: skip
    """Train twin and head in place, on crops and mirrors."""
    optimiser = torch.optim.Adam(
        [
            {"params": found.head.parameters, "lr": options.head_rate, "peak": options.head_rate},
            {"params": list(found.twin.parameters()), "lr": options.backbone_rate, "peak": options.backbone_rate},
        ]
    )
    generator = torch.Generator().manual_seed(torch.initial_seed())
    for step in range(options.steps):
        share = 0.5 * (1.0 + math.cos(math.pi * step / options.steps))
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * share
        images = torch.cat(
            [
                drawn(labelled, options.positive_batch, generator),
                drawn(pool, options.pool_batch, generator),
            ]
        )
        score = found(images)
        risk = nnpu_risk(score[: options.positive_batch], score[options.positive_batch :], prior)
        optimiser.zero_grad(set_to_none=True)
        risk.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        update(step + 1)


def drawn(images: Pixels, count: int, generator: torch.Generator) -> Tensor:
    """Random images, cropped and mirrored at random, uint8 [count, H, W, C]."""
    rows = torch.randint(len(images), (count,), generator=generator).numpy()
    nothing = torch.zeros(count, 2, 0)
    return augment(torch.from_numpy(images[rows]), nothing, generator)[0]


def scored(found: Classifier, images: Pixels) -> NDArray[np.float64]:
    """Scores of images as they are, [N]."""
    with torch.no_grad():
        parts = [
            found(torch.from_numpy(images[i : i + SCORED_BATCH].copy())).double().cpu().numpy()
            for i in range(0, len(images), SCORED_BATCH)
        ]
    return np.concatenate(parts)
