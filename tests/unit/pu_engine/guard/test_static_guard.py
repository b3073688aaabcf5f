"""The static guard: what it lets through unchanged, and what it refuses with which code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pu_engine.errors import EngineError
from pu_engine.guard import function_cost, limits, static_guard, wire_scan


def small_model(**options: Any) -> Any:
    weights = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [weights],
    )
    opsets = options.pop("opsets", [helper.make_opsetid("", 17)])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **options)


def refused(model: Any, blobs: dict[str, bytes] | None = None) -> str:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(EngineError) as caught:
        static_guard.vet(data, blobs)
    return caught.value.code


def edited(edit: Callable[[Any], None]) -> Any:
    model = small_model()
    edit(model)
    return model


def test_every_shared_teacher_passes_and_its_canonical_bytes_are_stable(shared: Path) -> None:
    for entry in json.loads((shared / "teachers" / "index.json").read_text())["models"]:
        folder = shared / "teachers"
        blobs = {extra["file"]: (folder / extra["file"]).read_bytes() for extra in entry["extra_files"]}
        first = static_guard.canonical_bytes(static_guard.vet((folder / entry["file"]).read_bytes(), blobs))
        assert static_guard.canonical_bytes(static_guard.vet(first)) == first, entry["file"]


def test_canonical_model_keeps_no_metadata() -> None:
    model = small_model(doc_string="secret", producer_name="exporter", producer_version="1")
    model.metadata_props.add(key="author", value="somebody")
    model.graph.node[0].doc_string = "trace"
    model.graph.value_info.append(helper.make_tensor_value_info("f", TensorProto.INT64, [99]))
    kept = static_guard.vet(model.SerializeToString())
    assert b"secret" not in static_guard.canonical_bytes(kept)
    assert not kept.metadata_props
    assert not kept.graph.value_info
    assert kept.graph.node[0].doc_string == ""
    assert kept.producer_name == "exporter"


def test_initialisers_among_the_inputs_are_no_inputs() -> None:
    model = small_model()
    model.ir_version = 3
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4]))
    kept = static_guard.vet(model.SerializeToString())
    assert [item.name for item in kept.graph.input] == ["x"]
    assert kept.ir_version == 4


def test_unused_and_repeated_operator_sets_are_dropped() -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("", 17), helper.make_opsetid("org.pytorch.aten", 1)]
    kept = static_guard.vet(small_model(opsets=opsets).SerializeToString())
    assert [(item.domain, item.version) for item in kept.opset_import] == [("", 17)]


def test_model_of_machine_learning_operators_alone_gets_the_standard_ones() -> None:
    graph = helper.make_graph(
        [helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", scale=[2.0], offset=[0.0])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 1)], ir_version=8)
    kept = static_guard.vet(model.SerializeToString())
    assert {item.domain: item.version for item in kept.opset_import} == {"": 15, "ai.onnx.ml": 1}


@pytest.mark.parametrize(
    ("opsets", "ir_version"),
    [([("", 6)], 8), ([("", 999)], 8), ([("", 17), ("ai.onnx", 18)], 8), ([("ai.onnx.ml", 1)], 8), ([("", 17)], 99)],
)
def test_versions_that_lie_are_refused(opsets: list[tuple[str, int]], ir_version: int) -> None:
    model = small_model(opsets=[helper.make_opsetid(*item) for item in opsets])
    model.ir_version = ir_version
    assert refused(model) == "MODEL_OPSET"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "MODEL_MALFORMED"),
        (b"not a model at all", "MODEL_MALFORMED"),
        (b"\x08\x08", "MODEL_MALFORMED"),
        (b"\x00\x00\x00\x00ORTM" + bytes(64), "MODEL_MALFORMED"),
        (b"PK\x03\x04" + bytes(64), "UNSUPPORTED_FORMAT"),
        (b"\x1f\x8b" + bytes(64), "UNSUPPORTED_FORMAT"),
        (b"\x80\x04\x95" + bytes(64), "UNSUPPORTED_FORMAT"),
        (bytes(257) + b"ustar" + bytes(64), "UNSUPPORTED_FORMAT"),
        (b"ftrt" + bytes(64), "UNSUPPORTED_FORMAT"),
    ],
)
def test_other_formats_are_named(data: bytes, code: str) -> None:
    assert refused(data) == code


def test_length_cap_stops_before_parsing() -> None:
    with pytest.raises(EngineError) as caught:
        static_guard.vet(small_model().SerializeToString(), max_bytes=10)
    assert caught.value.code == "MODEL_TOO_LARGE"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("", "MODEL_BAD_GRAPH"),
        ("a\0b", "MODEL_BAD_NAME"),
        ("a\u202eb", "MODEL_BAD_NAME"),
        ("x" * 513, "MODEL_BAD_NAME"),
    ],
)
def test_unprintable_names_and_missing_inputs_are_refused(name: str, code: str) -> None:
    def rename(model: Any) -> None:
        model.graph.node[0].output[0] = name
        model.graph.node[1].input[0] = name

    assert refused(edited(rename)) == code


def test_invalid_utf8_name_is_refused() -> None:
    data = small_model().SerializeToString().replace(b"\x0a\x01x", b"\x0a\x01\xff")
    assert refused(data) in {"MODEL_BAD_NAME", "MODEL_MALFORMED"}


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.graph.node.insert(0, m.graph.node.pop()),  # reads before it is computed
        lambda m: m.graph.node.append(helper.make_node("Relu", ["f"], ["y"])),  # computed twice
        lambda m: m.graph.initializer.append(m.graph.initializer[0]),
        lambda m: m.graph.output.append(m.graph.output[0]),
        lambda m: m.graph.ClearField("output"),
        lambda m: m.graph.output.append(helper.make_tensor_value_info("nowhere", TensorProto.FLOAT, [1])),
        lambda m: m.graph.node[1].attribute.append(helper.make_attribute("transB", 1.5)),
        lambda m: m.graph.node[1].attribute.append(helper.make_attribute("no_such", 1)),
        lambda m: m.graph.node[1].attribute.extend([helper.make_attribute("transB", 1)] * 2),
        lambda m: m.graph.node[1].input.extend(["f"] * 5),
    ],
)
def test_broken_graphs_are_refused(edit: Callable[[Any], None]) -> None:
    assert refused(edited(edit)) == "MODEL_BAD_GRAPH"


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("kernel_shape", [0, 3]), ("kernel_shape", [5000, 3]), ("strides", [0, 1]), ("dilations", [-1, 1]),
     ("pads", [-1, 0, 0, 0]), ("pads", [0, 2**40, 0, 0]), ("group", 0), ("group", -1)],
)  # fmt: skip
def test_window_attributes_are_bounded(attribute: str, value: list[int] | int) -> None:
    def convolve(model: Any) -> None:
        weights = numpy_helper.from_array(np.zeros((1, 1, 3, 3), np.float32), "k")
        model.graph.initializer.append(weights)
        model.graph.node.insert(0, helper.make_node("Conv", ["x", "k"], ["c"], **{attribute: value}))

    assert refused(edited(convolve)) == "MODEL_BAD_GRAPH"


@pytest.mark.parametrize(
    ("domain", "operator"),
    [
        ("", "Loop"),
        ("", "Scan"),
        ("", "RandomNormal"),
        ("", "SequenceEmpty"),
        ("com.microsoft", "EPContext"),
        ("me", "X"),
    ],
)
def test_operators_outside_the_list_are_refused(domain: str, operator: str) -> None:
    model = small_model(opsets=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)])
    model.graph.node.append(helper.make_node(operator, ["f"], ["z"], domain=domain))
    assert refused(model) == "MODEL_UNSUPPORTED_OP"


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: t.dims.__setitem__(0, 5),
        lambda t: t.dims.__setitem__(0, -1),
        lambda t: t.dims.extend([1] * 9),
        lambda t: t.dims.__setitem__(0, 2**40),
        lambda t: setattr(t, "data_type", 999),
        lambda t: setattr(t, "data_type", TensorProto.STRING),
        lambda t: t.float_data.append(1.0),
        lambda t: setattr(t, "raw_data", t.raw_data[:-1]),
        lambda t: t.segment.MergeFrom(onnx.TensorProto.Segment(begin=0, end=1)),
    ],
)
def test_tensors_that_lie_are_refused(edit: Callable[[Any], None]) -> None:
    assert refused(edited(lambda m: edit(m.graph.initializer[0]))) == "MODEL_BAD_TENSOR"


def test_tensor_in_an_attribute_is_checked_too() -> None:
    value = numpy_helper.from_array(np.zeros(3, np.float32))
    value.dims[0] = 4
    model = edited(lambda m: m.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value=value)))
    assert refused(model) == "MODEL_BAD_TENSOR"


def external(location: str, **entries: str) -> Any:
    model = small_model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return model


def test_bound_external_data_moves_into_the_model() -> None:
    blob = b"head" + np.arange(16, dtype=np.float32).tobytes()
    kept = static_guard.vet(external("w.bin", offset="4", length="64").SerializeToString(), {"w.bin": blob})
    assert numpy_helper.to_array(kept.graph.initializer[0]).ravel().tolist() == list(range(16))
    assert not kept.graph.initializer[0].external_data


@pytest.mark.parametrize(
    "model",
    [
        external("../../etc/passwd"),
        external("/etc/passwd"),
        external("w.bin", offset="60", length="64"),
        external("w.bin", offset="-4"),
        external("w.bin", trick="1"),
    ],
)
def test_external_data_outside_of_the_blobs_is_refused(model: Any) -> None:
    assert refused(model, {"w.bin": bytes(64)}) == "MODEL_EXTERNAL_DATA"


def test_external_data_shorter_than_its_tensor_is_refused() -> None:
    assert refused(external("w.bin"), {"w.bin": bytes(60)}) == "MODEL_BAD_TENSOR"


def calls(levels: int) -> Any:
    """A model whose functions double on each level, two calls each."""
    model = small_model(opsets=[helper.make_opsetid("", 17), helper.make_opsetid("f", 1)])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    for level in range(levels):
        inner, domain = ("Relu", "") if level == 0 else (f"F{level - 1}", "f")
        nodes = [
            helper.make_node(inner, ["a"], ["b"], domain=domain),
            helper.make_node(inner, ["b"], ["c"], domain=domain),
        ]
        model.functions.append(helper.make_function("f", f"F{level}", ["a"], ["c"], nodes, imports))
    model.graph.node[1].input[0] = "g"
    model.graph.node.insert(1, helper.make_node(f"F{levels - 1}", ["f"], ["g"], domain="f"))
    return model


def test_functions_are_written_out() -> None:
    kept = static_guard.vet(calls(3).SerializeToString())
    assert not kept.functions
    assert sum(node.op_type == "Relu" for node in kept.graph.node) == 8


def test_function_cost_is_counted_without_writing_out() -> None:
    assert function_cost.check(calls(3)).nodes == 2 + 1 + 2 + 4 + 8


def test_laughing_functions_and_recursion_are_refused() -> None:
    assert refused(calls(40)) == "MODEL_TOO_COMPLEX"
    model = calls(2)
    model.functions[0].node[0].op_type, model.functions[0].node[0].domain = "F1", "f"
    assert refused(model) == "MODEL_BAD_GRAPH"


def test_scan_counts_what_a_model_holds() -> None:
    counts = wire_scan.scan(small_model().SerializeToString())
    assert (counts.nodes, counts.tensors, counts.payload) == (2, 1, 64)
    assert counts.structure == len(small_model().SerializeToString()) - 64


def test_nested_if_is_bounded() -> None:
    def branch(depth: int) -> Any:
        nodes = [helper.make_node("Identity", ["f"], [f"r{depth}"])]
        if depth:
            inner = branch(depth - 1), branch(depth - 1)
            for place, graph in enumerate(inner):
                for node in graph.node:
                    for index, name in enumerate(node.output):
                        node.output[index] = f"{name}_{place}"
                graph.output[0].name = f"{graph.output[0].name}_{place}"
            nodes = [helper.make_node("If", ["c"], [f"r{depth}"], then_branch=inner[0], else_branch=inner[1])]
        info = helper.make_tensor_value_info(f"r{depth}", TensorProto.FLOAT, None)
        return helper.make_graph(nodes, f"b{depth}", [], [info])

    def nest(depth: int) -> Any:
        model = small_model()
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
        model.graph.node.append(
            helper.make_node("If", ["c"], ["z"], then_branch=branch(depth), else_branch=branch(depth))
        )
        return model

    assert static_guard.vet(nest(1).SerializeToString()).graph.node
    assert refused(nest(limits.IF_DEPTH + 1)) == "MODEL_TOO_COMPLEX"
