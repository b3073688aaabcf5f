"""Torch forms of ONNX operators that work value by value or along axes: the twin's table names them.

Tensors come in the order of the node's inputs. What an operator's versions pass as attribute here and as constant
input there comes as one keyword, so one function serves all of them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Number = int | float
FLOAT_TYPES = (1, 10, 11, 16)  # float32, float16, float64, bfloat16: all computed in the weights' own type
INTEGER_TYPES = {2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool}


def identity(x: Tensor) -> Tensor:
    """The tensor itself."""
    return x


def dropout(x: Tensor, *, ratio: object = None, training_mode: object = False, seed: int = 0) -> Tensor:
    """The tensor itself: the twin behaves as in inference, like the teacher that intake tested.

    Raises:
        ValueError: the graph itself asks for the training form.
    """
    if first(training_mode):
        raise ValueError("it drops values in inference too")
    return x


def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up", anchor: Tensor) -> Tensor:
    """Another type. A float stays what it is: the twin computes in the type of its weights throughout.

    Raises:
        ValueError: a type that no torch operator takes.
    """
    if to in FLOAT_TYPES:
        return x if x.is_floating_point() else x.to(anchor.dtype)
    if to not in INTEGER_TYPES:
        raise ValueError(f"there is no form of element type {to}")
    return x != 0 if to == 9 else x.to(INTEGER_TYPES[to])


def clip(x: Tensor, *, min: object = None, max: object = None) -> Tensor:
    """Bounds; either may lack."""
    low, high = first(min), first(max)
    return x if low is None and high is None else torch.clamp(x, low, high)


def first(value: object) -> Number | None:
    """A scalar, also where it came as a list of one."""
    while isinstance(value, list | tuple):
        (value,) = value
    return value if isinstance(value, int | float) else None


def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """alpha * x below zero."""
    return F.leaky_relu(x, alpha)


def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """alpha * (exp(x) - 1) below zero."""
    return F.elu(x, alpha)


def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """alpha * (exp(x / alpha) - 1) below zero."""
    return F.celu(x, alpha)


def selu(x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    """gamma * elu."""
    return gamma * F.elu(x, alpha)


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """alpha * x + beta between 0 and 1."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    return F.softplus(x)


def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x above alpha, else 0."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """x times the normal distribution function, or its tanh form."""
    return F.gelu(x, approximate=approximate)


def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x * sigmoid(alpha * x)."""
    return x * torch.sigmoid(alpha * x)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """slope * x below zero; the slope broadcasts as ONNX does."""
    return torch.where(x < 0, slope * x, x)


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Quotient; integers are truncated towards zero."""
    whole = not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc") if whole else torch.div(a, b)


def minimum(*values: Tensor) -> Tensor:
    """Smallest of any number of tensors."""
    return functools.reduce(torch.minimum, values)


def maximum(*values: Tensor) -> Tensor:
    """Largest of any number of tensors."""
    return functools.reduce(torch.maximum, values)


def total(*values: Tensor) -> Tensor:
    """Sum of any number of tensors."""
    return functools.reduce(torch.add, values)


def average(*values: Tensor) -> Tensor:
    """Mean of any number of tensors."""
    return total(*values) / len(values)


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Softmax along one axis (operator set 13 and later)."""
    return torch.softmax(x, dim=axis)


