"""Scores that a file gives as one tensor a class become one tensor [N, K]."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pu_engine.guard.graph_walk import graphs_of

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
FEWEST = 2
JOINED = "class_columns"


def joined(model: Any) -> Any:
    """A copy with the columns as one more output, in the order of the file; the model itself where there are none.

    Columns are outputs of one float type, [N] or [N, 1], at least two of them, where no output has more columns.
    """
    outputs = [item for item in model.graph.output if item.type.tensor_type.elem_type in FLOATS]
    columns = [item for item in outputs if _is_column(item)]
    types = {item.type.tensor_type.elem_type for item in columns}
    if len(columns) < FEWEST or len(types) != 1 or len(columns) < len(outputs):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    name = _free_prefix(model)
    shape = numpy_helper.from_array(np.array([-1, 1], np.int64), f"{name}_shape")
    result.graph.initializer.append(shape)
    parts = []
    for index, item in enumerate(columns):
        parts.append(f"{name}_{index}")
        result.graph.node.append(helper.make_node("Reshape", [item.name, shape.name], [parts[-1]]))
    result.graph.node.append(helper.make_node("Concat", parts, [name], axis=1))
    result.graph.output.append(helper.make_tensor_value_info(name, types.pop(), ["N", len(columns)]))
    return result


def _free_prefix(model: Any) -> str:
    """A name that no name of the model begins with, so that all names made of it are new."""
    taken = {item.name for item in (*model.graph.input, *model.graph.output)}
    for graph in graphs_of(model.graph):
        taken |= {item.name for item in (*graph.input, *graph.initializer)}
        taken |= {name for node in graph.node for name in (*node.input, *node.output)}
    prefixes = (JOINED + "_" * length for length in range(len(taken) + 1))
    return next(prefix for prefix in prefixes if not any(name.startswith(prefix) for name in taken))


def _is_column(item: Any) -> bool:
    tensor = item.type.tensor_type
    sizes = [dimension.dim_value for dimension in tensor.shape.dim]
    return tensor.HasField("shape") and (len(sizes) == 1 or sizes[1:] == [1])
