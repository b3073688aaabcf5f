"""Torch forms of ONNX operators that move values: reshape, slice, pad, resize; the twin's table names them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pu_engine.twin.arithmetic import Number, first, interpolation

LARGEST_MATRIX = 2**22  # values by which a resize multiplies; of 2,048 by 2,048 pixels


def reshape(x: Tensor, *, shape: Sequence[int], allowzero: int = 0) -> Tensor:
    """A new shape; 0 keeps the input's own dimension unless `allowzero`."""
    kept = [x.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(shape)]
    return x.reshape(kept)


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Two dimensions: those before `axis` and the others."""
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    """Axes in another order; reversed where none is given."""
    return x.permute(list(perm) if perm is not None else list(range(x.ndim))[::-1])


def squeeze(x: Tensor, *, axes: Sequence[int] | None = None) -> Tensor:
    """Without the named axes of size 1.

    Raises:
        ValueError: no axes are named: a batch of 1 would lose its first.
    """
    if axes is None:
        raise ValueError("it removes every axis of size 1, so a batch of one image has another shape")
    return torch.squeeze(x, dim=tuple(axes))


def unsqueeze(x: Tensor, *, axes: Sequence[int]) -> Tensor:
    """With new axes of size 1, numbered in the result."""
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def concat(*values: Tensor, axis: int) -> Tensor:
    """Tensors one after another along an axis."""
    return torch.cat(values, dim=axis)


def split(x: Tensor, *, num_outputs: int, axis: int = 0, split: Sequence[int] | None = None) -> tuple[Tensor, ...]:
    """Parts along an axis, of the given sizes or equal ones."""
    return torch.split(x, list(split) if split else -(-x.shape[axis] // num_outputs), dim=axis)


def slice_axes(
    x: Tensor,
    *,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> Tensor:
    """Parts of axes, as Python slices them; torch has no steps below zero, so those pick by index."""
    pairs = zip(starts, ends, axes or range(len(starts)), steps or [1] * len(starts), strict=True)
    for start, end, axis, step in pairs:
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(start, end, step),)]
        else:
            x = _pick(x, axis, list(range(*slice(start, end, step).indices(x.shape[axis]))))
    return x


def _pick(x: Tensor, axis: int, places: list[int]) -> Tensor:
    return x.index_select(axis, torch.tensor(places, dtype=torch.int64, device=x.device))


def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Entries of an axis, whose place takes the indices' shape; below zero counts from the end."""
    axis = axis % x.ndim
    places = torch.where(indices < 0, indices + x.shape[axis], indices).to(torch.int64)
    picked = x.index_select(axis, places.reshape(-1))
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def expand(x: Tensor, *, shape: Sequence[int]) -> Tensor:
    """Repeated along axes of size 1, and along new first ones."""
    rank = max(x.ndim, len(shape))
    ours = [1] * (rank - x.ndim) + list(x.shape)
    theirs = [1] * (rank - len(shape)) + list(shape)
    return x.expand([b if a == 1 else a for a, b in zip(ours, theirs, strict=True)])


def tile(x: Tensor, *, repeats: Sequence[int]) -> Tensor:
    """Repeated so many times along each axis."""
    return x.repeat(list(repeats))


def constant_of_shape(*, shape: Sequence[int], value: Number = 0.0, anchor: Tensor) -> Tensor:
    """One value everywhere; a float in the type of the weights."""
    dtype = anchor.dtype if isinstance(value, float) else torch.bool if isinstance(value, bool) else torch.int64
    return torch.full(list(shape), value, dtype=dtype, device=anchor.device)


def arange(*, start: Number, limit: Number, delta: Number, anchor: Tensor) -> Tensor:
    """Numbers from start to before the limit; torch's own type for whole ones, that of the weights for others."""
    whole = not any(isinstance(value, float) for value in (start, limit, delta))
    return torch.arange(start, limit, delta, dtype=torch.int64 if whole else anchor.dtype, device=anchor.device)


