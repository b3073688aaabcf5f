"""Parameters and multiply-accumulates, against counts by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from pu_engine.runtime import forward
from pu_engine.teacher import facts


def test_parameters_of_machine_learning_operators_are_their_attributes() -> None:
    node = helper.make_node(
        "LinearClassifier", ["x"], ["y", "z"], domain="ai.onnx.ml", coefficients=[1.0] * 6, intercepts=[0.0] * 2
    )
    graph = helper.make_graph([node], "g", [], [])
    assert facts.parameters(helper.make_model(graph)) == 8


def model_of(nodes: list[Any], weights: dict[str, Any], shape: list[int]) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def macs_of(model: Any, shape: tuple[int, ...]) -> int:
    rows = np.ones(shape, np.float32)
    observed = {**forward.observe(model, facts.shape_names(model), rows, 1), "input": rows}
    return facts.macs(model, observed, shape[0])


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


def test_convolution_and_matrix_are_counted() -> None:
    nodes = [
        helper.make_node("Conv", ["input", "k", "b"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["logits"]),
    ]
    model = model_of(nodes, {"k": zeros(4, 3, 3, 3), "b": zeros(4), "w": zeros(64, 10)}, [1, 3, 8, 8])
    assert facts.parameters(model) == 4 * 27 + 4 + 640
    assert macs_of(model, (1, 3, 8, 8)) == 4 * 4 * 4 * 27 + 640


def test_groups_divide_the_cost() -> None:
    nodes = [helper.make_node("Conv", ["input", "k"], ["logits"], group=6)]
    model = model_of(nodes, {"k": zeros(6, 1, 3, 3)}, [1, 6, 5, 5])
    assert macs_of(model, (1, 6, 5, 5)) == 6 * 3 * 3 * 9


def test_transposed_convolution_counts_by_its_input() -> None:
    nodes = [helper.make_node("ConvTranspose", ["input", "k"], ["logits"], strides=[2, 2])]
    model = model_of(nodes, {"k": zeros(2, 5, 2, 2)}, [1, 2, 3, 3])
    assert macs_of(model, (1, 2, 3, 3)) == 2 * 3 * 3 * 5 * 4


@pytest.mark.parametrize("batch", [1, 3])
def test_cost_is_that_of_one_image(batch: int) -> None:
    nodes = [helper.make_node("MatMul", ["input", "w"], ["logits"])]
    assert macs_of(model_of(nodes, {"w": zeros(4, 7)}, [batch, 4]), (batch, 4)) == 28


def test_attention_products_of_two_data_tensors_count() -> None:
    nodes = [
        helper.make_node("Transpose", ["input"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["input", "t"], ["logits"]),
    ]
    assert macs_of(model_of(nodes, {}, [1, 5, 4]), (1, 5, 4)) == 5 * 5 * 4


def test_shapes_are_no_parameters_and_dequantised_weights_have_shapes() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["k"]),
        helper.make_node("Conv", ["input", "k"], ["c"]),
        helper.make_node("Reshape", ["c", "shape"], ["logits"]),
    ]
    weights = {"q": np.zeros((2, 3, 1, 1), np.int8), "s": np.float32(1), "shape": np.array([0, -1])}
    model = model_of(nodes, weights, [1, 3, 2, 2])
    assert facts.parameters(model) == 6 + 1
    assert "k" not in facts.shape_names(model)
    assert macs_of(model, (1, 3, 2, 2)) == 2 * 4 * 3
