"""What can be counted on a teacher's graph: parameters and multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import onnx
from numpy.typing import NDArray

from pu_engine.teacher.graph_surgery import data_tensors, producers

CONVOLUTIONS = ("Conv", "ConvInteger", "QLinearConv", "FusedConv")
PRODUCTS = ("Gemm", "MatMul", "MatMulInteger", "QGemm", "QLinearMatMul", "FusedMatMul", "FusedGemm")
WEIGHT_POSITION = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}  # after scale and zero point of the data
SHAPE_KEEPING = ("DequantizeLinear", "Cast", "Identity")
NOT_WEIGHTS = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL)  # shapes, axes and masks

Shape = tuple[int, ...]


def parameters(model: Any) -> int:
    """Numbers in the weights; shapes and axes do not count. Operators of ai.onnx.ml hold theirs as attributes."""
    weights: int = sum(math.prod(t.dims) for t in model.graph.initializer if t.data_type not in NOT_WEIGHTS)
    learned = (node for node in model.graph.node if node.domain == "ai.onnx.ml")
    return weights + sum(len(attribute.floats) for node in learned for attribute in node.attribute)


def shape_names(model: Any) -> list[str]:
    """Tensors whose shapes `macs` needs to have observed, without the model's input."""
    data, known = data_tensors(model), _weight_shapes(model)
    names: dict[str, None] = {}
    for node in _counted(model):
        wanted = (node.output[0], node.input[0], node.input[_weight_position(node)])
        names.update(dict.fromkeys(n for n in wanted if n not in known))
    made = producers(model)
    return [name for name in names if name in made or name not in data]


def macs(model: Any, observed: Mapping[str, NDArray[Any]], batch: int) -> int:
    """Multiply-accumulates for one image: convolutions and matrix products, from observed shapes.

    Args:
        observed: values of `shape_names` and of the model's input in a run of `batch` images.
    """
    shapes: dict[str, Shape] = {name: tuple(value.shape) for name, value in observed.items()}
    shapes |= _weight_shapes(model)
    total = 0
    for node in _counted(model):
        out, first = math.prod(shapes[node.output[0]]), shapes[node.input[0]]
        if node.op_type in CONVOLUTIONS:
            total += out * math.prod(shapes[node.input[_weight_position(node)]][1:])
        elif node.op_type == "ConvTranspose":
            total += math.prod(first) * math.prod(shapes[node.input[1]][1:])
        else:
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            total += out * (first[-2] if transposed else first[-1])
    return total // batch


def _counted(model: Any) -> list[Any]:
    data = data_tensors(model)
    kinds = (*CONVOLUTIONS, *PRODUCTS, "ConvTranspose")
    return [node for node in model.graph.node if node.op_type in kinds and data.intersection(node.output)]


def _weight_position(node: Any) -> int:
    return WEIGHT_POSITION.get(node.op_type, 1)


def _weight_shapes(model: Any) -> dict[str, Shape]:
    """Shapes of initialisers, and of what only dequantises or casts one."""
    shapes: dict[str, Shape] = {t.name: tuple(t.dims) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in SHAPE_KEEPING and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    return shapes
