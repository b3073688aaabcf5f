"""The guard's walk over a parsed graph: names, order, operators, attributes and tensors, each against its rule."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.defs

from pu_engine.errors import EngineError
from pu_engine.guard import limits

OPERATORS: Mapping[str, frozenset[str]] = {
    ("" if domain == "ai.onnx" else domain): frozenset(names)
    for domain, names in json.loads(Path(__file__).with_name("operators.json").read_text()).items()
}
TENSOR = onnx.TensorProto
OPTION = onnx.defs.OpSchema.FormalParameterOption
ATTRIBUTE = onnx.AttributeProto
# Bytes of one element in raw_data; the 4-bit types take half a byte.
ITEM_BYTES: Mapping[int, float] = {
    TENSOR.FLOAT: 4,
    TENSOR.UINT8: 1,
    TENSOR.INT8: 1,
    TENSOR.UINT16: 2,
    TENSOR.INT16: 2,
    TENSOR.INT32: 4,
    TENSOR.INT64: 8,
    TENSOR.BOOL: 1,
    TENSOR.FLOAT16: 2,
    TENSOR.DOUBLE: 8,
    TENSOR.UINT32: 4,
    TENSOR.UINT64: 8,
    TENSOR.BFLOAT16: 2,
    TENSOR.UINT4: 0.5,
    TENSOR.INT4: 0.5,
}
TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
OWN_FIELD = {
    TENSOR.FLOAT: "float_data",
    TENSOR.DOUBLE: "double_data",
    TENSOR.INT64: "int64_data",
    TENSOR.UINT32: "uint64_data",
    TENSOR.UINT64: "uint64_data",
}
# attribute -> (lowest, highest) of each of its values
BOUNDS = {
    "kernel_shape": (1, limits.WINDOW),
    "strides": (1, limits.WINDOW),
    "dilations": (1, limits.WINDOW),
    "pads": (0, limits.WINDOW),
    "output_padding": (0, limits.WINDOW),
    "group": (1, limits.DIMENSION),
    "blocksize": (1, limits.WINDOW),
}
CROPPING_PADS = (-limits.WINDOW, limits.WINDOW)  # the operator Pad may also cut off
# (fewest, most) inputs of Microsoft's operators, by onnxruntime's ContribOperators.md: onnx does not define them.
MICROSOFT_INPUTS = {
    "DequantizeLinear": (2, 3),
    "DynamicQuantizeMatMul": (3, 5),
    "FusedConv": (2, 4),
    "FusedGemm": (2, 3),
    "FusedMatMul": (2, 2),
    "Gelu": (1, 1),
    "MatMulIntegerToFloat": (4, 7),
    "QGemm": (6, 9),
    "QLinearAdd": (7, 8),
    "QLinearAveragePool": (4, 5),
    "QLinearConcat": (3, limits.NODE_INPUTS),
    "QLinearConv": (8, 9),
    "QLinearGlobalAveragePool": (5, 5),
    "QLinearLeakyRelu": (4, 5),
    "QLinearMul": (7, 8),
    "QLinearReduceMean": (4, 5),
    "QLinearSigmoid": (4, 5),
    "QLinearSoftmax": (5, 5),
    "QuantizeLinear": (2, 3),
    "SkipLayerNormalization": (3, 5),
}
VALUE_FIELDS = ("f", "i", "s", "t", "g", "floats", "ints", "strings", "tensors", "graphs", "type_protos")
FIELD_TYPE = {
    "f": ATTRIBUTE.FLOAT,
    "i": ATTRIBUTE.INT,
    "s": ATTRIBUTE.STRING,
    "t": ATTRIBUTE.TENSOR,
    "g": ATTRIBUTE.GRAPH,
    "floats": ATTRIBUTE.FLOATS,
    "ints": ATTRIBUTE.INTS,
    "strings": ATTRIBUTE.STRINGS,
    "tensors": ATTRIBUTE.TENSORS,
}
REPEATED = {"floats", "ints", "strings", "tensors", "graphs", "type_protos"}


# Names known in the graphs around a subgraph; never copied, for ten thousand If would copy ten thousand names each.
Scopes = tuple[set[str], ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """What a node of one operator may look like."""

    attributes: Mapping[str, int] | None  # None: not known
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    needed: frozenset[int]  # positions of inputs that can't be left empty
    rest_needed: bool  # those behind the last of the definition: the rest of a variadic one


def check(graph: Any, opsets: Mapping[str, int]) -> None:
    """Walk a graph and the graphs below it.

    Raises:
        EngineError: MODEL_BAD_NAME, MODEL_BAD_GRAPH, MODEL_BAD_TENSOR, MODEL_UNSUPPORTED_OP or MODEL_TOO_COMPLEX.
    """
    if not graph.output:
        raise bad_graph("The graph has no output.")
    for what, items in (("inputs", graph.input), ("outputs", graph.output)):
        count = len(items) - (len(graph.initializer) if what == "inputs" else 0)
        if count > limits.GRAPH_ENDS:
            raise EngineError(
                "MODEL_TOO_COMPLEX",
                f"The graph has {count} {what}; at most {limits.GRAPH_ENDS} are taken.",
                "Export the classifier alone, with its scores as output.",
                actual=count,
                limit=limits.GRAPH_ENDS,
            )
    _check_graph(graph, opsets, (), depth=0)


def graphs_of(graph: Any) -> Iterator[Any]:
    """A graph and all graphs in its nodes' attributes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for below in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs_of(below)


