"""A guarded model becomes the canonical one: input `input`, output `logits` [N, K] float32, batch free if it can be."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pu_engine.errors import EngineError
from pu_engine.guard.graph_walk import graphs_of

INPUT, LOGITS = "input", "logits"
TAP_PREFIX = "tap_"
DTYPES: Mapping[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.INT8: "int8",
}
NORMALISERS = ("Softmax", "LogSoftmax", "Sigmoid")
# Operators between a normaliser and the output that keep which value belongs to which class.
TRANSPARENT = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "QuantizeLinear", "DequantizeLinear", "ZipMap")
SHAPE_READERS = ("Shape", "Size")
# They scale a whole batch by its largest value: an image's scores depend on its neighbours.
BATCH_DEPENDENT = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul")
LOWEST_PROBABILITY = 1e-12  # log(0) would be no logit
OPSET_WITH_CLIP_INPUTS = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """The image input as the file declares it; None where a dimension is free."""

    name: str
    dtype: str
    dims: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTail:
    """Where the scores of an output are logits, and what the file does to them after."""

    output: str
    logits: str
    normaliser: str = ""  # Softmax | LogSoftmax | Sigmoid, stripped
    scale: float = 1.0  # of an integer output: value = (stored - zero_point) * scale
    zero_point: float = 0.0
    step: float = 0.0  # to which the file rounds its scores, 0 where it does not


def image_input(model: Any) -> ModelInput:
    """The one input of a model, initialisers apart.

    Raises:
        EngineError: TEACHER_NOT_A_CLASSIFIER for another number of inputs, type or rank.
    """
    if len(model.graph.input) != 1:
        raise not_a_classifier(f"The model has {len(model.graph.input)} inputs; one image is expected.")
    item = model.graph.input[0]
    tensor = item.type.tensor_type
    if tensor.elem_type not in DTYPES or len(tensor.shape.dim) not in (2, 4):
        raise not_a_classifier(
            f"Input {item.name!r} has element type {tensor.elem_type} and rank {len(tensor.shape.dim)}; "
            "images of rank 4 or rows of rank 2, as float32, float64, float16, uint8 or int8, are expected."
        )
    dims = tuple(d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim)
    return ModelInput(name=item.name, dtype=DTYPES[tensor.elem_type], dims=dims)


def not_a_classifier(message: str, **details: object) -> EngineError:
    """The model can be read, but is no image classifier that Punnet knows."""
    return EngineError(
        "TEACHER_NOT_A_CLASSIFIER",
        message,
        "Export a model from one image to the scores of its classes, [N, K].",
        **details,
    )


def hoist_constants(model: Any) -> None:
    """Turn Constant nodes of the main graph into initialisers, in place, so that there is one kind of constant."""
    kept = []
    for node in model.graph.node:
        value = node.attribute[0] if node.op_type == "Constant" and len(node.attribute) == 1 else None
        if value is None or value.name not in ("value", "value_float", "value_int", "value_floats", "value_ints"):
            kept.append(node)
            continue
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(value.t if value.name == "value" else _tensor(value))
        tensor.name = node.output[0]
    _replace_nodes(model, kept)


def _tensor(attribute: Any) -> Any:
    dtype = np.float32 if "float" in attribute.name else np.int64
    return numpy_helper.from_array(np.asarray(helper.get_attribute_value(attribute), dtype))


def _replace_nodes(model: Any, nodes: Iterable[Any]) -> None:
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    model.graph.ClearField("node")
    model.graph.node.extend(copies)


def producers(model: Any) -> dict[str, Any]:
    """Node by the name of each of its outputs."""
    return {name: node for node in model.graph.node for name in node.output if name}


def constants(model: Any) -> dict[str, NDArray[Any]]:
    """Initialisers as arrays, small ones only: shapes, axes, scales."""
    return {
        t.name: numpy_helper.to_array(t) for t in model.graph.initializer if np.prod(t.dims, dtype=np.float64) <= 64
    }


def reads_of(node: Any) -> list[str]:
    """Names that a node reads, those of its subgraphs included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for graph in graphs_of(attribute.g):
                names += [name for below in graph.node for name in below.input if name]
                names += [item.name for item in graph.output]
    return names


def data_tensors(model: Any) -> set[str]:
    """Tensors whose values depend on the image's pixels, not only on its shape."""
    found = {item.name for item in model.graph.input}
    for node in model.graph.node:
        if node.op_type not in SHAPE_READERS and found.intersection(reads_of(node)):
            found.update(name for name in node.output if name)
    return found


