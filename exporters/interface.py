"""What a file takes and gives: preprocessing inside the graph, probabilities as output, a fixed batch.

Each function takes a graph with `input` [N, C, H, W] float32 and `logits` [N, K] float32 and returns a changed copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from exporters.onnx_file import infer_again
from exporters.torch_to_onnx import BATCH, INPUT, OUTPUT

PROBABILITIES = "probabilities"
PREFIX = "preprocessing_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """How pixels become the network's input: (pixel * scale - mean) / std, channels in the network's order."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reverse: bool  # the network takes BGR, the images are RGB


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """What a file is asked to take and to give."""

    pixels: Pixels | None = None  # uint8 [N, H, W, C] in, prepared inside the graph
    softmax: bool = False  # `probabilities` out instead of `logits`
    batch: int | None = None  # None: free


def wrap(model: Any, interface: Interface) -> Any:
    """The graph with the interface asked for."""
    if interface.pixels is not None:
        model = take_pixels(model, interface.pixels)
    if interface.softmax:
        model = give_probabilities(model)
    if interface.batch is not None:
        model = fix_batch(model, interface.batch)
    return model


def take_pixels(model: Any, pixels: Pixels) -> Any:
    """Put the preprocessing in front: `input` becomes uint8 [N, H, W, C], in RGB order or gray."""
    changed = _copy(model)
    graph, make = changed.graph, onnx.helper
    (source,) = (value for value in graph.input if value.name == INPUT)
    batch, channels, height, width = source.type.tensor_type.shape.dim
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == INPUT:
                node.input[index] = f"{PREFIX}output"
    shape = (1, len(pixels.mean), 1, 1)
    constants = {
        "scale": np.float32(pixels.scale),
        "mean": np.asarray(pixels.mean, np.float32).reshape(shape),
        "std": np.asarray(pixels.std, np.float32).reshape(shape),
    }
    steps = [("Cast", [INPUT], {"to": onnx.TensorProto.FLOAT}), ("Transpose", [], {"perm": [0, 3, 1, 2]})]
    if pixels.reverse:
        constants["order"] = np.arange(channels.dim_value, dtype=np.int64)[::-1].copy()
        steps.append(("Gather", [f"{PREFIX}order"], {"axis": 1}))
    # The same three roundings as outside of the graph: the logits stay those that the accuracy was measured with.
    steps += [("Mul", [f"{PREFIX}scale"], {}), ("Sub", [f"{PREFIX}mean"], {}), ("Div", [f"{PREFIX}std"], {})]
    nodes, before = [], ""
    for index, (operator, inputs, attributes) in enumerate(steps):
        after = f"{PREFIX}output" if index == len(steps) - 1 else f"{PREFIX}{index}"
        taken = [before, *inputs] if before else inputs
        nodes.append(make.make_node(operator, taken, [after], f"{PREFIX}{operator.lower()}", **attributes))
        before = after
    kept = list(graph.node)
    graph.ClearField("node")
    graph.node.extend([*nodes, *kept])
    graph.initializer.extend(onnx.numpy_helper.from_array(v, f"{PREFIX}{name}") for name, v in constants.items())
    first = batch.dim_param or batch.dim_value
    sizes = [first, height.dim_value, width.dim_value, channels.dim_value]
    source.CopyFrom(make.make_tensor_value_info(INPUT, onnx.TensorProto.UINT8, sizes))
    return infer_again(changed)


def give_probabilities(model: Any) -> Any:
    """Put a softmax behind the logits; the output is called `probabilities`."""
    changed = _copy(model)
    graph, make = changed.graph, onnx.helper
    (sink,) = (value for value in graph.output if value.name == OUTPUT)
    graph.node.append(make.make_node("Softmax", [OUTPUT], [PROBABILITIES], "softmax", axis=1))
    sink.name = PROBABILITIES
    return infer_again(changed)


def fix_batch(model: Any, batch: int) -> Any:
    """Give the free batch a number, in inputs, outputs and all that follows from them."""
    changed = _copy(model)
    for value in (*changed.graph.input, *changed.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        if first.dim_param == BATCH:
            first.dim_value = batch
    return infer_again(changed)


def _copy(model: Any) -> Any:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
