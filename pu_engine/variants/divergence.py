"""Where an ONNX file parts from the torch network that it was made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exporters.tensor_comparison import intermediate, relative_error, tensors
from exporters.torch_to_onnx import INPUT, merge_branches


def first_difference(
    module: nn.Module, model: Any, values: NDArray[np.float32], feed: NDArray[Any], *, tolerance: float
) -> str:
    """The layer from which on no tensor of the file equals what torch computes.

    A layer counts as equal where some tensor of its shape in the file is; one whose arithmetic was folded into another
    has none, so the answer is the layer after the last equal one.

    Args:
        values: the network's input [n, C, H, W].
        feed: the same images as the file takes them.
        tolerance: of the relative error.
    """
    layers = layer_outputs(merge_branches(module).eval(), values)
    found = intermediate(model, tensors(model), {INPUT: feed})
    equal = [
        any(other.size == value.size and _error(value, other) <= tolerance for other in found.values())
        for _, value in layers
    ]
    last = max((index for index, same in enumerate(equal) if same), default=-1)
    if last == len(layers) - 1:
        return f"behind {layers[last][0]}, the last layer"
    before = f", {layers[last][0]} before it is equal" if last >= 0 else ""
    return f"{layers[last + 1][0]}{before}"


def layer_outputs(module: nn.Module, values: NDArray[np.float32]) -> list[tuple[str, NDArray[np.float32]]]:
    """What each layer without layers of its own gives, in the order of the arithmetic."""
    seen: list[tuple[str, NDArray[np.float32]]] = []

    def watch(name: str) -> Any:
        def note(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                seen.append((name, output.detach().numpy().copy()))

        return note

    leaves = [(name, layer) for name, layer in module.named_modules() if not list(layer.children())]
    handles = [layer.register_forward_hook(watch(name)) for name, layer in leaves]
    try:
        with torch.no_grad():
            module(torch.from_numpy(values))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _error(value: NDArray[Any], other: NDArray[Any]) -> float:
    return relative_error(value.reshape(len(value), -1), other.reshape(len(value), -1))
