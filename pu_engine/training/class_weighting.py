"""What each image of a batch weighs in the distillation loss, by its class and the class's running loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pu_engine.training.batches import NOISE_STREAM, Part, derived_seed, draw_weights, labelled_rows
from pu_engine.training.class_weights import (
    one_sided_perturbation,
    paper_weights,
    sample_weights,
    two_sided_perturbation,
    worst_case_chi2,
    worst_case_kl,
)
from pu_engine.training.distill_types import DEFAULT_RADIUS, DistillationOptions
from pu_engine.training.processes import ALONE, Processes

CLASS_LOSS_DECAY = 0.9
CHUNK_ROWS = 4096  # of targets: with 1,000 classes 33 MB in float64
BALLS = {"chi2": worst_case_chi2, "kl": worst_case_kl}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassWeighting:
    """One rule of class weights, ready for the batches of one training set."""

    rule: str  # none | paper | two_sided | chi2 | kl
    radius: float
    shares: NDArray[np.float64]  # [K], of each class in a batch, by the teacher's argmax on image or mirror
    static: Tensor  # float32 [M, K]: weights that don't change; the row of larger loss counts

    @property
    def adaptive(self) -> bool:
        """Whether the weights follow the running losses."""
        return self.rule in BALLS

    def class_weights(self, class_loss: Tensor) -> Tensor:
        """The members of the set, float32 [M, K], at the running losses, float64 [K]; the one of larger loss counts."""
        if not self.adaptive:
            return self.static
        worst = BALLS[self.rule](self.shares, class_loss.numpy(), self.radius)
        return torch.from_numpy(sample_weights(worst, self.shares)).float()[None]


def class_weighting(
    labelled: Part, picked: Part, options: DistillationOptions, seed: int, scale: float = 1.0
) -> ClassWeighting:
    """The weighting that the options name.

    `paper`: 1/count of soft counts, and the same with noise on it. `two_sided`: the same with noise to both sides that
    keeps the mass, so that the larger loss is now the one's and now the other's.

    Args:
        scale: of the teacher's logits.
    """
    rule = options.class_weights
    radius = DEFAULT_RADIUS[rule] if options.radius is None else options.radius
    classes = int(labelled.targets.shape[2])
    rows = labelled_rows(options.batch_size, options.labelled_share, len(labelled), len(picked))
    share, drawn = rows / options.batch_size, draw_weights(picked, options.draws)
    shares = share * _argmax_shares(labelled, None) + (1.0 - share) * _argmax_shares(picked, drawn)
    static = torch.ones(1, classes)
    if rule in ("paper", "two_sided"):
        weights = paper_weights(_soft_counts(labelled, scale) + _soft_counts(picked, scale))
        noise = np.random.default_rng(derived_seed(seed, NOISE_STREAM)).random((classes,))
        if rule == "paper":
            moved = one_sided_perturbation(weights, noise, radius)
        else:
            moved = two_sided_perturbation(weights, shares, 2.0 * noise - 1.0, radius)
        static = torch.from_numpy(np.stack([weights, moved])).float()
    return ClassWeighting(rule=rule, radius=radius, shares=shares, static=static)


def running_class_loss(
    before: Tensor, rows: Tensor, classes: Tensor, *, first: bool, processes: Processes = ALONE
) -> Tensor:
    """Decayed mean of each class's loss, float64 [K]; a class that the batch lacks keeps its value.

    Args:
        rows: loss of each image, float [B].
        first: whether `before` means nothing yet; every class then starts from the batch's mean.
        processes: that share the batch; each gets the whole of it.
    """
    rows, classes_in_all = rows.double(), len(before)
    if first:
        total, count = processes.total(torch.stack([rows.sum(), rows.new_tensor(len(rows))])).tolist()
        before = torch.full_like(before, total / count)
    counts = torch.bincount(classes, minlength=classes_in_all).double()
    sums = torch.bincount(classes, weights=rows, minlength=classes_in_all)
    sums, counts = processes.total(torch.stack([sums, counts]))
    means = sums / counts.clamp_min(1)
    return torch.where(counts > 0, CLASS_LOSS_DECAY * before + (1.0 - CLASS_LOSS_DECAY) * means, before)


def _soft_counts(part: Part, scale: float) -> NDArray[np.float64]:
    """Sum of the teacher's probabilities over the images, [K]."""
    counts = torch.zeros(part.targets.shape[2], dtype=torch.float64)
    for start in range(0, len(part), CHUNK_ROWS):
        rows = torch.from_numpy(part.targets[start : start + CHUNK_ROWS, 0].astype(np.float64))
        counts += F.softmax(rows * scale, dim=1).sum(dim=0)
    return np.asarray(counts.numpy(), dtype=np.float64)


def _argmax_shares(part: Part, drawn: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Of each class, [K], by both views: a batch shows either. `drawn` is how often each image is, [n]."""
    views = part.targets.shape[1]
    weights = None if drawn is None else np.repeat(drawn, views)
    counts = np.bincount(part.targets.argmax(axis=2).ravel(), weights=weights, minlength=part.targets.shape[2])
    return np.asarray(counts / max(counts.sum(), 1e-300), dtype=np.float64)
