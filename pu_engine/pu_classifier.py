"""The PU side: small classifiers of labelled against pool images on the teacher's features.

Labelled and pool images are cut into two halves; a classifier trained on one half scores the other, so that no
image is scored by a classifier that saw it. A linear one gives the prior, an MLP with the nnPU risk the order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pu_engine.content_scores import moments
from pu_engine.progress import Progress
from pu_engine.risk import naive_risk, nnpu_risk

POSITIVE_BATCH, POOL_BATCH = 512, 1024
HIDDEN_UNITS = 128
MLP_STEPS, MLP_LEARNING_RATE = 1500, 1e-3
# P-vs-U for the prior: on mixtures of 0, 5 and 20 % a linear classifier of these settings estimated better than an
# MLP for 40 to 900 labelled images; more steps changed nothing.
LINEAR_STEPS, LINEAR_LEARNING_RATE, LINEAR_WEIGHT_DECAY = 500, 1e-2, 0.5
LEAST_IMAGES = 2  # of the labelled and of the pool: one in each half
LEAST_PRIOR, MOST_PRIOR = 0.02, 0.95
# Pool images of one half that are kept in memory for training; the rest are only scored.
TRAINING_BYTES = 128 * 2**20
# A channel that is dead on the pool but not on a labelled image would drown all others.
LARGEST_DEVIATION = 10.0

Features = NDArray[np.float32]
Scorer = Callable[[Tensor], Tensor]
Fit = Callable[[Tensor, Tensor, torch.Generator], Scorer]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Halves:
    """Labelled and pool images in two halves, features standardised by the pool's mean and deviation."""

    positive: Tensor  # [P, D]
    positive_half: NDArray[np.int8]  # [P], 0 or 1
    pool_half: NDArray[np.int8]  # [N]
    training: tuple[Tensor, Tensor]  # pool images of each half to train on
    pool: Callable[[], Iterable[Tensor]]  # all pool images, in chunks


def make_halves(
    positive: Features,
    classes: NDArray[np.integer],
    pool: Callable[[], Iterable[Features]],
    generator: np.random.Generator,
) -> Halves:
    """Cut labelled images (class by class) and pool images into random halves.

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
        raise ValueError(f"two halves need two images each, got P={len(positive)}, U={statistics.count}")
    deviation = np.sqrt(statistics.covariance.diagonal())
    deviation = np.where(deviation > 0, deviation, 1.0)

    def standardised(rows: Features) -> Tensor:
        values = ((rows - statistics.mean) / deviation).clip(-LARGEST_DEVIATION, LARGEST_DEVIATION)
        return torch.from_numpy(values.astype(np.float32))

    shuffled = generator.permutation(len(positive))
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    positive_half = np.zeros(len(positive), dtype=np.int8)
    positive_half[by_class[1::2]] = 1
    place = generator.permutation(statistics.count)  # of each image in its random order
    pool_half = (place % 2).astype(np.int8)
    kept = place // 2 < max(1, TRAINING_BYTES // (4 * positive.shape[1]))

    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    start = 0
    for chunk in pool():
        stop = start + len(chunk)
        for half in (0, 1):
            found[half].append(standardised(chunk[kept[start:stop] & (pool_half[start:stop] == half)]))
        start = stop
    return Halves(
        positive=standardised(positive),
        positive_half=positive_half,
        pool_half=pool_half,
        training=(torch.cat(found[0]), torch.cat(found[1])),
        pool=lambda: (standardised(chunk) for chunk in pool()),
    )


def out_of_fold_scores(halves: Halves, fit: Fit, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of the labelled images [P] and of the pool [N], each by the classifier of the other half."""
    scorers = []
    for held_out in (0, 1):
        labelled = halves.positive[torch.from_numpy(halves.positive_half != held_out)]
        generator = torch.Generator().manual_seed(2 * seed + held_out)
        scorers.append(fit(labelled, halves.training[1 - held_out], generator))

    pool_score = np.empty(len(halves.pool_half))
    start = 0
    for chunk in halves.pool():
        stop = start + len(chunk)
        pool_score[start:stop] = _score_by_half(chunk, halves.pool_half[start:stop], scorers)
        start = stop
    return _score_by_half(halves.positive, halves.positive_half, scorers), pool_score