def domains_used(graph: Any) -> set[str]:
    """Operator domains of all nodes; "" is the standard one."""
    return {plain_domain(node.domain) for below in graphs_of(graph) for node in below.node}


def plain_domain(domain: Any) -> str:
    """The standard domain has two spellings."""
    name = _name(domain, "operator domain", empty_allowed=True)
    return "" if name == "ai.onnx" else name


def is_plain_name(name: Any) -> bool:
    """Whether a name is printable text of bounded length; upb hands invalid UTF-8 out as bytes."""
    return isinstance(name, str) and len(name) <= limits.NAME_CHARACTERS and name.isprintable()


def bad_graph(message: str, **details: object) -> EngineError:
    """A graph that breaks ONNX's own rules."""
    return EngineError("MODEL_BAD_GRAPH", message, "Export the model again and check it with onnx.checker.", **details)


def _bad_tensor(message: str, **details: object) -> EngineError:
    return EngineError("MODEL_BAD_TENSOR", message, "Export the model again and check it with onnx.checker.", **details)


def _name(name: Any, what: str, *, empty_allowed: bool = False) -> str:
    if not is_plain_name(name) or (not name and not empty_allowed):
        raise EngineError(
            "MODEL_BAD_NAME",
            f"The name of a {what} is empty, unprintable or longer than {limits.NAME_CHARACTERS} characters.",
            "Export the model with plain names.",
            what=what,
            limit=limits.NAME_CHARACTERS,
        )
    return str(name)


def _check_graph(graph: Any, opsets: Mapping[str, int], outer: Scopes, depth: int) -> None:
    if depth > limits.IF_DEPTH:
        raise EngineError(
            "MODEL_TOO_COMPLEX",
            f"If is nested deeper than {limits.IF_DEPTH}.",
            "Export the model without control flow.",
            limit=limits.IF_DEPTH,
        )
    _name(graph.name, "graph", empty_allowed=True)
    if graph.sparse_initializer:
        raise _bad_tensor("The model has sparse initializers.")
    own = _initializers(graph)
    for item in graph.input:
        name = _name(item.name, "graph input")
        _check_value_info(item)
        if depth and name in own:
            raise bad_graph(f"Input {name!r} of a subgraph is also an initializer.")
        own.add(name)
    if len({item.name for item in graph.input}) != len(graph.input):
        raise bad_graph("Two inputs of the graph have one name.")
    twice = sorted(name for names in outer for name in own & names)
    if twice:
        raise bad_graph(f"{twice[0]!r} is defined twice.")
    for node in graph.node:
        _check_node(node, opsets, own, outer, depth)
    outputs = [_name(item.name, "graph output") for item in graph.output]
    for item in graph.output:
        _check_value_info(item)
    if len(set(outputs)) != len(outputs):
        raise bad_graph("Two outputs of the graph have one name.")
    missing = [name for name in outputs if not _defined(name, own, outer)]
    if missing:
        raise bad_graph(f"Output {missing[0]!r} is not computed.", output=missing[0])


