"""Torch forms of ONNX operators that have weights or windows: products, convolutions, pools, normalisations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pu_engine.twin.arithmetic import activation

CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
MAX_POOLS: dict[int, Callable[..., Tensor]] = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}
AVERAGE_POOLS: dict[int, Callable[..., Tensor]] = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}
Pads = list[tuple[int, int]]


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product as NumPy has it."""
    return torch.matmul(a, b)


def fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    trans_a: int = 0,
    trans_b: int = 0,
    trans_batch_a: int = 0,
    trans_batch_b: int = 0,
) -> Tensor:
    """onnxruntime's product with transposed operands.

    Raises:
        ValueError: transposed batches.
    """
    if trans_batch_a or trans_batch_b:
        raise ValueError("it transposes batches")
    return alpha * torch.matmul(a.transpose(-1, -2) if trans_a else a, b.transpose(-1, -2) if trans_b else b)


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    trans_a: int = 0,
    trans_b: int = 0,
) -> Tensor:
    """alpha * a b + beta * c."""
    left, right = a.T if trans_a else a, b.T if trans_b else b
    if c is None:
        return alpha * (left @ right)
    return torch.addmm(c, left, right, beta=beta, alpha=alpha)


def einsum(*values: Tensor, equation: str) -> Tensor:
    """Einstein's sum."""
    return torch.einsum(equation, *values)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    group: int = 1,
) -> Tensor:
    """Convolution [N, C, ...] in one to three dimensions."""
    kernel = list(weight.shape[2:])
    strides, dilations = list(strides or [1] * len(kernel)), list(dilations or [1] * len(kernel))
    around = _pads(list(x.shape[2:]), kernel, strides, dilations, pads=pads, auto=auto_pad)
    if any(before != after for before, after in around):
        x, around = F.pad(x, _flat(around)), [(0, 0)] * len(kernel)
    return CONVOLUTIONS[x.ndim](x, weight, bias, strides, [before for before, _ in around], dilations, group)


def fused_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, added: Tensor | None = None, *, activation: str = "",
    **settings: object,
) -> Tensor:  # fmt: skip
    """onnxruntime's convolution with the addition and the activation that followed it.

    Raises:
        ValueError: an activation that is not built, or one with parameters.
    """
    result = conv(x, weight, bias, **settings)  # type: ignore[arg-type]
    return _activated(activation, result if added is None else result + added)


def _activated(name: str, x: Tensor) -> Tensor:
    return activation(name)(x)