def pad(
    x: Tensor,
    *,
    pads: Sequence[int],
    mode: str = "constant",
    value: object = None,
    axes: Sequence[int] | None = None,
) -> Tensor:
    """More values around, or fewer where a pad is below zero.

    Raises:
        ValueError: a mode that is not built, or a crop in a mode other than constant.
    """
    chosen = [a % x.ndim for a in axes] if axes else list(range(x.ndim))
    around = {axis: (pads[i], pads[i + len(chosen)]) for i, axis in enumerate(chosen)}
    if mode == "constant":
        fill = first(value) or 0.0
        return F.pad(x, [n for axis in reversed(range(x.ndim)) for n in around.get(axis, (0, 0))], value=fill)
    for axis, (before, after) in around.items():
        if before or after:
            x = _pick(x, axis, _padded_places(x.shape[axis], before, after, mode))
    return x


def _padded_places(size: int, before: int, after: int, mode: str) -> list[int]:
    if before < 0 or after < 0:
        raise ValueError(f"it crops in mode {mode!r}")
    places = range(-before, size + after)
    if mode == "edge":
        return [min(max(i, 0), size - 1) for i in places]
    if mode == "wrap":
        return [i % size for i in places]
    if mode == "reflect":
        period = max(1, 2 * size - 2)
        return [min(i % period, period - i % period) for i in places]
    raise ValueError(f"there is no form of mode {mode!r}")


def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels become blocks of pixels."""
    n, c, h, w = x.shape
    rest = c // blocksize**2
    shape = (n, blocksize, blocksize, rest, h, w) if mode == "DCR" else (n, rest, blocksize, blocksize, h, w)
    order = (0, 3, 4, 1, 5, 2) if mode == "DCR" else (0, 1, 4, 2, 5, 3)
    return x.reshape(shape).permute(order).reshape(n, rest, h * blocksize, w * blocksize)


def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    """Blocks of pixels become channels."""
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, c * blocksize**2, h // blocksize, w // blocksize)


def resize(
    x: Tensor,
    *,
    roi: object = None,
    scales: Sequence[float] | None = None,
    sizes: Sequence[int] | None = None,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    keep_aspect_ratio_policy: str = "stretch",
) -> Tensor:
    """Another size along axes, each in turn by a matrix, so that any layout and mode is one product.

    Raises:
        ValueError: antialiasing, exclusion of what lies outside, a kept aspect ratio, or too large an axis.
    """
    if antialias or exclude_outside or keep_aspect_ratio_policy != "stretch":
        raise ValueError("it resizes with antialiasing, exclusion of what lies outside, or a kept aspect ratio")
    chosen = [a % x.ndim for a in axes] if axes else list(range(x.ndim))
    for place, axis in enumerate(chosen):
        size = x.shape[axis]
        scale = sizes[place] / size if sizes else float(scales[place]) if scales else 1.0
        target = int(sizes[place]) if sizes else math.floor(size * scale)
        if target == size and scale == 1.0:
            continue
        if size * target > LARGEST_MATRIX:
            raise ValueError(f"it resizes an axis from {size} to {target}")
        matrix = _matrix(
            size,
            target,
            scale,
            mode=mode,
            transform=coordinate_transformation_mode,
            nearest=nearest_mode,
            cubic=cubic_coeff_a,
        )
        product = torch.tensordot(x, matrix.to(x), dims=([axis], [1]))
        x = product.movedim(-1, axis)
    return x


@functools.lru_cache(maxsize=64)
def _matrix(size: int, target: int, scale: float, *, mode: str, transform: str, nearest: str, cubic: float) -> Tensor:
    rows = interpolation(size, target, scale, mode=mode, transform=transform, nearest=nearest, cubic=cubic)
    return torch.tensor(rows, dtype=torch.float64)


def upsample(x: Tensor, *, scales: Sequence[float], mode: str = "nearest") -> Tensor:
    """Resize as it was up to operator set 10."""
    return resize(
        x,
        scales=scales,
        mode="linear" if mode == "bilinear" else mode,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
