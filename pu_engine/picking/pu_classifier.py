"""The source classifier: labelled against pool images, on what the teacher says of them.

Logistic regression on the features, the sorted logits and the energy, and on smooth random functions of these. The
pool counts as negative: that shifts its threshold but not its order, and the prior is read off the order.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pu_engine.picking.content_scores import energy
from pu_engine.picking.pu_folds import Folds, Scorer, out_of_fold_scores
from pu_engine.picking.risk import soft_label_risk
from pu_engine.progress import Progress

MOST_LOGITS = 10  # the largest ones; of a thousand classes the others say little
SMOOTH_FUNCTIONS = 400
SMOOTH_SCALE = 0.25  # of a direction: a typical pair of images is a third of a radian apart
RIDGE = 1e-3  # half of it times the squared weights is added to the risk
MOST_ROUNDS = 60
BISECTIONS, WIDEST_SHIFT = 60, 30.0
# Expanded pool images of one fold that are trained on at a time.
EXPANDED_BYTES = 128 * 2**20

Features = NDArray[np.float32]


def source_inputs(features: Features, logits: NDArray[np.floating]) -> Features:
    """What the classifier sees of each image: features, its largest logits in falling order, and the energy.

    Args:
        features: [n, D].
        logits: of image and mirror, [n, 2, K].

    Returns:
        [n, D + min(K, 10) + 1].
    """
    mean = logits.mean(axis=1, dtype=np.float64)
    largest = -np.sort(-mean, axis=1)[:, :MOST_LOGITS]
    return np.concatenate([features, largest, energy(logits)[:, None]], axis=1).astype(np.float32)


def source_scores(
    folds: Folds, seed: int, progress: Progress, *, belief: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Out-of-fold log-odds of labelled against pool: of the labelled images [P] and of the pool [N].

    Args:
        belief: how far each pool image is taken for a labelled one, [N]; none at first, `beliefs` in a second round.
    """
    done = 0

    def fit(fold: int, generator: torch.Generator) -> Scorer:
        nonlocal done
        positive, unlabelled, rows = folds.split(fold)
        believed = torch.zeros(len(rows)) if belief is None else torch.from_numpy(belief)[rows].float()
        scorer = fit_logistic(positive, unlabelled, believed, generator)
        done += 1
        progress.update(done, folds.count, "classifiers")
        return scorer

    return out_of_fold_scores(folds, fit, seed)


def beliefs(score: NDArray[np.float64], prior: float) -> NDArray[np.float64]:
    """Log-odds turned into probabilities whose mean is the prior, by one shift of all, [N].

    Args:
        score: [N], finite.
        prior: share of positives, 0 < prior < 1.
    """
    return sigmoid(score + belief_shift(score, prior))


def belief_shift(score: NDArray[np.float64], prior: float) -> float:
    """What brings log-odds [N] to probabilities whose mean is the prior, as `beliefs` says."""
    low, high = -float(score.max()) - WIDEST_SHIFT, -float(score.min()) + WIDEST_SHIFT
    for _ in range(BISECTIONS):
        shift = (low + high) / 2
        low, high = (shift, high) if sigmoid(score + shift).mean() < prior else (low, shift)
    return (low + high) / 2


def fit_logistic(
    positive: Tensor, unlabelled: Tensor, belief: Tensor, generator: torch.Generator, *,
    functions: int = SMOOTH_FUNCTIONS, ridge: float = RIDGE,
) -> Scorer:  # fmt: skip
    """A classifier that is linear in the inputs and in `functions` random cosines of them, trained to convergence.

    Source of the cosines: Rahimi, Recht 2007.

    Args:
        positive, unlabelled: standardised inputs, [P, D] and [U, D].
        belief: how far a pool image counts as positive, [U].
        functions: 0 leaves the classifier linear.
        ridge: strength of the penalty on the weights.
    """
    width = positive.shape[1]
    directions = torch.randn(width, functions, generator=generator) * (SMOOTH_SCALE / math.sqrt(width))
    phases = torch.rand(functions, generator=generator) * (2.0 * math.pi)

    def expanded(rows: Tensor) -> Tensor:
        return torch.cat([rows, torch.cos(rows @ directions + phases) * math.sqrt(2.0)], dim=1)

    most = max(1, EXPANDED_BYTES // (4 * (width + functions)))
    if len(unlabelled) > most:
        drawn = torch.randperm(len(unlabelled), generator=generator)[:most]
        unlabelled, belief = unlabelled[drawn], belief[drawn]
    labelled, pool = expanded(positive), expanded(unlabelled)
    weight = torch.zeros(labelled.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=MOST_ROUNDS, line_search_fn="strong_wolfe")

    def risk() -> Tensor:
        optimiser.zero_grad()
        value = soft_label_risk(labelled @ weight + bias, pool @ weight + bias, belief)
        value = value + ridge / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(risk)  # type: ignore[no-untyped-call]
    trained, offset = weight.detach(), bias.detach()
    return lambda rows: expanded(rows) @ trained + offset


def sigmoid(score: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + e^-score), which no score overflows."""
    return np.asarray(0.5 * (1.0 + np.tanh(score / 2)), dtype=np.float64)
