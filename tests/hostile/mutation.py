"""Seeded mutants of ONNX models: one third of them changed in their bytes, two thirds in their structure.

A mutant depends on the seed models, the seed and its index only, so that any of them can be made again alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pu_engine.guard.graph_walk import OPERATORS, graphs_of

EDGES = (0, 1, -1, 2**31 - 1, 2**31, 2**31 + 1, -(2**31), -(2**31) - 1, 2**62, -(2**63))
SMALL = (2, 3, 4, 5, 7, 8, 9, 16)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan"), 0.5)
TEXTS = ("", "NOTSET", "SAME_UPPER", "VALID", "nearest", "cubic", "reflect", "edge", "SOFTMAX", "BRANCH_EQ", "i,ij->j")
DTYPES = (np.float32, np.float16, np.float64, np.int8, np.uint8, np.int32, np.int64, np.bool_)
CHANGES_SHARES = (0.6, 0.25, 0.15)  # of mutants with one, two and three changes
Generator = np.random.Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One changed model."""

    index: int
    source: str
    data: bytes


def mutants(models: Mapping[str, bytes], seed: int, indices: range) -> Iterator[Mutant]:
    """The mutants with these indices."""
    names = sorted(models)
    for index in indices:
        generator = np.random.default_rng((seed, index))
        source = names[int(generator.integers(len(names)))]
        change = _bytes_changed if index % 3 == 0 else _structure_changed
        yield Mutant(index=index, source=source, data=change(models[source], generator))


def _changes(generator: Generator) -> int:
    return 1 + int(generator.choice(len(CHANGES_SHARES), p=CHANGES_SHARES))


