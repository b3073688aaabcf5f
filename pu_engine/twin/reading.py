"""A canonical ONNX model to a twin's structure and weights.

What a graph computes from shapes alone is not part of a twin: it is observed in onnxruntime at three batches, and what
it gave becomes a setting, whole numbers that grow with the batch if they do. What it computes from constants alone
becomes a constant. So the table needs the operators that touch pixels, and few others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pu_engine.errors import EngineError
from pu_engine.runtime import forward
from pu_engine.teacher import graph_surgery
from pu_engine.twin.operators import ANCHOR, OPERATORS, key
from pu_engine.twin.structure import PerBatch, Step, Structure, TwinUnavailable, Weight
from pu_engine.twin.torch_twin import Twin

BATCHES = (2, 3, 5)  # two give slope and offset, the third tests them; 1 would hide what broadcasts
# Whose constants are no weights: stored statistics by their inputs' positions, preprocessing, bounds and exponents.
STATISTICS = {"BatchNormalization": (3, 4)}
FORMULAS = ("Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Pow", "Sub")
BY_VALUE = ("Add", "Mul", "Sum", "Where", "Concat", "Expand")  # here a single number is a formula's, two are a mask
# Operators that leave integers as the quantiser made them, so that they mean the same on real values.
QUANTISED_PASS = (
    "Concat", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
    "Unsqueeze",
)  # fmt: skip
Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What doesn't depend on pixels: constants, and shapes that grow with the batch."""

    constants: Mapping[str, Array]
    shapes: Mapping[str, PerBatch]


def read(model: Any) -> tuple[Structure, dict[str, Array]]:
    """Structure and weights of the model's twin.

    Args:
        model: one image input with fixed dimensions and a free batch; the first output are the logits.

    Raises:
        TwinUnavailable: a node, or the model as a whole, that can't be taken.
    """
    source = graph_surgery.image_input(model)
    if source.dims[0] is not None:
        raise TwinUnavailable("", "", f"the model runs at a batch of {source.dims[0]} only")
    dims = tuple(d for d in source.dims[1:] if d is not None)
    if len(dims) < len(source.dims) - 1:
        raise TwinUnavailable("", "", "the model's image size is open")
    known = _observed(model, source.dtype, dims)
    nodes = _kept(model, known)
    _check_quantised(nodes)
    opset = graph_surgery.opset(model)
    read_names = {name for node in nodes for name in node.input} | {item.name for item in model.graph.output}
    steps = [_step(node, opset, known, read_names) for node in nodes]
    weights = _weights(steps, known.constants)
    structure = Structure(
        input=source.name,
        dtype=source.dtype,
        dims=dims,
        outputs=tuple(item.name for item in model.graph.output),
        steps=tuple(replace(step, inputs=tuple(_renamed(n, weights) for n in step.inputs)) for step in steps),
        weights=tuple(weights.values()),
    )
    return structure, {w.name: _stored(known.constants[w.source]) for w in weights.values()}


