"""Taps: single-tensor cuts, layouts by what made a tensor, pooling inside the graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from pu_engine.runtime import forward
from pu_engine.teacher import taps
from pu_engine.teacher.graph_surgery import INPUT, LOGITS
from pu_engine.types import Tap

FLOAT = TensorProto.FLOAT


def build(nodes: list[Any], weights: dict[str, Any], shape: list[Any], classes: int = 3, opset: int = 17) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(INPUT, FLOAT, shape)],
        [helper.make_tensor_value_info(LOGITS, FLOAT, [shape[0], classes])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def residual(opset: int = 17) -> Any:
    """Two resolutions; inside the residual block two tensors live, so nothing in it is a cut."""
    generator = np.random.default_rng(0)
    pad = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", [INPUT, "k1"], ["c1"], **pad),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "k2"], ["c2"], **pad),
        helper.make_node("Relu", ["c2"], ["inner"]),
        helper.make_node("Add", ["inner", "r1"], ["sum"]),
        helper.make_node("Conv", ["sum", "k2"], ["c3"], strides=[2, 2], **pad),
        helper.make_node("Relu", ["c3"], ["r3"]),
        helper.make_node("GlobalAveragePool", ["r3"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["z"]),
        helper.make_node("Identity", ["z"], [LOGITS]),
    ]
    weights = {
        "k1": generator.normal(size=(5, 3, 3, 3)).astype(np.float32),
        "k2": generator.normal(size=(5, 5, 3, 3)).astype(np.float32),
        "w": generator.normal(size=(5, 3)).astype(np.float32),
    }
    return build(nodes, weights, ["N", 3, 8, 8], opset=opset)


def chosen(model: Any, shape: tuple[int, ...], layout: str = "NCHW") -> list[Tap]:
    names = taps.candidates(model)
    rows = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    return taps.choose(model, names, forward.observe(model, [*names, LOGITS], rows, 1), layout)


def test_cuts_are_where_one_tensor_lives() -> None:
    assert taps.cuts(residual()) == ["c1", "r1", "sum", "c3", "r3", "p", "f", "z", LOGITS]


def test_last_cut_of_each_resolution_and_the_vector_are_tapped() -> None:
    assert chosen(residual(), (2, 3, 8, 8)) == [
        Tap(name="tap_0", source="sum:NCHW", width=5, spread="tap_0_spread"),
        Tap(name="tap_1", source="f:vector", width=5),
    ]


def test_a_map_whose_mean_is_the_vector_is_not_tapped_twice() -> None:
    assert "r3:NCHW" not in {tap.source for tap in chosen(residual(), (2, 3, 8, 8))}
    model = residual()
    next(node for node in model.graph.node if node.op_type == "GlobalAveragePool").op_type = "GlobalMaxPool"
    assert [tap.source for tap in chosen(model, (2, 3, 8, 8))] == ["sum:NCHW", "r3:NCHW", "f:vector"]


def test_what_lies_behind_the_classifier_is_no_feature() -> None:
    assert taps.classifier_input(residual()) == "f"
    assert not {"z", LOGITS} & set(taps.candidates(residual()))


@pytest.mark.parametrize("opset", [13, 18])
def test_pooling_happens_inside_the_graph(opset: int) -> None:
    model = residual(opset)
    found = chosen(model, (2, 3, 8, 8))
    rows = np.random.default_rng(1).normal(size=(4, 3, 8, 8)).astype(np.float32)
    outputs = forward.run_rows(forward.stranger_session(taps.tapped(model, found), 1), rows, None)
    maps = forward.observe(model, ["sum", "f"], rows, 1)
    assert [o.shape for o in outputs] == [(4, 3), (4, 5), (4, 5), (4, 5)]
    np.testing.assert_allclose(outputs[1], maps["sum"].mean(axis=(2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs[2], maps["sum"].std(axis=(2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(outputs[3], maps["f"])


def test_the_spread_of_a_map_far_from_zero_does_not_cancel() -> None:
    shift = helper.make_node("Add", ["r", "far"], ["shifted"])
    nodes = [
        helper.make_node("Conv", [INPUT, "k"], ["r"]),
        shift,
        helper.make_node("GlobalMaxPool", ["shifted"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], [LOGITS]),
    ]
    weights = {
        "k": np.eye(3, dtype=np.float32)[:, :, None, None],
        "far": np.float32(1000.0),
        "w": np.eye(3, dtype="f4"),
    }
    model = build(nodes, weights, ["N", 3, 8, 8])
    found = chosen(model, (2, 3, 8, 8))
    assert [tap.spread for tap in found] == ["tap_0_spread", ""]
    rows = np.random.default_rng(1).normal(size=(4, 3, 8, 8)).astype(np.float32)
    spread = forward.run_rows(forward.stranger_session(taps.tapped(model, found), 1), rows, None)[2]
    np.testing.assert_allclose(spread, rows.std(axis=(2, 3)), rtol=1e-3)


def test_layout_of_a_cube_is_read_from_its_maker() -> None:
    nodes = [
        helper.make_node("Conv", [INPUT, "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("Abs", ["t"], ["a"]),
        helper.make_node("Transpose", ["a"], ["u"], perm=[0, 3, 1, 2]),
    ]
    model = build(nodes, {"k": np.ones((8, 3, 3, 3), np.float32)}, ["N", 3, 8, 8])
    assert [taps.map_layout(model, name, "NCHW") for name in ("c", "r", "t", "a", "u")] == [
        "NCHW", "NCHW", "NHWC", "NHWC", "NCHW",
    ]  # fmt: skip
    assert taps.map_layout(model, INPUT, "NHWC") == "NHWC"


def test_tokens_are_tapped_evenly() -> None:
    nodes = [helper.make_node("MatMul", [INPUT, "w"], ["t0"])]
    nodes += [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(7)]
    nodes += [
        helper.make_node("ReduceMean", ["t7"], ["v"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["v", "head"], [LOGITS]),
    ]
    weights = {"w": np.ones((4, 6), np.float32), "head": np.ones((6, 3), np.float32)}
    found = chosen(build(nodes, weights, ["N", 9, 4]), (2, 9, 4))
    assert [tap.source for tap in found] == ["t1:tokens", "t3:tokens", "t5:tokens", "t7:tokens", "v:vector"]


def test_perceptron_gives_its_hidden_vectors() -> None:
    nodes = [
        helper.make_node("Gemm", [INPUT, "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Gemm", ["a", "head"], [LOGITS]),
    ]
    weights = {"w": np.ones((4, 6), np.float32), "head": np.ones((6, 3), np.float32)}
    assert [tap.source for tap in chosen(build(nodes, weights, ["N", 4]), (2, 4), "flat")] == ["h:vector", "a:vector"]


def test_single_matrix_is_described_by_its_scores() -> None:
    model = build([helper.make_node("Gemm", [INPUT, "w"], [LOGITS])], {"w": np.ones((4, 3), np.float32)}, ["N", 4])
    assert chosen(model, (2, 4), "flat") == [Tap(name="tap_0", source=f"{LOGITS}:vector", width=3)]


def test_map_of_one_pixel_is_left_out_beside_its_vector() -> None:
    sources = [tap.source for tap in chosen(residual(), (2, 3, 8, 8))]
    assert "p:NCHW" not in sources
    assert "f:vector" in sources
