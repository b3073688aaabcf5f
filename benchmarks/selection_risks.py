"""The PU risks side by side: the same network, folds and steps, only the risk differs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pu_engine.picking.prior import best_bin_estimate
from pu_engine.picking.pu_folds import Folds, Scorer, out_of_fold_scores
from pu_engine.picking.risk import (
    answer_entropy,
    cvir_kept,
    dist_pu_risk,
    naive_risk,
    nnpu_risk,
    upu_risk,
    vpu_regulariser,
    vpu_risk,
)

HIDDEN_UNITS = 128
STEPS, LEARNING_RATE = 500, 1e-3
POSITIVE_BATCH, POOL_BATCH = 512, 1024
MIXED_SHARE, MIXED_WEIGHT = 0.3, 0.03  # VPU's Beta(.3, .3) and weight
ENTROPY_WEIGHT, ENTROPY_FROM = 0.05, 0.5  # Dist-PU: of the entropy, in the second half of the training
LEAST_PRIOR, MOST_PRIOR = 0.02, 0.95

Network = Callable[[Tensor], Tensor]
# Of the network, labelled and pool rows, the prior, how far the training is (0 to 1) and a source of chance.
Risk = Callable[[Network, Tensor, Tensor, float, float, torch.Generator], Tensor]


def _upu(network: Network, positive: Tensor, pool: Tensor, prior: float, *_: object) -> Tensor:
    return upu_risk(network(positive), network(pool), prior)


def _nnpu(network: Network, positive: Tensor, pool: Tensor, prior: float, *_: object) -> Tensor:
    return nnpu_risk(network(positive), network(pool), prior)


def _nnpu_logistic(network: Network, positive: Tensor, pool: Tensor, prior: float, *_: object) -> Tensor:
    return nnpu_risk(network(positive), network(pool), prior, surrogate="logistic")


def _naive(network: Network, positive: Tensor, pool: Tensor, *_: object) -> Tensor:
    return naive_risk(network(positive), network(pool))


def _cvir(network: Network, positive: Tensor, pool: Tensor, prior: float, *_: object) -> Tensor:
    scored = network(pool)
    return naive_risk(network(positive), scored[cvir_kept(scored, prior)])


def _dist_pu(
    network: Network, positive: Tensor, pool: Tensor, prior: float, progress: float, _: torch.Generator
) -> Tensor:  # fmt: skip
    scored = network(pool)
    risk = dist_pu_risk(network(positive), scored, prior)
    return risk + ENTROPY_WEIGHT * answer_entropy(scored) if progress >= ENTROPY_FROM else risk


def _vpu(
    network: Network, positive: Tensor, pool: Tensor, _prior: float, _progress: float, generator: torch.Generator
) -> Tensor:  # fmt: skip
    scored = network(pool)
    count = len(positive)
    # Beta(a, b) as a ratio of two Gamma draws, whose sampler takes torch's generator.
    draws = torch._standard_gamma(torch.full((2, count), MIXED_SHARE), generator=generator)
    share = (draws[0] / draws.sum(dim=0).clamp_min(1e-12))[:, None]
    mixed = network(share * positive + (1.0 - share) * pool[:count])
    return vpu_risk(network(positive), scored) + MIXED_WEIGHT * vpu_regulariser(mixed, scored[:count], share[:, 0])


RISKS: dict[str, Risk] = {
    "upu": _upu,
    "nnpu": _nnpu,
    "nnpu logistic": _nnpu_logistic,
    "naive mlp": _naive,
    "vpu": _vpu,
    "dist-pu": _dist_pu,
    "cvir": _cvir,
}


def risk_scores(name: str, folds: Folds, prior: float, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Out-of-fold scores of an MLP trained with one of the RISKS: of the labelled images [P] and of the pool [N]."""
    bounded, risk = min(max(prior, LEAST_PRIOR), MOST_PRIOR), RISKS[name]

    def fit(fold: int, generator: torch.Generator) -> Scorer:
        positive, unlabelled, _ = folds.split(fold)
        width = positive.shape[1]
        hidden, hidden_bias = _uniform((width, HIDDEN_UNITS), width, generator), torch.zeros(HIDDEN_UNITS)
        last, last_bias = _uniform((HIDDEN_UNITS,), HIDDEN_UNITS, generator), torch.zeros(())
        weights = [w.requires_grad_() for w in (hidden, hidden_bias, last, last_bias)]
        optimiser = torch.optim.Adam(weights, LEARNING_RATE)

        def network(rows: Tensor) -> Tensor:
            return torch.relu(rows @ hidden + hidden_bias) @ last + last_bias

        for step in range(STEPS):
            labelled = positive[torch.randint(len(positive), (POSITIVE_BATCH,), generator=generator)]
            pool = unlabelled[torch.randint(len(unlabelled), (POOL_BATCH,), generator=generator)]
            optimiser.zero_grad(set_to_none=True)
            risk(network, labelled, pool, bounded, step / STEPS, generator).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return network

    return out_of_fold_scores(folds, fit, seed)


def estimated_prior(labelled: NDArray[np.float64], pool: NDArray[np.float64]) -> float:
    """The best bin estimate that all risks are given."""
    return best_bin_estimate(labelled, pool).alpha


def _uniform(shape: tuple[int, ...], inputs: int, generator: torch.Generator) -> Tensor:
    bound = inputs**-0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