def _observed(model: Any, dtype: str, dims: Sequence[int]) -> _Known:
    """Every tensor that depends on no pixel: its value, or how it grows with the batch."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    data = graph_surgery.data_tensors(model)
    by_shape = _after_shapes(model)
    names = [n for node in model.graph.node if not data.intersection(node.output) for n in node.output if n]
    generator = np.random.default_rng(0)

    def observe(wanted: list[str], batch: int) -> dict[str, Array]:
        if not wanted:
            return {}
        part = forward.with_outputs(model, wanted)
        graph_surgery.prune(part)
        rows = generator.integers(0, 2, (batch, *dims)).astype(dtype)
        try:
            return forward.observe(part, wanted, rows, 1)
        except EngineError as error:
            raise TwinUnavailable("", "", f"what it computes from shapes can't be observed: {error.message}") from error

    constants |= observe([n for n in names if n not in by_shape], 1)
    runs = [observe([n for n in names if n in by_shape], batch) for batch in BATCHES]
    shapes = {}
    for name in runs[0]:
        values = [np.asarray(run[name]) for run in runs]
        if all(v.shape == values[0].shape for v in values[1:]):
            if all(np.array_equal(v, values[0]) for v in values[1:]):
                constants[name] = values[0]
            elif (growth := _growth(values)) is not None:
                shapes[name] = growth
    return _Known(constants=constants, shapes=shapes)


def _after_shapes(model: Any) -> set[str]:
    """Tensors that depend on the shape of one that depends on pixels."""
    data = graph_surgery.data_tensors(model)
    found: set[str] = set()
    for node in model.graph.node:
        reads = set(graph_surgery.reads_of(node))
        if found & reads or (node.op_type in graph_surgery.SHAPE_READERS and data & reads):
            found.update(name for name in node.output if name)
    return found


def _growth(values: Sequence[Array]) -> PerBatch | None:
    """Whole numbers as slope * N + offset, if that is what three batches gave."""
    if values[0].dtype.kind not in "iu" or values[0].ndim > 1:
        return None
    low, middle, high = (v.astype(np.int64).reshape(-1) for v in values)
    slope = (middle - low) // (BATCHES[1] - BATCHES[0])
    offset = low - slope * BATCHES[0]
    if not np.array_equal(high, slope * BATCHES[2] + offset):
        return None
    terms = tuple((int(a), int(b)) for a, b in zip(slope, offset, strict=True))
    return PerBatch(terms=terms, scalar=values[0].ndim == 0)


def _kept(model: Any, known: _Known) -> list[Any]:
    """The nodes that a twin has to run, in order: those that make an output out of what is not known."""
    needed, kept = {item.name for item in model.graph.output}, []
    for node in reversed(model.graph.node):
        if not needed.intersection(name for name in node.output if name):
            continue
        kept.append(node)
        settings = _settings_by_position(node, graph_surgery.opset(model))
        for position, name in enumerate(node.input):
            if name and name not in known.constants and not (position in settings and name in known.shapes):
                needed.add(name)
    return kept[::-1]


def _settings_by_position(node: Any, opset: int) -> Mapping[int, str]:
    name = key(node.domain, node.op_type, opset)
    if name not in OPERATORS:
        raise TwinUnavailable(node.op_type, _label(node), _missing(node))
    return OPERATORS[name].settings


def _missing(node: Any) -> str:
    if node.op_type in graph_surgery.SHAPE_READERS:
        return "it reads the batch for something other than a size that grows with it"
    return "torch has no form of this operator in the twin's table"


def _label(node: Any) -> str:
    return str(node.name or node.output[0])


def _check_quantised(nodes: Sequence[Any]) -> None:
    """Between a quantiser and its counterpart nothing may compute: integers mean other values there."""
    quantised: set[str] = set()
    for node in nodes:
        if node.op_type == "QuantizeLinear":
            quantised.update(node.output)
        elif node.op_type != "DequantizeLinear" and quantised.intersection(node.input):
            if node.op_type not in QUANTISED_PASS:
                raise TwinUnavailable(node.op_type, _label(node), "it computes with quantised values")
            quantised.update(node.output)


def _step(node: Any, opset: int, known: _Known, read_names: set[str]) -> Step:
    name = key(node.domain, node.op_type, opset)
    settings = {_keyword(a.name): _attribute(node, a) for a in node.attribute}
    operands = []
    for position, value in enumerate(node.input):
        keyword = OPERATORS[name].settings.get(position)
        if keyword is None:
            operands.append(value)
        elif value:
            settings[keyword] = _setting(node, keyword, value, known)
    while operands and not operands[-1]:
        operands.pop()
    outputs = [value if value in read_names else "" for value in node.output]
    while outputs and not outputs[-1]:
        outputs.pop()
    if name in ("QuantizeLinear", "DequantizeLinear") and "scale" not in settings:
        raise TwinUnavailable(node.op_type, _label(node), "it has no scale")
    if name == "Split":
        settings["num_outputs"] = len(node.output)
    elif name == "QuantizeLinear":
        settings = _range(node, settings, known)
    elif name == "DequantizeLinear":
        settings = _scaled(node, settings)
    return _bound(
        Step(operator=name, node=_label(node), inputs=tuple(operands), outputs=tuple(outputs), settings=settings)
    )


def _keyword(attribute: str) -> str:
    """Python's form of a name: `transA` is `trans_a`."""
    return re.sub("([A-Z])", r"_\1", attribute).lower()


def _bound(step: Step) -> Step:
    """The step, once its function is known to take its inputs and settings."""
    signature = OPERATORS[step.operator].signature
    anchor = {ANCHOR: None} if ANCHOR in signature.parameters else {}
    try:
        signature.bind(*step.inputs, **step.settings, **anchor)
    except TypeError as error:
        raise TwinUnavailable(step.operator, step.node, f"its form is not known: {error}") from error
    return step


def _attribute(node: Any, attribute: Any) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, onnx.TensorProto) and np.prod(value.dims) == 1:
        return numpy_helper.to_array(value).reshape(-1).tolist()[0]
    if isinstance(value, int | float):
        return value
    if isinstance(value, list) and all(isinstance(item, int | float) for item in value):
        return list(value)
    raise TwinUnavailable(node.op_type, _label(node), f"its attribute {attribute.name!r} is no number")


