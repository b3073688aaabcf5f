"""Batch normalisation by the statistics of the whole batch, though each process sees a part of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class GpuBatchNorm(nn.SyncBatchNorm):
    """torch's own, which serves GPUs only."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, ...]; in training every process must call it."""
        return _ended(self, super().forward(input))


class CpuBatchNorm(_BatchNorm):
    """The same arithmetic on a CPU, with sums over gloo."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions will do."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, ...]; in training every process must call it."""
        return _ended(self, self._together(input) if self.training else super().forward(input))

    def _together(self, x: Tensor) -> Tensor:
        others = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        n = total(x.new_tensor(float(x.numel() // x.shape[1])))
        mean = total(x.sum(dim=others)) / n
        centred = x - mean.view(shape)
        variance = total(centred.square().sum(dim=others)) / n
        self._track(mean.detach(), variance.detach() * (n / (n - 1.0).clamp_min(1.0)))
        y: Tensor = centred * torch.rsqrt(variance + self.eps).view(shape)
        return y if self.weight is None else y * self.weight.view(shape) + self.bias.view(shape)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def total(values: Tensor) -> Tensor:
    """The sum over all processes, with its gradient."""
    summed: Tensor = Total.apply(values)  # type: ignore[no-untyped-call]
    return summed


class Total(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """A tensor of one shape in every process."""
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """What each process's value adds to the losses of all."""
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient


def synchronise(module: nn.Module, device: torch.device) -> None:
    """Replace every batch normalisation below a network, in place; weights and statistics keep names and memory."""
    kind = GpuBatchNorm if device.type == "cuda" else CpuBatchNorm
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, GpuBatchNorm | CpuBatchNorm):
                setattr(parent, name, _replaced(child, kind))


def _replaced(norm: _BatchNorm, kind: type[_BatchNorm]) -> _BatchNorm:
    made = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    made.weight, made.bias = norm.weight, norm.bias
    made.running_mean, made.running_var = norm.running_mean, norm.running_var
    made.num_batches_tracked = norm.num_batches_tracked
    for name, child in norm.named_children():
        made.add_module(name, child)
    return made.train(norm.training)


def _ended(norm: nn.Module, y: Tensor) -> Tensor:
    """timm's normalisations end in a drop and an activation: children of the layer that was replaced."""
    for name, child in norm.named_children():
        if name in ("drop", "act"):
            y = child(y)
    return y