def _defined(name: str, own: set[str], outer: Scopes) -> bool:
    return name in own or any(name in names for names in outer)


def _initializers(graph: Any) -> set[str]:
    names: set[str] = set()
    for tensor in graph.initializer:
        name = _name(tensor.name, "initializer")
        if name in names:
            raise bad_graph(f"Initializer {name!r} is defined twice.", name=name)
        names.add(name)
        check_tensor(tensor, name)
    return names


def _check_value_info(item: Any) -> None:
    if item.type.WhichOneof("value") != "tensor_type":
        return
    for dimension in item.type.tensor_type.shape.dim:
        if not -1 <= dimension.dim_value <= limits.DIMENSION:
            raise _bad_tensor(f"{item.name!r} has a dimension of {dimension.dim_value}.", name=item.name)
        _name(dimension.dim_param, "dimension", empty_allowed=True)


def _check_node(node: Any, opsets: Mapping[str, int], own: set[str], outer: Scopes, depth: int) -> None:
    _name(node.name, "node", empty_allowed=True)
    operator = _name(node.op_type, "operator")
    domain = plain_domain(node.domain)
    if node.overload or operator not in OPERATORS.get(domain, ()) or domain not in opsets:
        raise _unsupported(domain, operator, "is not among the operators that a teacher may use")
    signature = _signature(domain, operator, opsets[domain])
    _check_arity(node, signature)
    for name in node.input:
        if _name(name, "node input", empty_allowed=True) and not _defined(name, own, outer):
            raise bad_graph(f"{operator} reads {name!r} before it is computed.", operator=operator, name=name)
    for place, name in enumerate(node.input):
        # onnxruntime 1.32 reads Max(a, b, "") through a null pointer.
        if not name and (place in signature.needed or (signature.rest_needed and place >= len(signature.needed))):
            raise bad_graph(f"{operator} lacks its input {place + 1}.", operator=operator)
    _check_attributes(node, operator, signature)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            _check_graph(attribute.g, opsets, (*outer, own), depth + 1)
    for name in node.output:
        if not _name(name, "node output", empty_allowed=True):
            continue
        if _defined(name, own, outer):
            raise bad_graph(f"{name!r} is computed twice.", operator=operator, name=name)
        own.add(name)


def _check_arity(node: Any, signature: Signature) -> None:
    low_in, high_in = signature.inputs[0], min(limits.NODE_INPUTS, signature.inputs[1])
    low_out, high_out = max(1, signature.outputs[0]), min(limits.NODE_OUTPUTS, signature.outputs[1])
    if not low_in <= len(node.input) <= high_in or not low_out <= len(node.output) <= high_out:
        raise bad_graph(
            f"{node.op_type} has {len(node.input)} inputs and {len(node.output)} outputs; "
            f"{low_in} to {high_in} and {low_out} to {high_out} are allowed.",
            operator=node.op_type,
        )


def _check_attributes(node: Any, operator: str, signature: Signature) -> None:
    seen: set[str] = set()
    for attribute in node.attribute:
        name = _name(attribute.name, "attribute")
        if name in seen:
            raise bad_graph(f"{operator} has two attributes {name!r}.", operator=operator, attribute=name)
        seen.add(name)
        _check_attribute_type(attribute, operator, signature)
        _check_bounds(attribute, operator)
        for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
            check_tensor(tensor, f"{operator}.{name}")