def _setting(node: Any, keyword: str, name: str, known: _Known) -> Any:
    if name in known.constants:
        array = known.constants[name]
        if array.ndim > 1:
            raise TwinUnavailable(node.op_type, _label(node), f"its {keyword!r} has {array.ndim} dimensions")
        return _plain(array)
    if name in known.shapes:
        return known.shapes[name]
    raise TwinUnavailable(node.op_type, _label(node), f"its {keyword!r} depends on the image")


def _plain(array: Array) -> Any:
    """Python numbers; an empty list says nothing and becomes None."""
    wide = array if array.dtype.kind in "iub" else array.astype(np.float64)
    return None if array.size == 0 and array.ndim else wide.tolist()


def _list(node: Any, value: Any) -> list[float]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(v, int | float) for v in values):
        raise TwinUnavailable(node.op_type, _label(node), "its scale or zero point depends on the batch")
    return [float(v) for v in values]


def _range(node: Any, settings: Mapping[str, Any], known: _Known) -> dict[str, Any]:
    """A quantiser's step and its range in steps from zero."""
    named = len(node.input) > 2 and node.input[2]
    stored = known.constants.get(node.input[2]) if named else np.zeros(1, np.uint8)
    if stored is None:
        raise TwinUnavailable(node.op_type, _label(node), "its zero point depends on the image or the batch")
    if settings.get("block_size") or (settings.get("output_dtype") and not named):
        raise TwinUnavailable(node.op_type, _label(node), "it has a scale for each block, or no zero point")
    if stored.dtype not in (np.uint8, np.int8, np.uint16, np.int16):
        raise TwinUnavailable(node.op_type, _label(node), f"it quantises to {stored.dtype}")
    point, limits = np.atleast_1d(stored.astype(np.float64)), np.iinfo(stored.dtype)
    result = {
        "scale": _list(node, settings["scale"]),
        "low": (limits.min - point).tolist(),
        "high": (limits.max - point).tolist(),
    }
    return result | ({"axis": settings["axis"]} if "axis" in settings else {})


def _scaled(node: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    if settings.get("block_size"):
        raise TwinUnavailable(node.op_type, _label(node), "it has a scale for each block")
    result: dict[str, Any] = {
        "scale": _list(node, settings["scale"]),
        "zero_point": _list(node, settings.get("zero_point", 0.0)),
    }
    return result | ({"axis": settings["axis"]} if "axis" in settings else {})


def _weights(steps: Sequence[Step], constants: Mapping[str, Array]) -> dict[str, Weight]:
    """A weight for each constant that a step takes as a tensor, by its name in the graph."""
    trainable: dict[str, bool] = {}
    for step in steps:
        for position, name in enumerate(step.inputs):
            if name in constants:
                if not (_is_float(constants[name]) or constants[name].dtype.kind in "iub"):
                    raise TwinUnavailable(step.operator, step.node, f"{name!r} holds no numbers")
                learns = _learns(step.operator, position, constants[name])
                trainable[name] = trainable.get(name, False) or learns
    taken = {name for step in steps for name in (*step.inputs, *step.outputs) if name not in constants}
    weights = {}
    for source, learns in trainable.items():
        name = _attribute_name(source, taken)
        taken.add(name)
        weights[source] = Weight(name=name, source=source, trainable=learns)
    return weights


def _learns(operator: str, position: int, value: Array) -> bool:
    if not _is_float(value) or operator in FORMULAS or position in STATISTICS.get(operator, ()):
        return False
    mask = value.size > 2 and np.unique(value).size == 2  # of attention: 0 and something large
    return not (operator in BY_VALUE and (value.size == 1 or mask))


def _is_float(value: Array) -> bool:
    return value.dtype.kind == "f" or value.dtype.name == "bfloat16"


def _attribute_name(source: str, taken: set[str]) -> str:
    """A name that a module can have, near to the graph's."""
    name = re.sub(r"\W", "_", source, flags=re.ASCII)
    if not name or name[0].isdigit() or name[0] == "_" or hasattr(Twin, name):
        name = f"w_{name}"
    candidates = (name, *(f"{name}_{number}" for number in range(len(taken) + 1)))
    return next(n for n in candidates if n not in taken and n != ANCHOR)


def _renamed(name: str, weights: Mapping[str, Weight]) -> str:
    return weights[name].name if name in weights else name


def _stored(value: Array) -> Array:
    """Floats in single precision, whatever the graph keeps them in."""
    return np.array(value, dtype=np.float32 if _is_float(value) else value.dtype, order="C")