def linear_scores(halves: Halves, seed: int, progress: Progress) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Out-of-fold scores of a linear P-vs-U classifier: of the labelled images [P] and of the pool [N]."""
    count = _StepCount(progress, total=2 * LINEAR_STEPS)

    def fit(positive: Tensor, unlabelled: Tensor, generator: torch.Generator) -> Scorer:
        weight = torch.zeros(positive.shape[1], requires_grad=True)
        bias = torch.zeros((), requires_grad=True)
        optimiser = torch.optim.AdamW([weight, bias], LINEAR_LEARNING_RATE, weight_decay=LINEAR_WEIGHT_DECAY)

        def score(rows: Tensor) -> Tensor:
            return rows @ weight + bias

        for _ in range(LINEAR_STEPS):
            _step(optimiser, naive_risk(*_score_batch(score, positive, unlabelled, generator)))
            count.advance()
        return score

    return out_of_fold_scores(halves, fit, seed)


def pu_scores(
    halves: Halves, prior: float, seed: int, progress: Progress, *, steps: int = MLP_STEPS
) -> NDArray[np.float64]:
    """Out-of-fold scores of an MLP trained with the nnPU risk (sigmoid loss), [N].

    Args:
        prior: share of positives in the pool; below 0.02 that is used, above 0.95 that.
    """
    count = _StepCount(progress, total=2 * steps)
    bounded = min(max(prior, LEAST_PRIOR), MOST_PRIOR)

    def fit(positive: Tensor, unlabelled: Tensor, generator: torch.Generator) -> Scorer:
        width = positive.shape[1]
        hidden, hidden_bias = (
            _uniform((width, HIDDEN_UNITS), width, generator),
            _uniform((HIDDEN_UNITS,), width, generator),
        )
        last, last_bias = _uniform((HIDDEN_UNITS,), HIDDEN_UNITS, generator), _uniform((), HIDDEN_UNITS, generator)
        optimiser = torch.optim.Adam([hidden, hidden_bias, last, last_bias], MLP_LEARNING_RATE)

        def score(rows: Tensor) -> Tensor:
            return torch.relu(rows @ hidden + hidden_bias) @ last + last_bias

        for _ in range(steps):
            _step(optimiser, nnpu_risk(*_score_batch(score, positive, unlabelled, generator), bounded))
            count.advance()
        return score

    return out_of_fold_scores(halves, fit, seed)[1]


class _StepCount:
    """Reports the steps of both halves as one count."""

    def __init__(self, progress: Progress, *, total: int) -> None:
        self._progress = progress
        self._done, self._total = 0, total

    def advance(self) -> None:
        self._done += 1
        self._progress.update(self._done, self._total, "steps")


def _score_batch(
    score: Scorer, positive: Tensor, unlabelled: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Scores of a random batch: labelled [512] and pool images [1024], each drawn with replacement."""
    rows = torch.cat(
        [
            positive[torch.randint(len(positive), (POSITIVE_BATCH,), generator=generator)],
            unlabelled[torch.randint(len(unlabelled), (POOL_BATCH,), generator=generator)],
        ]
    )
    scored = score(rows)
    return scored[:POSITIVE_BATCH], scored[POSITIVE_BATCH:]


def _step(optimiser: torch.optim.Optimizer, risk: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    risk.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def _uniform(shape: tuple[int, ...], inputs: int, generator: torch.Generator) -> Tensor:
    """Initial parameters of a layer with so many inputs, U(-1/sqrt(inputs), 1/sqrt(inputs))."""
    bound = inputs**-0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator).requires_grad_()


@torch.no_grad()
def _score_by_half(rows: Tensor, half: NDArray[np.int8], scorers: list[Scorer]) -> NDArray[np.float64]:
    second = torch.from_numpy(half == 1)
    return torch.where(second, scorers[1](rows), scorers[0](rows)).double().numpy()
