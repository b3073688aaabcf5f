"""One tensor a class becomes one tensor of all classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from pu_engine.teacher import class_columns


def split_scores(shape: list[Any], *, further: list[Any] | None = None) -> Any:
    """x [N, 3] split into its columns, each an output of `shape`."""
    nodes = [helper.make_node("Split", ["x"], ["a", "b", "c"], axis=1, num_outputs=3)]
    names = ["a", "b", "c"]
    if len(shape) == 1:
        nodes += [helper.make_node("Squeeze", [name, "one"], [name + "1"]) for name in names]
        names = [name + "1" for name in names]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [*outputs, *(further or [])],
        [helper.make_tensor("one", TensorProto.INT64, [1], [1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("shape", [["N"], [None], ["N", 1]])
def test_columns_are_joined_in_the_order_of_the_file(shape: list[Any]) -> None:
    model = class_columns.joined(split_scores(shape))
    onnx.checker.check_model(model)
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    (together,) = ort.InferenceSession(model.SerializeToString()).run([class_columns.JOINED], {"x": rows})
    np.testing.assert_array_equal(together, rows)


def test_names_of_the_file_do_not_clash_with_those_that_are_made() -> None:
    model = split_scores(["N", 1])
    for node in model.graph.node:
        node.output[:] = [f"{class_columns.JOINED}_{index}" for index in range(3)]
    for index, item in enumerate(model.graph.output):
        item.name = f"{class_columns.JOINED}_{index}"
    joined = class_columns.joined(model)
    onnx.checker.check_model(joined)
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    (together,) = ort.InferenceSession(joined.SerializeToString()).run([joined.graph.output[-1].name], {"x": rows})
    np.testing.assert_array_equal(together, rows)


def test_model_with_a_tensor_of_several_classes_is_left_as_it_is() -> None:
    model = split_scores(["N"], further=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])])
    assert class_columns.joined(model) is model
