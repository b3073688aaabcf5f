"""Models that onnx's own checker or onnxruntime takes, and that say what can't be: each refused by its kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pu_engine.guard import limits
from pu_engine.guard.graph_walk import MICROSOFT_INPUTS, OPERATORS
from tests.hostile.refusals import Edit, code_of, edited

node = helper.make_node
info = helper.make_tensor_value_info


def appended(operator: str, inputs: list[str], domain: str = "", **attributes: Any) -> Edit:
    """One more node, whose result nobody reads."""

    def edit(model: Any) -> None:
        if domain not in ("", "ai.onnx"):
            model.opset_import.append(helper.make_opsetid(domain, 1))
        model.graph.node.append(node(operator, inputs, ["extra"], domain=domain, **attributes))

    return edit


def body() -> Any:
    return helper.make_graph([node("Identity", ["c"], ["d"])], "b", [info("i", 7, []), info("c", 9, [])], [])


OPERATOR_ATTACKS: dict[str, Edit] = {
    "endless loop": appended("Loop", ["c", ""], body=body()),
    "scan": appended("Scan", ["x"], body=body(), num_scan_inputs=1),
    "random": appended("RandomNormalLike", ["x"]),
    "sequence": appended("SequenceConstruct", ["x"]),
    "optional": appended("Optional", ["x"]),
    "string": appended("StringNormalizer", ["x"]),
    "fourier transform": appended("DFT", ["x"]),
    "compiled engine": appended("EPContext", ["x"], "com.microsoft", ep_cache_context="engine.bin", embed_mode=0),
    "custom": appended("Anything", ["x"], "evil.example"),
    "spelt otherwise": appended("relu", ["x"]),
    "training": appended("Gradient", ["x"], "ai.onnx.preview.training"),
}
OPERATOR_TWINS: dict[str, Edit] = {
    "standard": appended("Relu", ["x"]),
    "standard by its long name": appended("Relu", ["x"], "ai.onnx"),
    "microsoft": appended("Gelu", ["x"], "com.microsoft"),
    "classical": appended("Scaler", ["x"], "ai.onnx.ml", offset=[0.0], scale=[1.0]),
}


def opset(version: int) -> Edit:
    return lambda model: setattr(model.opset_import[0], "version", version)


VERSION_ATTACKS: dict[str, Edit] = {
    "of the future": opset(999),
    "negative": opset(-1),
    "none": lambda model: model.ClearField("opset_import"),
    "before 7": opset(6),
    "two of one domain": lambda model: model.opset_import.append(helper.make_opsetid("ai.onnx", 13)),
    "ir of the future": lambda model: setattr(model, "ir_version", 99),
    "ir 0": lambda model: setattr(model, "ir_version", 0),
    "ml of the future": lambda model: model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 99)),
}
VERSION_TWINS: dict[str, Edit] = {
    "one domain twice": lambda model: model.opset_import.append(helper.make_opsetid("ai.onnx", 17)),
    "unused domain": lambda model: model.opset_import.append(helper.make_opsetid("some.exporter", 99)),
    "oldest": opset(7),
    "newest": opset(limits.OPSETS[1]),
}


def weight(edit: Callable[[Any], object]) -> Edit:
    """A change of the convolution's bias, float32 [9]."""
    return lambda model: edit(next(t for t in model.graph.initializer if t.name == "b"))


def dims(*values: int) -> Edit:
    def edit(tensor: Any) -> None:
        del tensor.dims[:]
        tensor.dims.extend(values)

    return weight(edit)


TENSOR_ATTACKS: dict[str, Edit] = {
    "overflow": dims(2**62, 4),
    "beyond 31 bits": dims(2**31),
    "negative": dims(-9),
    "product of negatives": dims(-3, -3),
    "too long": dims(10),
    "too short": dims(8),
    "rank 9": dims(9, *[1] * 8),
    "short data": weight(lambda t: setattr(t, "raw_data", t.raw_data[:-1])),
    "no data": weight(lambda t: t.ClearField("raw_data")),
    "data twice": weight(lambda t: t.float_data.extend([0.0] * 9)),
    "data in another field": weight(lambda t: (t.ClearField("raw_data"), t.double_data.extend([0.0] * 9))),
    "unknown type": weight(lambda t: setattr(t, "data_type", 999)),
    "no type": weight(lambda t: setattr(t, "data_type", 0)),
    "complex": weight(lambda t: setattr(t, "data_type", TensorProto.COMPLEX64)),
    "strings": weight(lambda t: t.MergeFrom(TensorProto(data_type=TensorProto.STRING, string_data=[b"x"]))),
    "segment": weight(lambda t: t.segment.MergeFrom(TensorProto.Segment(begin=0, end=9))),
    "sparse": lambda model: model.graph.sparse_initializer.append(onnx.SparseTensorProto(dims=[2**40])),
    "declared dimension": lambda model: setattr(
        model.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", -(2**40)
    ),
}
TENSOR_TWINS: dict[str, Edit] = {
    "empty": lambda model: model.graph.initializer.append(numpy_helper.from_array(np.zeros((0, 3), np.float32), "e")),
    "typed field": weight(lambda t: (t.ClearField("raw_data"), t.float_data.extend([0.0] * 9))),
    "half": lambda model: model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float16), "h")),
    "rank 8": lambda model: model.graph.initializer.append(numpy_helper.from_array(np.zeros([1] * 8), "r")),
}