def score_tail(model: Any, output: str) -> ScoreTail:
    """Walk from an output back over what only rescales the scores.

    The tensor before a softmax is preferred to its logarithm: the softmax loses their common level.
    """
    made, values = producers(model), constants(model)
    tail = ScoreTail(output=output, logits=output)
    name = output
    while name in made and made[name].op_type in TRANSPARENT:
        node = made[name]
        if node.op_type == "ZipMap":
            # A list of dictionaries is no tensor; what it is made of is.
            tail = ScoreTail(output=node.input[0], logits=node.input[0])
        if node.op_type == "QuantizeLinear":
            scale, zero_point = _quantisation(node, values)
            stored = (scale, zero_point) if name == output else (1.0, 0.0)
            tail = ScoreTail(output=tail.output, logits=tail.logits, scale=stored[0], zero_point=stored[1], step=scale)
            if name == output:
                tail = dataclasses.replace(tail, logits=node.input[0])
        name = node.input[0]
    if name in made and made[name].op_type in NORMALISERS:
        return dataclasses.replace(tail, logits=made[name].input[0], normaliser=made[name].op_type)
    return tail


def _quantisation(node: Any, values: Mapping[str, NDArray[Any]]) -> tuple[float, float]:
    scale = values.get(node.input[1])
    zero_point = values.get(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    if scale is None or zero_point is None or scale.size != 1 or zero_point.size != 1:
        raise not_a_classifier(f"Output {node.output[0]!r} is quantised by a scale that is no constant.")
    return float(scale.reshape(())), float(zero_point.reshape(()))


def canonical(model: Any, tail: ScoreTail, logits: NDArray[Any], dims: Sequence[int], *, probabilities: bool) -> Any:
    """The canonical model at a fixed input shape; `free_batch` lets the batch go.

    Args:
        logits: what `tail.logits` held in a run: its type and rank are facts.
        dims: the input's shape, batch first.
        probabilities: the scores are probabilities without a normaliser to strip, so their logarithm is appended.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.ClearField("output")
    names = _rename(result, model.graph.input[0].name)
    last = names.get(tail.logits, tail.logits)
    steps = []
    if logits.dtype != np.float32:
        steps.append(("Cast", {"to": onnx.TensorProto.FLOAT}))
    if logits.ndim != 2:
        steps.append(("Flatten", {"axis": 1}))
    if probabilities:
        steps += [("Clip", {"min": LOWEST_PROBABILITY, "max": 1.0}), ("Log", {})]
    steps = steps or [("Identity", {})]
    for index, (operator, settings) in enumerate(steps):
        attributes = settings
        target = LOGITS if index == len(steps) - 1 else f"{LOGITS}_{index}"
        inputs = [last]
        if operator == "Clip" and opset(result) >= OPSET_WITH_CLIP_INPUTS:
            bounds = [
                numpy_helper.from_array(np.float32(v).reshape(()), f"{LOGITS}_{k}") for k, v in attributes.items()
            ]
            result.graph.initializer.extend(bounds)
            inputs, attributes = [last, *(b.name for b in bounds)], {}
        result.graph.node.append(helper.make_node(operator, inputs, [target], **attributes))
        last = target
    classes = logits.size // logits.shape[0]
    result.graph.output.append(helper.make_tensor_value_info(LOGITS, onnx.TensorProto.FLOAT, [dims[0], classes]))
    for dimension, size in zip(result.graph.input[0].type.tensor_type.shape.dim, dims, strict=True):
        dimension.Clear()
        dimension.dim_value = size
    prune(result)
    return result


def opset(model: Any) -> int:
    """Version of the standard operators."""
    return next(int(item.version) for item in model.opset_import if item.domain in ("", "ai.onnx"))


def _rename(model: Any, image: str) -> dict[str, str]:
    """Give the image input its name and free the names that Punnet uses."""
    taken = {n for graph in graphs_of(model.graph) for node in graph.node for n in (*node.input, *node.output)}
    taken |= {t.name for graph in graphs_of(model.graph) for t in graph.initializer}
    mine = {n for n in taken if n in (INPUT, LOGITS) or n.startswith((TAP_PREFIX, f"{LOGITS}_"))}
    names = {image: INPUT}
    for index, name in enumerate(sorted(mine - {image})):
        names[name] = next(n for n in (f"teacher_{index}{'_' * k}" for k in range(len(taken) + 1)) if n not in taken)
    for graph in graphs_of(model.graph):
        for item in (*graph.input, *graph.output, *graph.initializer):
            item.name = names.get(item.name, item.name)
        for node in graph.node:
            for index, name in enumerate(node.input):
                node.input[index] = names.get(name, name)
            for index, name in enumerate(node.output):
                node.output[index] = names.get(name, name)
    return names


def prune(model: Any) -> None:
    """Drop nodes and initialisers that no output needs, in place."""
    needed = {item.name for item in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(reads_of(node))
    _replace_nodes(model, reversed(kept))
    weights = model.graph.initializer
    for index in range(len(weights) - 1, -1, -1):
        if weights[index].name not in needed:
            del weights[index]


def _reshape_in_order(model: Any) -> None:
    """Turn gathers of all elements of a flat tensor, in their order, into reshapes, in place.

    torch 2.13's dynamo exporter writes adaptive mean pooling to one pixel so (`as_strided`), at a fixed batch only.
    """
    weights, values = {t.name: t for t in model.graph.initializer}, constants(model)
    flat = {n.output[0] for n in model.graph.node if n.op_type == "Reshape" and _is_flat(values.get(n.input[1]))}
    for index, node in enumerate(model.graph.node):
        if node.op_type != "Gather" or node.input[0] not in flat or node.input[1] not in weights:
            continue
        places = numpy_helper.to_array(weights[node.input[1]])
        along_first = all(a.i == 0 for a in node.attribute if a.name == "axis")
        if along_first and np.array_equal(places.reshape(-1), np.arange(places.size)):
            shape = numpy_helper.from_array(np.asarray(places.shape, np.int64), f"{node.input[1]}_shape_{index}")
            model.graph.initializer.append(shape)
            source, target = node.input[0], node.output[0]
            node.CopyFrom(helper.make_node("Reshape", [source, shape.name], [target]))


def _is_flat(shape: NDArray[Any] | None) -> bool:
    return shape is not None and shape.shape == (1,)


def _repeat_joined_constants(model: Any, batch: int) -> None:
    """Give constants that are joined to data at a fixed batch the batch of the data, in place: class tokens."""
    weights, data, kept = {t.name: t for t in model.graph.initializer}, data_tensors(model), []
    for index, node in enumerate(model.graph.node):
        along = next((a.i for a in node.attribute if a.name == "axis"), 0)
        beside = next((name for name in node.input if name in data), None)
        if node.op_type == "Concat" and along != 0 and beside is not None:
            for place, name in enumerate(node.input):
                rows = numpy_helper.to_array(weights[name]) if name in weights else np.zeros(0)
                if rows.ndim > 1 and len(rows) == batch and (rows == rows[:1]).all():
                    steps, node.input[place] = _repeated(model, rows[:1], beside, f"{LOGITS}_row_{index}_{place}")
                    kept += steps
        kept.append(node)
    _replace_nodes(model, kept)


def _repeated(model: Any, row: NDArray[Any], beside: str, name: str) -> tuple[list[Any], str]:
    """Nodes that repeat [1, ...] as often as another tensor has rows, and the name of what they make."""
    parts = {"": row, "_first": np.zeros(1, np.int64), "_rest": np.asarray(row.shape[1:], np.int64)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name + suffix) for suffix, value in parts.items())
    steps = [
        helper.make_node("Shape", [beside], [f"{name}_sizes"]),
        helper.make_node("Gather", [f"{name}_sizes", f"{name}_first"], [f"{name}_count"], axis=0),
        helper.make_node("Concat", [f"{name}_count", f"{name}_rest"], [f"{name}_shape"], axis=0),
        helper.make_node("Expand", [name, f"{name}_shape"], [f"{name}_rows"]),
    ]
    return steps, f"{name}_rows"


def free_batch(model: Any, *, rewrite: bool) -> Any:
    """A copy whose batch is dynamic; it has to be proved by running it.

    Args:
        rewrite: the file fixes the batch, so reshapes to it are rewritten.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    batch = result.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    for item in (*result.graph.input, *result.graph.output):
        dimension = item.type.tensor_type.shape.dim[0]
        dimension.Clear()
        dimension.dim_param = "N"
    if rewrite:
        _reshape_in_order(result)
        _repeat_joined_constants(result, batch)
    values, data = constants(result) if rewrite else {}, data_tensors(result)
    for index, node in enumerate(result.graph.node):
        if node.op_type not in ("Reshape", "Expand") or node.input[0] not in data or node.input[1] not in values:
            continue
        shape = values[node.input[1]].copy().reshape(-1)
        if shape.size == 0 or shape[0] != batch:
            continue
        if node.op_type == "Expand":
            shape[0] = 1
        else:
            # 0 keeps the input's own first dimension; -1 is right even where the batch was folded into others.
            shape[0] = 0 if -1 in shape[1:] else -1
        name = f"{node.input[1]}_free_{index}"
        result.graph.initializer.append(numpy_helper.from_array(shape, name))
        node.input[1] = name
    prune(result)
    return result
