"""The published PU classifier: an attention head over the teacher's tapped stages, trained with the nnPU risk.

The backbone stays as it is. Where the published code selects at random or can't be repeated this one differs: features
are standardised by the pool, labelled and pool images are drawn apart, and images are scored without augmentation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pu_engine.picking.pu_folds import Folds, Scorer, out_of_fold_scores
from pu_engine.picking.risk import nnpu_risk
from pu_engine.progress import Progress

REDUCTION = 16
FEWEST_HIDDEN = 4
STEPS, LEARNING_RATE = 1500, 1e-3
POSITIVE_BATCH, POOL_BATCH = 512, 1024
LEAST_PRIOR, MOST_PRIOR = 0.02, 0.95


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionHead:
    """Weights: `squeeze` [H, C], `excite` [C, H], `last` [C], `bias` []; the gate has no biases."""

    squeeze: Tensor
    excite: Tensor
    last: Tensor
    bias: Tensor

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [self.squeeze, self.excite, self.last, self.bias]


def attention_score(features: Tensor, head: AttentionHead) -> Tensor:
    """last . (f * sigmoid(excite relu(squeeze f))) + bias of the joined pooled stages f, [N, C] -> [N]."""
    gate = torch.sigmoid(torch.relu(features @ head.squeeze.T) @ head.excite.T)
    return (features * gate) @ head.last + head.bias


def initial_head(width: int, generator: torch.Generator) -> AttentionHead:
    """Random weights, U(-1/sqrt(inputs), 1/sqrt(inputs)); a sixteenth of the width is hidden, at least 4 units."""
    hidden = max(FEWEST_HIDDEN, width // REDUCTION)
    return AttentionHead(
        squeeze=_uniform((hidden, width), width, generator),
        excite=_uniform((width, hidden), hidden, generator),
        last=_uniform((width,), width, generator),
        bias=_uniform((), width, generator),
    )


def paper_scores(
    folds: Folds, prior: float, seed: int, progress: Progress, *, steps: int = STEPS
) -> NDArray[np.float64]:
    """Out-of-fold scores of the pool by heads trained with the nnPU risk (sigmoid loss), [N].

    Args:
        prior: share of positives in the pool; below 0.02 that is used, above 0.95 that.
    """
    bounded = min(max(prior, LEAST_PRIOR), MOST_PRIOR)
    done = 0

    def fit(fold: int, generator: torch.Generator) -> Scorer:
        nonlocal done
        positive, unlabelled, _ = folds.split(fold)
        head = initial_head(positive.shape[1], generator)
        optimiser = torch.optim.Adam(head.parameters, LEARNING_RATE)
        for _ in range(steps):
            labelled_rows = torch.randint(len(positive), (POSITIVE_BATCH,), generator=generator)
            pool_rows = torch.randint(len(unlabelled), (POOL_BATCH,), generator=generator)
            score = attention_score(torch.cat([positive[labelled_rows], unlabelled[pool_rows]]), head)
            risk = nnpu_risk(score[:POSITIVE_BATCH], score[POSITIVE_BATCH:], bounded)
            optimiser.zero_grad(set_to_none=True)
            risk.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            done += 1
            progress.update(done, folds.count * steps, "steps")
        return lambda rows: attention_score(rows, head)

    return out_of_fold_scores(folds, fit, seed)[1]


def _uniform(shape: tuple[int, ...], inputs: int, generator: torch.Generator) -> Tensor:
    bound = inputs**-0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator).requires_grad_()