def _check_attribute_type(attribute: Any, operator: str, signature: Signature) -> None:
    filled = [f for f in VALUE_FIELDS if (len(getattr(attribute, f)) if f in REPEATED else attribute.HasField(f))]
    stated = attribute.type
    wrong = (
        attribute.ref_attr_name
        or attribute.HasField("sparse_tensor")
        or attribute.sparse_tensors
        or attribute.HasField("tp")
        or any(FIELD_TYPE.get(f) != stated for f in filled)
        or (stated in (ATTRIBUTE.TENSOR, ATTRIBUTE.GRAPH) and not filled)
    )
    expected = stated if signature.attributes is None else signature.attributes.get(attribute.name)
    if wrong or stated != expected:
        raise bad_graph(
            f"Attribute {attribute.name!r} of {operator} has another type than the operator's definition says.",
            operator=operator,
            attribute=attribute.name,
        )


def _check_bounds(attribute: Any, operator: str) -> None:
    if attribute.name not in BOUNDS:
        return
    low, high = CROPPING_PADS if (operator, attribute.name) == ("Pad", "pads") else BOUNDS[attribute.name]
    for value in (*attribute.ints, *([attribute.i] if attribute.HasField("i") else [])):
        if not low <= value <= high:
            raise bad_graph(
                f"{attribute.name!r} of {operator} holds {value}; {low} to {high} are allowed.",
                operator=operator,
                attribute=attribute.name,
                value=value,
            )


@functools.cache
def _signature(domain: str, operator: str, version: int) -> Signature:
    """The operator's definition in that version."""
    if domain == "com.microsoft":
        return Signature(None, MICROSOFT_INPUTS[operator], (1, limits.NODE_OUTPUTS), frozenset({0}), False)
    try:
        schema = onnx.defs.get_schema(operator, version, domain)
    except onnx.defs.SchemaError as error:
        raise _unsupported(domain, operator, f"is not part of operator set {version}") from error
    attributes = {name: int(item.type.value) for name, item in schema.attributes.items()}
    kinds = [item.option for item in schema.inputs]
    return Signature(
        attributes=attributes,
        inputs=(schema.min_input, schema.max_input),
        outputs=(schema.min_output, schema.max_output),
        needed=frozenset(place for place, kind in enumerate(kinds) if kind != OPTION.Optional),
        rest_needed=OPTION.Variadic in kinds,
    )


def _unsupported(domain: str, operator: str, why: str) -> EngineError:
    full = f"{domain or 'ai.onnx'}.{operator}"
    return EngineError(
        "MODEL_UNSUPPORTED_OP",
        f"Operator {full} {why}.",
        "Export the classifier alone, without preprocessing loops, sampling or custom operators.",
        operator=full,
    )


def check_tensor(tensor: Any, where: str) -> None:
    """One TensorProto: a type that we know, sane dimensions, and exactly as much data as they say.

    Raises:
        EngineError: MODEL_BAD_TENSOR.
    """
    if tensor.data_type not in ITEM_BYTES:
        raise _bad_tensor(f"{where!r} has element type {tensor.data_type}, which no teacher needs.", tensor=where)
    if tensor.HasField("segment") or tensor.string_data:
        raise _bad_tensor(f"{where!r} is stored in segments or strings.", tensor=where)
    _name(tensor.name, "tensor", empty_allowed=True)
    if len(tensor.dims) > limits.TENSOR_RANK or any(not 0 <= d <= limits.DIMENSION for d in tensor.dims):
        raise _bad_tensor(f"{where!r} has dimensions {list(tensor.dims)[:9]}.", tensor=where)
    elements = math.prod(tensor.dims)
    filled = [name for name in TYPED_FIELDS if len(getattr(tensor, name))]
    if filled:
        own = OWN_FIELD.get(tensor.data_type, "int32_data")
        per_item = 2 if ITEM_BYTES[tensor.data_type] < 1 else 1
        expected, actual = -(-elements // per_item), len(getattr(tensor, own))
        fits = filled == [own] and not tensor.raw_data
    else:
        expected, actual, fits = math.ceil(elements * ITEM_BYTES[tensor.data_type]), len(tensor.raw_data), True
    if not fits or expected != actual:
        raise _bad_tensor(
            f"{where!r} has dimensions {list(tensor.dims)} but data for {actual} instead of {expected}.",
            tensor=where,
            expected=expected,
            actual=actual,
        )
