"""The int8 copy of graphs that exporters write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from pu_engine.scores.int8_copy import Int8Unavailable, write_int8
from pu_engine.teacher import taps
from pu_engine.types import Tap


def convolution(opset: int) -> onnx.ModelProto:
    """[N, 3, 8, 8] -> [N, 16]: a convolution with batch normalisation, and a mean."""
    generator, make = np.random.default_rng(0), onnx.helper
    constants = {
        "w": generator.normal(size=(16, 3, 3, 3)) * np.linspace(0.1, 10, 16).reshape(-1, 1, 1, 1),
        **{name: generator.uniform(0.5, 1.5, 16) for name in ("scale", "bias", "mean", "variance")},
    }
    nodes = [
        make.make_node("Conv", ["input", "w"], ["c"], pads=[1, 1, 1, 1]),
        make.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "variance"], ["b"]),
        make.make_node("Relu", ["b"], ["r"]),
        make.make_node("GlobalAveragePool", ["r"], ["g"]),
        make.make_node("Flatten", ["g"], ["logits"]),
    ]
    ends = [
        make.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["N", 3, 8, 8]),
        make.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 16]),
    ]
    weights = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    graph = make.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return make.make_model(graph, opset_imports=[make.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("opset", [10, 12, 13, 17])
def test_weights_have_a_scale_for_each_channel_at_any_opset(tmp_path: Path, opset: int) -> None:
    onnx.save(convolution(opset), tmp_path / "m.onnx")
    (tmp_path / "scratch").mkdir()
    batches = [np.random.default_rng(i).normal(size=(8, 3, 8, 8)).astype(np.float32) for i in range(4)]
    write_int8(tmp_path / "m.onnx", iter(batches), tmp_path / "int8.onnx", tmp_path / "scratch")
    sessions = [ort.InferenceSession(tmp_path / n, providers=["CPUExecutionProvider"]) for n in ("m.onnx", "int8.onnx")]
    before, after = (session.run(None, {"input": batches[0]})[0] for session in sessions)
    assert np.abs(after - before).max() < 0.05 * np.abs(before).max()
    initializers = onnx.load(tmp_path / "int8.onnx").graph.initializer
    assert any(tuple(i.dims) == (16,) and i.name.endswith("_w_scale") for i in initializers)


def test_a_graph_that_can_not_be_calibrated_says_why(tmp_path: Path) -> None:
    onnx.save(convolution(17), tmp_path / "m.onnx")
    (tmp_path / "scratch").mkdir()
    wrong = iter([np.zeros((2, 5, 8, 8), np.float32)])
    with pytest.raises(Int8Unavailable, match="onnxruntime can't quantise the teacher"):
        write_int8(tmp_path / "m.onnx", wrong, tmp_path / "int8.onnx", tmp_path / "scratch")
    assert not (tmp_path / "int8.onnx").exists()


def test_the_pooling_of_taps_stays_in_single_precision(tmp_path: Path) -> None:
    tap = Tap(name="tap_0", source="r:NCHW", width=16, spread="tap_0_spread")
    onnx.save(taps.tapped(convolution(17), [tap]), tmp_path / "m.onnx")
    (tmp_path / "scratch").mkdir()
    batches = [np.random.default_rng(i).normal(size=(8, 3, 8, 8)).astype(np.float32) for i in range(4)]
    write_int8(tmp_path / "m.onnx", iter(batches), tmp_path / "int8.onnx", tmp_path / "scratch")
    nodes = onnx.load(tmp_path / "int8.onnx").graph.node
    integers = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    inside = [node for node in nodes if node.op_type in ("Mul", "Sqrt") and node.output[0].startswith("tap_0")]
    assert len(inside) == 2
    assert not integers.intersection(name for node in inside for name in node.input)
