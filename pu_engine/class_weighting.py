"""What each image of a batch weighs in the distillation loss, by its class and the class's running loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pu_engine.batches import NOISE_STREAM, Part, derived_seed, labelled_rows
from pu_engine.class_weights import (
    one_sided_perturbation,
    paper_weights,
    sample_weights,
    worst_case_chi2,
    worst_case_kl,
)
from pu_engine.types import DistillationOptions

CLASS_LOSS_DECAY = 0.9
CHUNK_ROWS = 4096  # of targets: with 1,000 classes 33 MB in float64
BALLS = {"chi2": worst_case_chi2, "kl": worst_case_kl}
DEFAULT_RADIUS = {"none": 0.0, "paper": 0.1, "chi2": 0.05, "kl": 0.05}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassWeighting:
    """One rule of class weights, ready for the batches of one training set."""

    rule: str  # none | paper | chi2 | kl
    radius: float
    shares: NDArray[np.float64]  # [K], of each class in a batch, by the teacher's argmax on image or mirror
    static: Tensor  # float32 [M, K]: weights that don't change; the row of larger loss counts

    def weigh(self, classes: Tensor, class_loss: Tensor) -> Tensor:
        """Weight of each image, float32 [M, B], from its class, int64 [B], and the running losses, float64 [K]."""
        if self.rule not in BALLS:
            return self.static[:, classes]
        worst = BALLS[self.rule](self.shares, class_loss.numpy(), self.radius)
        return torch.from_numpy(sample_weights(worst, self.shares)).float()[None, classes]


def class_weighting(labelled: Part, picked: Part, options: DistillationOptions, seed: int) -> ClassWeighting:
    """The weighting that the options name. `paper`: 1/count of soft counts, and the same with noise on it."""
    rule = options.class_weights
    radius = DEFAULT_RADIUS[rule] if options.radius is None else options.radius
    classes = int(labelled.targets.shape[2])
    rows = labelled_rows(options.batch_size, options.labelled_share, len(labelled), len(picked))
    share = rows / options.batch_size
    shares = share * _argmax_shares(labelled) + (1.0 - share) * _argmax_shares(picked)
    static = torch.ones(1, classes)
    if rule == "paper":
        weights = paper_weights(_soft_counts(labelled) + _soft_counts(picked))
        noise = np.random.default_rng(derived_seed(seed, NOISE_STREAM)).random((classes,))
        static = torch.from_numpy(np.stack([weights, one_sided_perturbation(weights, noise, radius)])).float()
    return ClassWeighting(rule=rule, radius=radius, shares=shares, static=static)


def running_class_loss(before: Tensor, rows: Tensor, classes: Tensor, *, first: bool) -> Tensor:
    """Decayed mean of each class's loss, float64 [K]; a class that the batch lacks keeps its value.

    Args:
        rows: loss of each image, float [B].
        first: whether `before` means nothing yet; every class then starts from the batch's mean.
    """
    rows = rows.double()
    if first:
        before = torch.full_like(before, rows.mean().item())
    counts = torch.bincount(classes, minlength=len(before))
    means = torch.bincount(classes, weights=rows, minlength=len(before)) / counts.clamp_min(1)
    return torch.where(counts > 0, CLASS_LOSS_DECAY * before + (1.0 - CLASS_LOSS_DECAY) * means, before)


def _soft_counts(part: Part) -> NDArray[np.float64]:
    """Sum of the teacher's probabilities over the images, [K]."""
    counts = torch.zeros(part.targets.shape[2], dtype=torch.float64)
    for start in range(0, len(part), CHUNK_ROWS):
        rows = torch.from_numpy(part.targets[start : start + CHUNK_ROWS, 0].astype(np.float64))
        counts += F.softmax(rows, dim=1).sum(dim=0)
    return np.asarray(counts.numpy(), dtype=np.float64)


def _argmax_shares(part: Part) -> NDArray[np.float64]:
    """Of each class, [K], by both views: a batch shows either."""
    counts = np.bincount(part.targets.argmax(axis=2).ravel(), minlength=part.targets.shape[2])
    return np.asarray(counts / max(1, 2 * len(part)), dtype=np.float64)