def _pads(
    sizes: list[int],
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    *,
    pads: Sequence[int] | None,
    auto: str,
) -> Pads:
    """Values added before and after each spatial axis."""
    if auto in ("NOTSET", ""):
        flat = list(pads) if pads else [0] * (2 * len(kernel))
        return list(zip(flat[: len(kernel)], flat[len(kernel) :], strict=True))
    if auto == "VALID":
        return [(0, 0)] * len(kernel)
    result = []
    for size, window, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        missing = max(0, (-(-size // stride) - 1) * stride + (window - 1) * dilation + 1 - size)
        less, more = missing // 2, missing - missing // 2
        result.append((less, more) if auto == "SAME_UPPER" else (more, less))
    return result


def _flat(around: Pads) -> list[int]:
    """Pads in torch's order: the last axis first."""
    return [n for pair in reversed(around) for n in pair]


def _native(around: Pads, kernel: list[int]) -> bool:
    """Whether torch's own padding does: equal on both sides and at most half a window."""
    return all(before == after <= window // 2 for (before, after), window in zip(around, kernel, strict=True))


def max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    storage_order: int = 0,
) -> Tensor:
    """Largest value of each window.

    Raises:
        ValueError: rounding up with pads that torch has no form of.
    """
    kernel = list(kernel_shape)
    strides, dilations = list(strides or [1] * len(kernel)), list(dilations or [1] * len(kernel))
    around = _pads(list(x.shape[2:]), kernel, strides, dilations, pads=pads, auto=auto_pad)
    if not _native(around, kernel):
        if ceil_mode:
            raise ValueError("it rounds its size up with uneven pads")
        x, around = F.pad(x, _flat(around), value=-math.inf), [(0, 0)] * len(kernel)
    padding = [before for before, _ in around]
    return MAX_POOLS[x.ndim](x, kernel, strides, padding, dilations, ceil_mode=bool(ceil_mode))


def average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
) -> Tensor:
    """Mean of each window.

    Raises:
        ValueError: dilated windows, or rounding up with pads that torch has no form of.
    """
    if any(d != 1 for d in dilations or ()):
        raise ValueError("its windows are dilated")
    kernel = list(kernel_shape)
    strides = list(strides or [1] * len(kernel))
    pool = AVERAGE_POOLS[x.ndim]
    around = _pads(list(x.shape[2:]), kernel, strides, [1] * len(kernel), pads=pads, auto=auto_pad)
    if _native(around, kernel):
        padding = [before for before, _ in around]
        return pool(x, kernel, strides, padding, bool(ceil_mode), bool(count_include_pad))
    if ceil_mode:
        raise ValueError("it rounds its size up with uneven pads")
    mean = pool(F.pad(x, _flat(around)), kernel, strides)
    if count_include_pad:
        return mean
    inside = F.pad(torch.ones_like(x[:1, :1]), _flat(around))
    return mean / pool(inside, kernel, strides)


def global_average_pool(x: Tensor) -> Tensor:
    """Mean over all pixels, which stay as axes of size 1."""
    return x.mean(dim=list(range(2, x.ndim)), keepdim=True)


def global_max_pool(x: Tensor) -> Tensor:
    """Largest of all pixels, which stay as axes of size 1."""
    return x.amax(dim=list(range(2, x.ndim)), keepdim=True)


def batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
) -> Tensor:
    """Normalisation by the stored statistics, in training too: they are the teacher's.

    Raises:
        ValueError: the graph asks for the batch's own statistics, or for some of each pixel.
    """
    if training_mode or not spatial:
        raise ValueError("it normalises by statistics of the batch or of single pixels")
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Normalisation of each image's channels."""
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def layer_norm(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Normalisation over the axes from `axis` on."""
    normal = F.layer_norm(x, x.shape[axis:], eps=epsilon) * scale
    return normal if bias is None else normal + bias


def rms_norm(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    """Division by the root mean square over the axes from `axis` on."""
    return F.rms_norm(x, x.shape[axis:], eps=epsilon) * scale


def group_norm(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Normalisation over groups of channels; before operator set 21 scale and bias are one a group."""
    repeats = x.shape[1] // scale.numel()
    if repeats > 1:
        scale, bias = scale.repeat_interleave(repeats), bias.repeat_interleave(repeats)
    return F.group_norm(x, num_groups, scale, bias, epsilon)


def lp_norm(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Division by the p-norm along an axis."""
    return F.normalize(x, p=float(p), dim=axis)


def local_response_norm(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:  # fmt: skip
    """Division by a power of the mean square of neighbouring channels."""
    squares = (x * x).flatten(2).transpose(1, 2)  # channels last, so that a pool can slide over them
    padded = F.pad(squares, ((size - 1) // 2, size // 2))
    mean = F.avg_pool1d(padded, size, 1).transpose(1, 2).reshape(x.shape)
    return x / (bias + alpha * mean) ** beta


def skip_layer_norm(
    x: Tensor, skip: Tensor, scale: Tensor, beta: Tensor | None = None, bias: Tensor | None = None, *,
    epsilon: float = 1e-12,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """onnxruntime's sum and normalisation in one; the sum is its fourth output."""
    added = x + skip if bias is None else x + skip + bias
    return layer_norm(added, scale, beta, epsilon=epsilon), None, None, added
