"""Labelled and pool images in folds: what scores an image was never trained on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pu_engine.picking.content_scores import moments

# Four fifths of the labelled images train each classifier. Two folds cost .005 of AUC on development pools, ten add
# nothing.
FOLDS = 5
LEAST_IMAGES = 2  # of the labelled and of the pool: one in each of two folds
# Pool images that are kept in memory for training; the rest are only scored.
TRAINING_BYTES = 128 * 2**20
# A channel that is dead on the pool but not on a labelled image would drown all others.
LARGEST_DEVIATION = 10.0

Features = NDArray[np.float32]
Scorer = Callable[[Tensor], Tensor]
Fit = Callable[[int, torch.Generator], Scorer]  # the classifier of a fold, which is not to see it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Folds:
    """Labelled and pool images with the fold of each, features standardised by the pool's mean and deviation."""

    count: int
    positive: Tensor  # [P, D]
    positive_fold: NDArray[np.int8]  # [P]
    pool_fold: NDArray[np.int8]  # [N]
    training: Tensor  # pool images to train on, [M, D]
    training_row: Tensor  # which pool image each is, [M]
    training_fold: Tensor  # [M]
    pool: Callable[[], Iterable[Tensor]]  # all pool images, in chunks

    def split(self, fold: int) -> tuple[Tensor, Tensor, Tensor]:
        """What the classifier of one fold trains on: labelled and pool images of the others, and these ones' rows."""
        used = self.training_fold != fold
        return self.positive[torch.from_numpy(self.positive_fold != fold)], self.training[used], self.training_row[used]


def make_folds(
    positive: Features,
    classes: NDArray[np.integer],
    pool: Callable[[], Iterable[Features]],
    generator: np.random.Generator,
) -> Folds:
    """Cut labelled images (class by class) and pool images into random folds, fewer where there are fewer images.

    Args:
        positive: features of labelled images, [P, D], P >= 2.
        classes: class of each, [P].
        pool: gives the pool's features from the start, in chunks [n, D]; at least 2 images.
        generator: source of the cut.

    Raises:
        ValueError: too few images to cut.
    """
    statistics = moments(pool())
    if min(len(positive), statistics.count) < LEAST_IMAGES:
        raise ValueError(f"two folds need two images each, got P={len(positive)}, U={statistics.count}")
    deviation = np.sqrt(statistics.covariance.diagonal())
    deviation = np.where(deviation > 0, deviation, 1.0)

    def standardised(rows: Features) -> Tensor:
        values = ((rows - statistics.mean) / deviation).clip(-LARGEST_DEVIATION, LARGEST_DEVIATION)
        return torch.from_numpy(values.astype(np.float32))

    count = min(FOLDS, len(positive), statistics.count)
    shuffled = generator.permutation(len(positive))
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    positive_fold = np.empty(len(positive), dtype=np.int8)
    positive_fold[by_class] = np.arange(len(positive)) % count
    place = generator.permutation(statistics.count)  # of each image in its random order
    pool_fold = (place % count).astype(np.int8)
    kept = place < max(count, TRAINING_BYTES // (4 * positive.shape[1]))

    training = torch.empty(int(kept.sum()), positive.shape[1])
    start = filled = 0
    for chunk in pool():
        stop = start + len(chunk)
        rows = standardised(chunk[kept[start:stop]])
        training[filled : filled + len(rows)] = rows
        start, filled = stop, filled + len(rows)
    return Folds(
        count=count,
        positive=standardised(positive),
        positive_fold=positive_fold,
        pool_fold=pool_fold,
        training=training,
        training_row=torch.from_numpy(np.flatnonzero(kept)),
        training_fold=torch.from_numpy(pool_fold[kept]),
        pool=lambda: (standardised(chunk) for chunk in pool()),
    )


def out_of_fold_scores(folds: Folds, fit: Fit, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of the labelled images [P] and of the pool [N], each by the classifier that did not see its fold."""
    scorers = []
    for fold in range(folds.count):
        generator = torch.Generator().manual_seed(folds.count * seed + fold)
        scorers.append(fit(fold, generator))

    pool_score = np.empty(len(folds.pool_fold))
    start = 0
    for chunk in folds.pool():
        stop = start + len(chunk)
        pool_score[start:stop] = _score_by_fold(chunk, folds.pool_fold[start:stop], scorers)
        start = stop
    return _score_by_fold(folds.positive, folds.positive_fold, scorers), pool_score


@torch.no_grad()
def _score_by_fold(rows: Tensor, fold: NDArray[np.int8], scorers: list[Scorer]) -> NDArray[np.float64]:
    score = np.empty(len(rows))
    for number, scorer in enumerate(scorers):
        mine = fold == number
        score[mine] = scorer(rows[torch.from_numpy(mine)]).double().numpy()
    return score
