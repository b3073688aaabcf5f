"""An fp32 graph to fp16: weights and arithmetic in half precision, inputs and outputs as they were.

The types stand in the file, so a strongly typed builder (TensorRT 10 and 11, TensorRT-RTX) keeps them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from exporters.errors import ExportError
from exporters.onnx_file import infer_again

LARGEST = 65504.0  # of a half-precision number
ACTIVATION_LIMIT = 3e4  # half of it: sums inside of a layer go beyond what a layer gives out
FLOAT, HALF = 1, 10  # onnx.TensorProto's numbers
FLOAT_ONLY_INPUTS = {"Resize": (1, 2)}  # region and scales are float32 by the operator's definition
REMEDY = "Use the fp32 file, or the int8 ones."


def to_half(model: Any) -> Any:
    """A copy of a graph of float32 that computes in float16; float32 inputs and outputs stay, with a Cast at each.

    Raises:
        ExportError: a weight is larger than half precision holds, or the graph has subgraphs.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    kept = _float_only(graph)
    for tensor in graph.initializer:
        if tensor.data_type == FLOAT and tensor.name not in kept:
            tensor.CopyFrom(_half_tensor(tensor, tensor.name))
    for node in graph.node:
        _convert_attributes(node, kept)
    before = [_cast_input(graph, value) for value in graph.input if _is_float(value)]
    after = [_cast_output(graph, value) for value in graph.output if _is_float(value)]
    nodes = [*before, *graph.node, *after]
    graph.ClearField("node")
    graph.node.extend(nodes)
    return infer_again(half)


def _float_only(graph: Any) -> set[str]:
    """Tensors that an operator takes as float32 only."""
    return {
        node.input[index]
        for node in graph.node
        for index in FLOAT_ONLY_INPUTS.get(node.op_type, ())
        if index < len(node.input) and node.input[index]
    }


def _convert_attributes(node: Any, kept: set[str]) -> None:
    for attribute in node.attribute:
        if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            raise ExportError(
                f"The node {node.name!r} ({node.op_type}) has a subgraph, which is not converted to fp16.",
                REMEDY,
                node=node.name,
            )
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT:
            attribute.i = HALF
        if node.op_type not in ("Constant", "ConstantOfShape") or kept.intersection(node.output):
            continue
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == FLOAT:
            attribute.t.CopyFrom(_half_tensor(attribute.t, node.name))
        elif attribute.name in ("value_float", "value_floats"):
            value = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            tensor = onnx.numpy_helper.from_array(np.asarray(value, np.float32))
            attribute.CopyFrom(onnx.helper.make_attribute("value", _half_tensor(tensor, node.name)))


def _half_tensor(tensor: Any, name: str) -> Any:
    values = onnx.numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0.0))
    infinite = bool(np.isinf(values).any())  # a mask's -inf is one in half precision too
    if largest > LARGEST and not infinite:
        raise ExportError(
            f"{name!r} holds {largest:.4g}; half precision ends at {LARGEST:g}.", REMEDY, tensor=name, largest=largest
        )
    return onnx.numpy_helper.from_array(values.astype(np.float16), tensor.name)


def _is_float(value: Any) -> bool:
    return bool(value.type.tensor_type.elem_type == FLOAT)


def _cast_input(graph: Any, value: Any) -> Any:
    name = f"{value.name}_half"
    for node in graph.node:
        for index, read in enumerate(node.input):
            if read == value.name:
                node.input[index] = name
    return onnx.helper.make_node("Cast", [value.name], [name], f"{value.name}_to_half", to=HALF)


def _cast_output(graph: Any, value: Any) -> Any:
    name = f"{value.name}_half"
    for node in graph.node:
        for names in (node.input, node.output):
            for index, used in enumerate(names):
                if used == value.name:
                    names[index] = name
    return onnx.helper.make_node("Cast", [name], [value.name], f"{value.name}_to_float", to=FLOAT)