def _bytes_changed(data: bytes, generator: Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(_changes(generator)):
        at, length = int(generator.integers(len(changed))), int(generator.integers(1, 9))
        noise = generator.integers(0, 256, length, np.uint8).tobytes()
        match int(generator.integers(6)):
            case 0:
                changed[at] ^= 1 << int(generator.integers(8))
            case 1:
                changed[at : at + length] = noise
            case 2:
                changed[at:at] = noise
            case 3:
                del changed[at : at + length]
            case 4:
                other = int(generator.integers(len(changed)))
                changed[at:at] = changed[other : other + 8 * length]
            case _:
                changed[at : at + 1] = _varint(int(generator.choice(EDGES)))
        if not changed:
            break
    return bytes(changed)


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _structure_changed(data: bytes, generator: Generator) -> bytes:
    model = onnx.ModelProto.FromString(data)
    for _ in range(_changes(generator)):
        CHANGES[int(generator.integers(len(CHANGES)))](model, generator)
    changed: bytes = model.SerializeToString()
    return changed


def _pick(items: Any, generator: Generator) -> Any:
    """One of the items; None where there is none."""
    kept = list(items)
    return kept[int(generator.integers(len(kept)))] if kept else None


def _integer(generator: Generator) -> int:
    return int(_pick((*EDGES, *SMALL), generator))


def _graph(model: Any, generator: Generator) -> Any:
    return _pick(graphs_of(model.graph), generator)


def _node(model: Any, generator: Generator) -> Any:
    nodes = [node for graph in graphs_of(model.graph) for node in graph.node]
    return _pick([*nodes, *(node for function in model.functions for node in function.node)], generator)


def _names(model: Any) -> list[str]:
    graph = model.graph
    made = [name for node in graph.node for name in node.output]
    return [*(item.name for item in graph.input), *(t.name for t in graph.initializer), *made]


def _change_attribute(model: Any, generator: Generator) -> None:
    nodes = [node for graph in graphs_of(model.graph) for node in graph.node if node.attribute]
    node = _pick(nodes, generator)
    attribute = _pick(node.attribute, generator) if node is not None else None
    if attribute is None:
        return
    match attribute.type:
        case onnx.AttributeProto.INT:
            attribute.i = _clamped(_integer(generator))
        case onnx.AttributeProto.FLOAT:
            attribute.f = float(generator.choice(FLOATS))
        case onnx.AttributeProto.STRING:
            attribute.s = str(generator.choice(TEXTS)).encode()
        case onnx.AttributeProto.INTS:
            _change_list(attribute.ints, _clamped(_integer(generator)), generator)
        case onnx.AttributeProto.FLOATS:
            _change_list(attribute.floats, float(generator.choice(FLOATS)), generator)
        case onnx.AttributeProto.STRINGS:
            _change_list(attribute.strings, str(generator.choice(TEXTS)).encode(), generator)
        case _:
            attribute.Clear()


def _change_list(values: Any, value: Any, generator: Generator) -> None:
    at = int(generator.integers(len(values))) if len(values) else 0
    match int(generator.integers(4)):
        case 0:
            values.append(value)
        case 1 if len(values):
            del values[at]
        case _ if len(values):
            values[at] = value


def _clamped(value: int) -> int:
    return max(-(2**63), min(2**63 - 1, value))


def _drop_attribute(model: Any, generator: Generator) -> None:
    node = _node(model, generator)
    if node is not None and len(node.attribute):
        del node.attribute[int(generator.integers(len(node.attribute)))]


def _empty_attribute(model: Any, generator: Generator) -> None:
    """An attribute that states its type and holds nothing."""
    node = _node(model, generator)
    attribute = _pick(node.attribute, generator) if node is not None else None
    if attribute is not None:
        name, kind = attribute.name, attribute.type
        attribute.Clear()
        attribute.name, attribute.type = name, kind


def _add_attribute(model: Any, generator: Generator) -> None:
    node, donor = _node(model, generator), _node(model, generator)
    attribute = _pick(donor.attribute, generator) if donor is not None else None
    if node is not None and attribute is not None:
        copy = onnx.AttributeProto()  # the donor may be the node itself, whose list grows
        copy.CopyFrom(attribute)
        node.attribute.append(copy)


def _swap_operator(model: Any, generator: Generator) -> None:
    node = _node(model, generator)
    if node is not None:
        domain = str(_pick(sorted(OPERATORS), generator)) if generator.random() < 0.2 else node.domain
        node.op_type = str(_pick(sorted(OPERATORS.get(domain, OPERATORS[""])), generator))
        node.domain = domain
        if generator.random() < 0.7:
            node.ClearField("attribute")


def _rewire(model: Any, generator: Generator) -> None:
    node = _node(model, generator)
    if node is not None and len(node.input):
        names = [*_names(model), "", "nowhere"]
        node.input[int(generator.integers(len(node.input)))] = str(_pick(names, generator))


def _add_input(model: Any, generator: Generator) -> None:
    node = _node(model, generator)
    if node is not None:
        node.input.append(str(_pick([*_names(model), ""], generator)))


def _drop_input(model: Any, generator: Generator) -> None:
    node = _node(model, generator)
    if node is not None and len(node.input):
        del node.input[int(generator.integers(len(node.input))) :]


def _drop_node(model: Any, generator: Generator) -> None:
    graph = _graph(model, generator)
    if len(graph.node):
        del graph.node[int(generator.integers(len(graph.node)))]


def _bypass_node(model: Any, generator: Generator) -> None:
    """Take a node out; who read its output reads its input."""
    at = int(generator.integers(len(model.graph.node))) if len(model.graph.node) else -1
    if at < 0 or not (model.graph.node[at].input and model.graph.node[at].output):
        return
    source, target = model.graph.node[at].input[0], model.graph.node[at].output[0]
    del model.graph.node[at]
    for graph in graphs_of(model.graph):
        for node in graph.node:
            for index, name in enumerate(node.input):
                node.input[index] = source if name == target else name


def _insert_node(model: Any, generator: Generator) -> None:
    """An operator of the list between a tensor and one of its readers."""
    at = int(generator.integers(len(model.graph.node) + 1))
    domain = "" if generator.random() < 0.85 else "com.microsoft"
    operator = str(_pick(sorted(OPERATORS[domain]), generator))
    known = [item.name for item in (*model.graph.input, *model.graph.initializer)]
    known += [name for node in model.graph.node[:at] for name in node.output if name]
    sources = [str(_pick(known, generator)) for _ in range(int(generator.integers(0, 4)))]
    target = f"new_{at}_{len(model.graph.node)}"
    node = helper.make_node(operator, sources, [target], domain=domain)
    if operator == "Cast":
        node.attribute.append(helper.make_attribute("to", int(_pick((1, 2, 3, 6, 7, 9, 10, 11), generator))))
    model.graph.node.insert(at, node)
    if domain and not any(item.domain == domain for item in model.opset_import):
        model.opset_import.add(domain=domain, version=1)
    reader = _pick(model.graph.node[at + 1 :], generator)
    if reader is not None and len(reader.input):
        reader.input[int(generator.integers(len(reader.input)))] = target


def _change_output(model: Any, generator: Generator) -> None:
    """Another tensor among the graph's outputs."""
    name = str(_pick(_names(model), generator))
    item = _pick(model.graph.output, generator)
    if item is None or generator.random() < 0.5:
        model.graph.output.add(name=name)
        return
    item.name = name
    if generator.random() < 0.5:
        item.ClearField("type")


def _change_type(model: Any, generator: Generator) -> None:
    """Another declared dimension or element type of an input or output."""
    item = _pick((*model.graph.input, *model.graph.output), generator)
    if item is None:
        return
    tensor = item.type.tensor_type
    dimension = _pick(tensor.shape.dim, generator)
    match int(generator.integers(4)):
        case 0:
            tensor.elem_type = int(_pick((1, 2, 3, 6, 7, 9, 10, 11, 16), generator))
        case 1 if dimension is not None:
            dimension.Clear()
            dimension.dim_param = "N"
        case 2 if dimension is not None and len(tensor.shape.dim):
            tensor.shape.dim.add().dim_value = dimension.dim_value
        case _ if dimension is not None:
            dimension.dim_value = _clamped(_integer(generator))


def _change_dims(model: Any, generator: Generator) -> None:
    """Dimensions of a constant, which lie now, or keep its size in another shape."""
    tensor = _pick(model.graph.initializer, generator)
    if tensor is None:
        return
    dims = list(tensor.dims)
    if generator.random() < 0.5 and dims:
        dims[int(generator.integers(len(dims)))] = _clamped(_integer(generator))
    else:
        dims = [int(d) for d in generator.permutation(dims)] if len(dims) > 1 else [1, *dims]
    del tensor.dims[:]
    tensor.dims.extend(dims)


def _change_constant(model: Any, generator: Generator) -> None:
    """Values, type or length of a constant, its dimensions telling the truth."""
    tensor = _pick(model.graph.initializer, generator)
    if tensor is None or tensor.data_type == 0 or tensor.external_data:
        return
    try:
        array = np.array(numpy_helper.to_array(tensor))
    except (ValueError, TypeError):
        return  # an earlier change made it lie
    with np.errstate(all="ignore"):
        match int(generator.integers(4)):
            case 0:
                array = array.astype(_pick(DTYPES, generator))
            case 1:
                array = array.reshape(-1)[: int(generator.integers(0, array.size + 1))]
            case _ if array.size and array.dtype.kind in "iub":
                value = _clamped(_integer(generator))
                wrapped = np.array([value], np.int64).astype(array.dtype)[0]
                array.reshape(-1)[int(generator.integers(array.size))] = wrapped
            case _ if array.size:
                array.reshape(-1)[int(generator.integers(array.size))] = float(generator.choice(FLOATS))
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _change_versions(model: Any, generator: Generator) -> None:
    item = _pick(model.opset_import, generator)
    if item is not None and generator.random() < 0.8:
        item.version = int(generator.integers(1, 29)) if generator.random() < 0.8 else _clamped(_integer(generator))
    else:
        model.ir_version = int(generator.integers(0, 16))


def _make_external(model: Any, generator: Generator) -> None:
    tensor = _pick(model.graph.initializer, generator)
    if tensor is not None:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=str(_pick(("w", "../w", "/etc/hostname", ""), generator)))
        tensor.external_data.add(key="offset", value=str(_integer(generator)))


CHANGES: tuple[Callable[[Any, Generator], None], ...] = (
    *(_change_attribute, _drop_attribute, _empty_attribute, _add_attribute, _swap_operator, _swap_operator),
    *(_rewire, _rewire, _add_input, _drop_input, _drop_node, _bypass_node, _insert_node, _insert_node),
    *(_change_output, _change_type, _change_dims, _change_constant, _change_constant, _change_versions),
    _make_external,
)
