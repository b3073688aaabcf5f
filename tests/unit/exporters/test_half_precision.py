from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from exporters.errors import ExportError
from exporters.half_precision import to_half
from exporters.inference import logits_of, open_model
from exporters.onnx_file import write_model


def floats(model: Any) -> list[str]:
    return [t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]


def graph(nodes: list[Any], weights: dict[str, Any], outputs: list[Any] | None = None) -> Any:
    make = onnx.helper
    value = make.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", 2])
    given = outputs or [make.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2])]
    tensors = [onnx.numpy_helper.from_array(np.asarray(v, np.float32), n) for n, v in weights.items()]
    return make.make_model(
        make.make_graph(nodes, "g", [value], given, tensors), opset_imports=[make.make_opsetid("", 20)], ir_version=10
    )


def test_weights_and_arithmetic_are_half_and_the_ends_stay_float(small_graph: Any, tmp_path: Any) -> None:
    half = to_half(small_graph.model)
    write_model(half, tmp_path / "half.onnx", {})
    assert floats(half) == []
    inner = [v.type.tensor_type.elem_type for v in half.graph.value_info if v.name not in ("input", "logits")]
    assert onnx.TensorProto.FLOAT not in inner
    ends = [v.type.tensor_type.elem_type for v in (*half.graph.input, *half.graph.output)]
    assert ends == [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT]


def test_the_logits_are_those_of_fp32_to_three_digits(small_graph: Any) -> None:
    before, after = (
        logits_of(open_model(model, threads=1), small_graph.batches(16))
        for model in (small_graph.model, to_half(small_graph.model))
    )
    assert 0 < np.abs(before - after).max() < 2e-3 * np.abs(before).max()


def test_the_file_is_half_as_large(small_graph: Any, tmp_path: Any) -> None:
    sizes = [
        sum(onnx.numpy_helper.to_array(t).nbytes for t in model.graph.initializer if "_" not in t.name)
        for model in (small_graph.model, to_half(small_graph.model))
    ]
    assert sizes[1] * 2 == sizes[0]


def test_a_weight_beyond_half_precision_is_refused_by_name() -> None:
    model = graph([onnx.helper.make_node("Mul", ["input", "huge"], ["logits"])], {"huge": [1e6, 1.0]})
    with pytest.raises(ExportError, match=r"'huge' holds 1e\+06") as caught:
        to_half(model)
    assert caught.value.details["tensor"] == "huge"


def test_constants_inside_of_nodes_and_casts_follow() -> None:
    make = onnx.helper
    nodes = [
        make.make_node("Constant", [], ["two"], "two", value_float=2.0),
        make.make_node("Shape", ["input"], ["shape"], "shape"),
        make.make_node("Cast", ["shape"], ["sizes"], "cast", to=onnx.TensorProto.FLOAT),
        make.make_node("Mul", ["input", "two"], ["twice"], "twice"),
        make.make_node("Add", ["twice", "sizes"], ["logits"], "sum"),
    ]
    half = to_half(graph(nodes, {}))
    onnx.checker.check_model(half, full_check=True)
    given = open_model(half, threads=1).run(None, {"input": np.array([[1.0, 3.0]], np.float32)})[0]
    np.testing.assert_array_equal(given, [[3.0, 8.0]])


def test_scales_of_a_resize_stay_float() -> None:
    make = onnx.helper
    nodes = [make.make_node("Resize", ["input", "", "scales"], ["logits"], "resize", mode="nearest")]
    assert floats(to_half(graph(nodes, {"scales": [1.0, 1.0]}))) == ["scales"]


def test_a_subgraph_is_refused_with_its_node() -> None:
    make = onnx.helper
    branch = make.make_graph(
        [make.make_node("Identity", ["input"], ["inner"])],
        "branch", [], [make.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, ["batch", 2])],
    )  # fmt: skip
    nodes = [
        make.make_node("Constant", [], ["yes"], "yes", value=onnx.numpy_helper.from_array(np.array(True))),
        make.make_node("If", ["yes"], ["logits"], "choice", then_branch=branch, else_branch=branch),
    ]
    with pytest.raises(ExportError, match="'choice'"):
        to_half(graph(nodes, {}))