def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Logarithm of the softmax along one axis (operator set 13 and later)."""
    return torch.log_softmax(x, dim=axis)


def joint_softmax(x: Tensor, *, axis: int = 1) -> Tensor:
    """Softmax over all axes from `axis` on together (before operator set 13)."""
    return torch.softmax(x.flatten(axis), dim=-1).reshape(x.shape)


def joint_log_softmax(x: Tensor, *, axis: int = 1) -> Tensor:
    """Logarithm of the softmax over all axes from `axis` on together (before operator set 13)."""
    return torch.log_softmax(x.flatten(axis), dim=-1).reshape(x.shape)


Reduction = Callable[[Tensor, list[int], bool], Tensor]


def reduction(reduce: Reduction) -> Callable[..., Tensor]:
    """An ONNX Reduce... operator from a torch reduction over (tensor, axes, keep)."""

    def run(
        x: Tensor, *, axes: Sequence[int] | None = None, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        if not axes and noop_with_empty_axes:
            return x
        return reduce(x, list(axes) if axes else list(range(x.ndim)), bool(keepdims))

    return run


reduce_mean = reduction(lambda x, axes, keep: torch.mean(x, dim=axes, keepdim=keep))
reduce_sum = reduction(lambda x, axes, keep: torch.sum(x, dim=axes, keepdim=keep))
reduce_max = reduction(lambda x, axes, keep: torch.amax(x, dim=axes, keepdim=keep))
reduce_min = reduction(lambda x, axes, keep: torch.amin(x, dim=axes, keepdim=keep))
reduce_l1 = reduction(lambda x, axes, keep: torch.sum(torch.abs(x), dim=axes, keepdim=keep))
reduce_l2 = reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep))
reduce_sum_square = reduction(lambda x, axes, keep: torch.sum(x * x, dim=axes, keepdim=keep))
reduce_log_sum = reduction(lambda x, axes, keep: torch.log(torch.sum(x, dim=axes, keepdim=keep)))
reduce_log_sum_exp = reduction(lambda x, axes, keep: torch.logsumexp(x, dim=axes, keepdim=keep))


def quantise(x: Tensor, *, scale: list[float], low: list[float], high: list[float], axis: int = 1) -> Tensor:
    """The real value that a quantiser's integer stands for; the gradient passes as if it had not been rounded.

    It ends where the range of integers ends. Quantisers drop a Relu whose work that range does, so the bounds are part
    of the network.

    Args:
        scale: of one step, one for all or one a channel of `axis`.
        low, high: the range in steps from zero.

    Source: straight-through estimator, Bengio et al. 2013.
    """
    step = _along(scale, x, axis)
    bounded = torch.minimum(torch.maximum(x, _along(low, x, axis) * step), _along(high, x, axis) * step)
    return bounded + (torch.round(bounded / step) * step - bounded).detach()


def dequantise(x: Tensor, *, scale: list[float], zero_point: list[float], axis: int = 1, anchor: Tensor) -> Tensor:
    """Integers of the model's input to real values; what `quantise` gave is real already."""
    if x.is_floating_point():
        return x
    real = x.to(anchor.dtype)
    return (real - _along(zero_point, real, axis)) * _along(scale, real, axis)


def _along(values: list[float], x: Tensor, axis: int) -> Tensor:
    shape = [1] * x.ndim
    if len(values) > 1:
        shape[axis] = len(values)
    return torch.tensor(values, dtype=x.dtype, device=x.device).reshape(shape)


def scale_features(x: Tensor, *, offset: list[float], scale: list[float]) -> Tensor:
    """scikit-learn's scaler: (x - offset) * scale, by column."""
    return (x - _along(offset, x, -1)) * _along(scale, x, -1)


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function that onnxruntime fused into a convolution.

    Raises:
        ValueError: another one.
    """
    known: dict[str, Callable[[Tensor], Tensor]] = {"": identity, "Relu": F.relu, "Sigmoid": torch.sigmoid}
    known |= {"Tanh": torch.tanh, "LeakyRelu": leaky_relu, "HardSigmoid": hard_sigmoid}
    if name not in known:
        raise ValueError(f"there is no form of the fused activation {name!r}")
    return known[name]


def interpolation(
    size: int, target: int, scale: float, *, mode: str, transform: str, nearest: str, cubic: float
) -> list[list[float]]:
    """Weights [target, size] by which each value of a resized axis is made of the old ones.

    Source: ONNX operator Resize, version 19; edges repeat.

    Raises:
        ValueError: a mode that is not built.
    """
    rows = []
    for index in range(target):
        row = [0.0] * size
        for place, weight in _samples(_coordinate(index, size, target, scale, transform), mode, nearest, cubic):
            row[min(max(place, 0), size - 1)] += weight
        rows.append(row)
    return rows


def _coordinate(index: int, size: int, target: int, scale: float, transform: str) -> float:
    if transform == "half_pixel":
        return (index + 0.5) / scale - 0.5
    if transform == "pytorch_half_pixel":
        return (index + 0.5) / scale - 0.5 if target > 1 else 0.0
    if transform == "asymmetric":
        return index / scale
    if transform == "align_corners":
        return index * (size - 1) / (target - 1) if target > 1 else 0.0
    if transform == "half_pixel_symmetric":
        adjustment = target / (scale * size)
        return size / 2 * (1 - adjustment) + (index + 0.5) / scale - 0.5
    raise ValueError(f"there is no form of coordinates {transform!r}")


def _samples(x: float, mode: str, nearest: str, cubic: float) -> list[tuple[int, float]]:
    below = math.floor(x)
    part = x - below
    if mode == "nearest":
        up = {"floor": False, "ceil": part > 0, "round_prefer_floor": part > 0.5, "round_prefer_ceil": part >= 0.5}
        return [(below + int(up[nearest]), 1.0)]
    if mode == "linear":
        return [(below, 1 - part), (below + 1, part)]
    if mode == "cubic":
        near = [((cubic + 2) * t - (cubic + 3)) * t * t + 1 for t in (part, 1 - part)]
        far = [((cubic * t - 5 * cubic) * t + 8 * cubic) * t - 4 * cubic for t in (1 + part, 2 - part)]
        return list(zip(range(below - 1, below + 3), (far[0], near[0], near[1], far[1]), strict=True))
    raise ValueError(f"there is no form of mode {mode!r}")
