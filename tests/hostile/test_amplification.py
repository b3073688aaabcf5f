"""Small files that would become large in memory or slow to read; the guard counts them, in little memory."""

from __future__ import annotations

import itertools
import resource
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from pu_engine.errors import EngineError
from pu_engine.guard import limits, static_guard

GUARD_RSS_KIB = 300 * 1024


def model_of(nodes: list[Any], initializers: list[Any] | None = None, opset: int = 17) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers or [],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def chain(count: int) -> bytes:
    names = ["x", *(f"t{i}" for i in range(count - 1)), "y"]
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in itertools.pairwise(names)]
    data: bytes = model_of(nodes).SerializeToString()
    return data


def initializers(count: int) -> bytes:
    tensors = [numpy_helper.from_array(np.zeros(1, np.float32), f"w{i}") for i in range(count)]
    data: bytes = model_of([helper.make_node("Relu", ["x"], ["y"])], tensors).SerializeToString()
    return data


def field(number: int, payload: bytes) -> bytes:
    size, length = len(payload), b""
    while size >= 0x80:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + payload


def empty_nodes(count: int) -> bytes:
    """A graph (field 7) of empty nodes (field 1)."""
    return chain(1) + field(7, b"\x0a\x00" * count)


def empty_attributes(count: int) -> bytes:
    """One node with empty attributes (field 5)."""
    return chain(1) + field(7, field(1, b"\x2a\x00" * count))


def nested_graphs(depth: int) -> bytes:
    """Attributes with graphs with nodes with attributes: graph = field 6 of an attribute, node 1, attribute 5."""
    body = b""
    for _ in range(depth):
        body = field(1, field(5, field(6, body)))
    return chain(1) + field(7, body)


def floats_as_varints(size: int) -> bytes:
    """An initializer (field 5) whose int64_data (field 7) are one byte each."""
    return chain(1) + field(7, field(5, field(7, bytes(size))))


BOMBS: dict[str, tuple[Callable[[int], bytes], int, int, str]] = {
    # name: (builder, hostile size, benign size, code)
    "chain of nodes": (chain, 50_000, 500, "MODEL_TOO_COMPLEX"),
    "initializers": (initializers, 60_000, 500, "MODEL_TOO_COMPLEX"),
}
WIRE_BOMBS: dict[str, tuple[Callable[[int], bytes], int]] = {
    "empty nodes": (empty_nodes, 5_000_000),
    "empty attributes": (empty_attributes, 5_000_000),
    "nested graphs": (nested_graphs, 200),
    "varint weights": (floats_as_varints, 20_000_000),
}


def code_of(data: bytes) -> str:
    with pytest.raises(EngineError) as caught:
        static_guard.vet(data)
    return caught.value.code


@pytest.mark.parametrize("name", BOMBS)
def test_floods_are_refused_and_their_benign_twins_pass(name: str) -> None:
    build, hostile, benign, code = BOMBS[name]
    data = build(hostile)
    assert code_of(data) == code
    assert static_guard.vet(build(benign)).graph.node


@pytest.mark.parametrize("name", WIRE_BOMBS)
def test_amplification_is_counted_before_messages_are_built(name: str) -> None:
    build, size = WIRE_BOMBS[name]
    data = build(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert code_of(data) == "MODEL_TOO_COMPLEX"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GUARD_RSS_KIB
    assert outcome(build(8))[0] != "MODEL_TOO_COMPLEX"


def test_many_tensors_on_one_blob_count_each() -> None:
    tensors = []
    for index in range(600):
        tensor = TensorProto(name=f"w{index}", data_type=TensorProto.UINT8, dims=[2**20])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="b")
        tensors.append(tensor)
    data = model_of([helper.make_node("Relu", ["x"], ["y"])], tensors).SerializeToString()
    with pytest.raises(EngineError) as caught:
        static_guard.vet(data, {"b": bytes(2**20)})
    assert caught.value.code == "MODEL_TOO_LARGE"


def test_truncated_and_flipped_models_raise_only_engine_errors() -> None:
    data = bytearray(chain(20))
    generator = np.random.default_rng(3)
    for _ in range(400):
        mutant = bytearray(data)
        for position in generator.integers(0, len(data), 3):
            mutant[position] = int(generator.integers(0, 256))
        cut = int(generator.integers(1, len(data)))
        for candidate in (bytes(mutant), bytes(data[:cut])):
            code, kept = outcome(candidate)
            assert code.startswith(("MODEL_", "UNSUPPORTED_")) or outcome(kept) == ("", kept)


def outcome(data: bytes) -> tuple[str, bytes]:
    """The code of a refusal, or the canonical bytes."""
    try:
        return "", static_guard.canonical_bytes(static_guard.vet(data))
    except EngineError as error:
        return error.code, b""


def doubling_functions(levels: int) -> bytes:
    """Functions of two calls each: 2^levels nodes once written out."""
    model = model_of([helper.make_node("F0", ["x"], ["y"], domain="f")])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    model.opset_import.append(imports[1])
    for level in range(levels):
        last = level == levels - 1
        inner, domain = ("Relu", "") if last else (f"F{level + 1}", "f")
        calls = [helper.make_node(inner, [a], [b], domain=domain) for a, b in (("a", "b"), ("b", "c"))]
        model.functions.append(helper.make_function("f", f"F{level}", ["a"], ["c"], calls, imports))
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize("levels", [24, 60])
def test_laughing_functions_are_counted_not_written_out(levels: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert code_of(doubling_functions(levels)) == "MODEL_TOO_COMPLEX"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GUARD_RSS_KIB
    assert len(static_guard.vet(doubling_functions(6)).graph.node) == 2**6


def nested_ifs(depth: int) -> bytes:
    def branch(level: int, name: str) -> Any:
        inside = [helper.make_node("Identity", ["x"], [name])]
        if level:
            below = [branch(level - 1, f"{name}{side}") for side in "ab"]
            inside = [helper.make_node("If", ["c"], [name], then_branch=below[0], else_branch=below[1])]
        return helper.make_graph(inside, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

    branches = branch(depth - 1, "a"), branch(depth - 1, "b")
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])]
    data: bytes = model_of(nodes, [numpy_helper.from_array(np.array(True), "c")]).SerializeToString()
    return data


def test_nested_ifs_are_bounded() -> None:
    assert code_of(nested_ifs(limits.IF_DEPTH + 1)) == "MODEL_TOO_COMPLEX"
    assert static_guard.vet(nested_ifs(limits.IF_DEPTH)).graph.node


def with_outputs(count: int) -> bytes:
    """Each pair of outputs is compared, so their number is bounded apart from the nodes'."""
    model = model_of([helper.make_node("Relu", ["x"], [f"y{index}"]) for index in range(count)])
    model.graph.ClearField("output")
    for index in range(count):
        model.graph.output.add(name=f"y{index}")
    data: bytes = model.SerializeToString()
    return data


def test_outputs_are_counted() -> None:
    assert code_of(with_outputs(limits.GRAPH_ENDS + 1)) == "MODEL_TOO_COMPLEX"
    assert static_guard.vet(with_outputs(limits.GRAPH_ENDS)).graph.output