def cycle(model: Any) -> None:
    model.graph.node.extend([node("Relu", ["v"], ["u"]), node("Relu", ["u"], ["v"])])


def window(attribute: str, value: Any) -> Edit:
    weights = numpy_helper.from_array(np.zeros((1, 3, 1, 1), np.float32), "kernel")

    def edit(model: Any) -> None:
        model.graph.initializer.append(weights)
        model.graph.node.append(node("Conv", ["x", "kernel"], ["extra"], **{attribute: value}))

    return edit


GRAPH_ATTACKS: dict[str, Edit] = {
    "cycle": cycle,
    "self": lambda model: model.graph.node.append(node("Relu", ["u"], ["u"])),
    "not computed": appended("Relu", ["nowhere"]),
    "computed twice": lambda model: model.graph.node.append(node("Relu", ["x"], ["y"])),
    "computed over the input": lambda model: model.graph.node.append(node("Relu", ["y"], ["x"])),
    "initializer twice": lambda model: model.graph.initializer.append(model.graph.initializer[0]),
    "input twice": lambda model: model.graph.input.append(model.graph.input[0]),
    "no outputs": lambda model: model.graph.ClearField("output"),
    "output twice": lambda model: model.graph.output.append(model.graph.output[0]),
    "output from nowhere": lambda model: model.graph.output.append(info("nowhere", 1, None)),
    "no inputs": appended("Relu", []),
    "too many inputs": appended("Relu", ["x", "x"]),
    "attribute of another type": appended("Softmax", ["y"], axis=1.5),
    "float starts": appended("Slice", ["x"], starts=[0.5], ends=[1.0]),  # SIGSEGV in onnx's version converter
    "attribute nobody knows": appended("Relu", ["x"], evil=1),
    "stride 0": window("strides", [0, 1]),
    "dilation -1": window("dilations", [-1, 1]),
    "pad 2^40": window("pads", [2**40, 0, 0, 0]),
    "group 0": window("group", 0),
}
GRAPH_TWINS: dict[str, Edit] = {
    "unused node": appended("Relu", ["x"]),
    "unused initializer": lambda model: model.graph.initializer.append(
        numpy_helper.from_array(np.zeros(2, np.float32), "unused")
    ),
    "stride 2": window("strides", [2, 2]),
    "attribute of its type": appended("Softmax", ["y"], axis=1),
    "second output": lambda model: model.graph.output.append(info("row", 1, None)),
}


def renamed(name: str) -> Edit:
    def edit(model: Any) -> None:
        model.graph.node[0].output[0] = model.graph.node[1].input[0] = name

    return edit


NAME_ATTACKS: dict[str, Edit] = {
    "NUL": renamed("a\0b"),
    "right to left": renamed("a\u202eb"),
    "line": renamed("a\nb"),
    "escape": renamed("\x1b[31m"),
    "long": renamed("n" * (limits.NAME_CHARACTERS + 1)),
    "of a graph": lambda model: setattr(model.graph, "name", "\0"),
    "of a node": lambda model: setattr(model.graph.node[0], "name", "\u2066"),
    "of a dimension": lambda model: setattr(model.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", "\u202e"),
}
NAME_TWINS: dict[str, Edit] = {
    "paths": renamed("../../etc/passwd"),
    "quotes": renamed("'; drop table jobs; --"),
    "letters": renamed("größe/名前:0"),
    "longest": renamed("n" * limits.NAME_CHARACTERS),
}
ATTACKS: dict[str, tuple[dict[str, Edit], dict[str, Edit]]] = {
    "MODEL_UNSUPPORTED_OP": (OPERATOR_ATTACKS, OPERATOR_TWINS),
    "MODEL_OPSET": (VERSION_ATTACKS, VERSION_TWINS),
    "MODEL_BAD_TENSOR": (TENSOR_ATTACKS, TENSOR_TWINS),
    "MODEL_BAD_GRAPH": (GRAPH_ATTACKS, GRAPH_TWINS),
    "MODEL_BAD_NAME": (NAME_ATTACKS, NAME_TWINS),
}


@pytest.mark.parametrize(("code", "name"), [(code, name) for code in ATTACKS for name in ATTACKS[code][0]])
def test_attack_is_refused_by_its_kind(code: str, name: str) -> None:
    assert code_of(edited(ATTACKS[code][0][name])) == code


@pytest.mark.parametrize(("code", "name"), [(code, name) for code in ATTACKS for name in ATTACKS[code][1]])
def test_benign_twin_passes(code: str, name: str) -> None:
    assert code_of(edited(ATTACKS[code][1][name])) == ""


def test_name_that_is_no_utf8_is_refused() -> None:
    data = edited(renamed("evil")).SerializeToString().replace(b"evil", b"ev\xff\xfe")
    assert code_of(data) in ("MODEL_BAD_NAME", "MODEL_MALFORMED")


def test_microsofts_operators_all_have_bounds_of_their_inputs() -> None:
    assert set(MICROSOFT_INPUTS) == OPERATORS["com.microsoft"]
