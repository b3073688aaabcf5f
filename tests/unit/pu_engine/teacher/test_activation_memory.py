"""Peak of live bytes, against sweeps by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from pu_engine.teacher.activation_memory import observed_sizes, peak_live_bytes


def build(nodes: list[Any], shape: list[Any], weights: dict[str, Any] | None = None) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def peak(model: Any, shape: tuple[int, ...]) -> int:
    return peak_live_bytes(model, observed_sizes(model, np.ones(shape, np.float32), 1))


def test_chain_holds_two_tensors_at_a_time() -> None:
    nodes = [
        helper.make_node("Relu", ["input"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Relu", ["b"], ["logits"]),
    ]
    assert peak(build(nodes, [1, 10]), (1, 10)) == 2 * 40


def test_skip_connection_keeps_its_source_alive() -> None:
    nodes = [
        helper.make_node("Relu", ["input"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["logits"]),
    ]
    assert peak(build(nodes, [1, 10]), (1, 10)) == 3 * 40  # at the addition: a, b and the sum


def test_wide_middle_is_the_peak() -> None:
    nodes = [helper.make_node("MatMul", ["input", "w"], ["a"]), helper.make_node("MatMul", ["a", "v"], ["logits"])]
    weights = {"w": np.zeros((4, 100), np.float32), "v": np.zeros((100, 3), np.float32)}
    assert peak(build(nodes, [1, 4], weights), (1, 4)) == 4 * (100 + 4)  # weights do not count


def test_views_share_memory_and_keep_their_owner_alive() -> None:
    nodes = [
        helper.make_node("Relu", ["input"], ["a"]),
        helper.make_node("Flatten", ["a"], ["f"]),
        helper.make_node("Identity", ["f"], ["g"]),
        helper.make_node("Relu", ["g"], ["logits"]),
    ]
    assert peak(build(nodes, [1, 2, 5]), (1, 2, 5)) == 2 * 40


def test_types_count_by_their_width_and_shapes_not_at_all() -> None:
    nodes = [
        helper.make_node("Cast", ["input"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Shape", ["half"], ["s"]),
        helper.make_node("Cast", ["half"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Reshape", ["wide", "s"], ["logits"]),
    ]
    model = build(nodes, [1, 10])
    sizes = observed_sizes(model, np.ones((1, 10), np.float32), 1)
    assert sizes == {"input": 40, "half": 20, "wide": 80, "logits": 80}
    assert peak_live_bytes(model, sizes) == 100


@pytest.mark.parametrize("batch", [1, 3])
def test_sizes_are_those_of_the_batch_that_was_run(batch: int) -> None:
    model = build([helper.make_node("Relu", ["input"], ["logits"])], ["N", 5])
    assert peak(model, (batch, 5)) == 2 * 20 * batch


def test_names_that_look_like_ours_do_no_harm() -> None:
    nodes = [helper.make_node("Relu", ["input"], ["shape_0"]), helper.make_node("Relu", ["shape_0"], ["logits"])]
    assert peak(build(nodes, [1, 5]), (1, 5)) == 40
