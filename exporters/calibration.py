"""What values each tensor of a graph takes on sample images, streamed: memory does not grow with their number.

Two passes: extremes first, then histograms between them. Both keep one small array a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from exporters.clipping import full_range, least_squares_range
from exporters.errors import ExportError
from exporters.inference import open_model
from exporters.torch_to_onnx import INPUT

Batches = Callable[[int], Iterator[NDArray[np.float32]]]  # batch size -> input tensors, the same images each time
METHODS = ("minmax", "least-squares")
BINS = 1024
HELD_BYTES = 64 * 2**20  # of one batch's tensors
LARGEST_BATCH = 64
BINNED_VALUES = 16384  # of one tensor and batch, evenly spaced: binning all took as long as the network


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observed:
    """Extremes of each tensor, and its histogram between them, int64 [BINS]."""

    lowest: Mapping[str, float]
    highest: Mapping[str, float]
    counts: Mapping[str, NDArray[np.int64]]
    images: int

    def ranges(self, method: str, *, symmetric: bool) -> dict[str, tuple[float, float]]:
        """The range to quantise each tensor over, by one of METHODS."""
        if method not in METHODS:
            raise ValueError(f"there is no calibration method {method!r}; choose from {', '.join(METHODS)}")
        chosen = {}
        for name, low in self.lowest.items():
            high = self.highest[name]
            if method == "minmax" or low == high:
                chosen[name] = full_range(low, high, symmetric=symmetric)
            else:
                chosen[name] = least_squares_range(self.counts[name], low, high, symmetric=symmetric)
        return chosen

    def largest(self) -> tuple[str, float]:
        """The tensor with the largest value, and its size."""
        sizes = {name: max(-low, self.highest[name]) for name, low in self.lowest.items()}
        name = max(sizes, key=lambda n: sizes[n])
        return name, sizes[name]


def observe(model: Any, batches: Batches, *, threads: int) -> Observed:
    """Run the images through the graph twice and keep what its float tensors hold.

    Args:
        model: `input` [N, C, H, W] float32, N free, with inferred shapes.
        batches: gives at least one batch.

    Raises:
        ExportError: a tensor is not finite for some image; names the first in the graph's order.
    """
    names = float_tensors(model)
    session = open_model(_with_outputs(model, names), threads=threads)
    size = _batch_size(session, names, batches)
    lowest, highest, images = _extremes(session, names, batches(size))
    counts = {name: np.zeros(BINS, np.int64) for name in names}
    for values in _runs(session, names, batches(size)):
        for name, tensor in values.items():
            flat = tensor.ravel()
            some = flat[:: max(1, flat.size // BINNED_VALUES)]
            if lowest[name] < highest[name]:
                counts[name] += np.histogram(some, BINS, (lowest[name], highest[name]))[0]
    return Observed(lowest=lowest, highest=highest, counts=counts, images=images)


def float_tensors(model: Any) -> list[str]:
    """Float32 tensors that are not constants, in the graph's order, the input first."""
    graph = model.graph
    typed = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    constants = {output for node in graph.node if node.op_type == "Constant" for output in node.output}
    order = [INPUT, *(name for node in graph.node for name in node.output)]
    return [name for name in order if typed.get(name) == onnx.TensorProto.FLOAT and name not in constants]


def _extremes(
    session: ort.InferenceSession, names: list[str], batches: Iterator[NDArray[np.float32]]
) -> tuple[dict[str, float], dict[str, float], int]:
    lowest = dict.fromkeys(names, np.inf)
    highest = dict.fromkeys(names, -np.inf)
    images = 0
    for values in _runs(session, names, batches):
        images += len(values[INPUT])
        for name, tensor in values.items():
            low, high = float(tensor.min()), float(tensor.max())
            if not np.isfinite(low + high):
                raise ExportError(
                    f"The tensor {name!r} is not finite on a sample image.", "Train the student again.", tensor=name
                )
            lowest[name], highest[name] = min(lowest[name], low), max(highest[name], high)
    return lowest, highest, images


def _runs(
    session: ort.InferenceSession, names: list[str], batches: Iterator[NDArray[np.float32]]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    wanted = [name for name in names if name != INPUT]
    for batch in batches:
        yield {INPUT: batch, **dict(zip(wanted, session.run(wanted, {INPUT: batch}), strict=True))}


def _batch_size(session: ort.InferenceSession, names: list[str], batches: Batches) -> int:
    one = next(_runs(session, names, batches(1)))
    held = sum(tensor.nbytes for tensor in one.values())
    return int(np.clip(HELD_BYTES // held, 1, LARGEST_BATCH))


def _with_outputs(model: Any, names: list[str]) -> Any:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name for value in copy.graph.output}
    typed = {value.name: value for value in copy.graph.value_info}
    copy.graph.output.extend(typed[name] for name in names if name in typed and name not in known)
    return copy
