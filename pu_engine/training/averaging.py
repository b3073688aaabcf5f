"""The running mean of a network's weights over the steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Average = dict[str, Tensor]


def start(module: nn.Module) -> Average:
    """A mean of one step: copies of weights and statistics."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def move(average: Average, module: nn.Module, decay: float, step: int) -> None:
    """Bring the mean nearer to the weights, in place; early steps count more, so that the start is forgotten.

    Args:
        step: finished ones, from 1 on.
    """
    share = 1.0 - min(decay, (1.0 + step) / (10.0 + step))
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if average[name].is_floating_point():
                average[name].lerp_(value, share)
            else:
                average[name].copy_(value)


@contextmanager
def averaged(module: nn.Module, average: Average) -> Iterator[None]:
    """The module with its mean weights; nothing changes where there is no mean."""
    if not average:
        yield
        return
    before = start(module)
    module.load_state_dict(average)
    try:
        yield
    finally:
        module.load_state_dict(before)
