"""Which tensors of a teacher describe an image: single-tensor cuts of its graph, pooled inside the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pu_engine.teacher.graph_surgery import LOGITS, TAP_PREFIX, data_tensors, opset, producers, reads_of
from pu_engine.types import SPREAD_SUFFIX, Tap

MAPS = 4  # the deepest resolutions
TOKEN_CUTS = 4
VECTOR_WIDTH = 4096  # a flattened map of a VGG has 25,088 values, and its own map is tapped already
CLASSIFIERS = ("Gemm", "MatMul", "Conv", "MatMulInteger", "QGemm", "QLinearMatMul", "QLinearConv", "ConvInteger")
CHANNELS_FIRST = (
    "Conv",
    "ConvTranspose",
    "ConvInteger",
    "QLinearConv",
    "FusedConv",
    "AveragePool",
    "MaxPool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "LpPool",
    "BatchNormalization",
    "InstanceNormalization",
    "DepthToSpace",
    "SpaceToDepth",
)
TO_CHANNELS_LAST, TO_CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
OPSET_WITH_AXES_INPUT = 18
SAME_SHARE = 1e-3  # of the largest value
POOLED_AXES = {"NCHW": (2, 3), "NHWC": (1, 2), "tokens": (1,), "vector": ()}


def cuts(model: Any) -> list[str]:
    """Data tensors on which all later computation rests, first to last; the last is the logits."""
    data = data_tensors(model)
    nodes = [node for node in model.graph.node if data.intersection(node.output)]
    last_use = {name: index for index, node in enumerate(nodes) for name in reads_of(node) if name in data}
    last_use[LOGITS] = len(nodes)
    live = {item.name for item in model.graph.input}
    found = []
    for index, node in enumerate(nodes):
        live.update(name for name in node.output if name in last_use)
        live = {name for name in live if last_use.get(name, -1) > index}
        if len(live) == 1:
            found.append(next(iter(live)))
    return list(dict.fromkeys(found))


def classifier_input(model: Any) -> str | None:
    """The tensor that the last matrix product turns into scores; what lies behind it are the logits again."""
    made, data = producers(model), data_tensors(model)
    name = LOGITS
    while name in made:
        node = made[name]
        inputs = [n for n in node.input if n in data]
        if node.op_type in CLASSIFIERS:
            return inputs[0] if inputs else None
        if not inputs:
            return None
        name = inputs[0]
    return None


def score_names(model: Any) -> set[str]:
    """The logits, and what lies between the last matrix product and them: the scores before they are rescaled."""
    made, data = producers(model), data_tensors(model)
    names, name = {LOGITS}, LOGITS
    while name in made and made[name].op_type not in CLASSIFIERS:
        inputs = [n for n in made[name].input if n in data]
        if not inputs:
            break
        name = inputs[0]
        names.add(name)
    return names if name in made and made[name].op_type in CLASSIFIERS else {LOGITS}


def map_layout(model: Any, tensor: str, image_layout: str) -> str:
    """NCHW or NHWC of a 4-D tensor, by what made it; its shape alone would lie (16 x 16 x 16 exists)."""
    made, data = producers(model), data_tensors(model)
    name = tensor
    while name in made:
        node = made[name]
        if node.op_type in CHANNELS_FIRST:
            return "NCHW"
        if node.op_type == "Transpose":
            order = tuple(next((a.ints for a in node.attribute if a.name == "perm"), ()))
            if order == TO_CHANNELS_LAST:
                return "NHWC"
            if order == TO_CHANNELS_FIRST:
                return "NCHW"
        inputs = [n for n in node.input if n in data]
        if not inputs:
            break
        name = inputs[0]
    return image_layout


def candidates(model: Any) -> list[str]:
    """Cuts between the first weights and the classifier, first to last; what only pads says nothing new."""
    data, made = data_tensors(model), producers(model)
    order = {name: index for index, node in enumerate(model.graph.node) for name in node.output}
    products = [n.output[0] for n in model.graph.node if n.op_type in CLASSIFIERS and data.intersection(n.output)]
    vector = classifier_input(model)
    if vector is None or not products:
        return []
    first, last = order[products[0]], order.get(vector, -1)
    return [name for name in cuts(model) if first <= order.get(name, -1) <= last and made[name].op_type != "Pad"]


def kind_of(model: Any, name: str, value: NDArray[Any], image_layout: str, batch: int) -> str | None:
    """How a tensor [N, ...] is pooled: NCHW, NHWC, tokens or vector; None where it can't be a tap."""
    if value.dtype not in (np.float32, np.float16) or value.ndim not in (2, 3, 4) or value.shape[0] != batch:
        return None
    if value.ndim == 4:
        return map_layout(model, name, image_layout)
    return "tokens" if value.ndim == 3 else "vector"


def choose(model: Any, names: Sequence[str], values: Mapping[str, NDArray[Any]], image_layout: str) -> list[Tap]:
    """Taps among the candidates, shallow to deep: the last of each of the deepest resolutions, and the last vector.

    Args:
        names: `candidates(model)`. values: what each of them, and the logits, held in a run.
        image_layout: the teacher's, for tensors that no operator gives a meaning.
    """
    maps: dict[tuple[int, ...], tuple[str, str]] = {}
    tokens, vectors = [], []
    for name in names:
        value = values[name]
        kind = kind_of(model, name, value, image_layout, len(values[LOGITS]))
        if kind in ("NCHW", "NHWC"):
            size = value.shape[2:] if kind == "NCHW" else value.shape[1:3]
            maps.pop(size, None)  # so that insertion order is the order of the last cuts
            maps[size] = (name, kind)
        elif kind == "tokens":
            tokens.append(name)
        elif kind == "vector" and value.shape[1] <= VECTOR_WIDTH:
            vectors.append(name)
    chosen = [(name, layout) for name, layout in maps.values()][-MAPS:]
    chosen += [(tokens[i], "tokens") for i in _evenly(len(tokens), TOKEN_CUTS)]
    chosen += [(name, "vector") for name in (vectors[-1:] if chosen else vectors[-MAPS:])]
    last = [values[name] for name, kind in chosen if kind == "vector"]
    chosen = [
        (name, kind)
        for name, kind in chosen
        if not (kind in ("NCHW", "NHWC") and any(_repeats(values[name], kind, vector) for vector in last))
    ]
    if not chosen:
        # A tree ensemble, or a single matrix: nothing but the scores describes the image.
        return [Tap(name=f"{TAP_PREFIX}0", source=f"{LOGITS}:vector", width=int(values[LOGITS].shape[1]))]
    return numbered(chosen, values)


def numbered(chosen: Sequence[tuple[str, str]], values: Mapping[str, NDArray[Any]]) -> list[Tap]:
    """Taps of tensors with their kinds, in that order."""
    return [
        Tap(
            name=f"{TAP_PREFIX}{index}",
            source=f"{name}:{kind}",
            width=_width(values[name], kind),
            spread=f"{TAP_PREFIX}{index}{SPREAD_SUFFIX}" if POOLED_AXES[kind] else "",
        )
        for index, (name, kind) in enumerate(chosen)
    ]


def _repeats(value: NDArray[Any], kind: str, vector: NDArray[Any]) -> bool:
    """Whether a map, once pooled, says what the vector behind it says: the network's own pooling made that."""
    pooled = value.astype(np.float32).mean(axis=POOLED_AXES[kind])
    if pooled.shape != vector.shape:
        return False
    single_pixel = value[0].size == pooled[0].size
    return single_pixel or bool(np.abs(pooled - vector).max() <= SAME_SHARE * np.abs(vector).max())


def _evenly(available: int, wanted: int) -> list[int]:
    """Indices spread over a list, its last one among them."""
    count = min(available, wanted)
    return [((i + 1) * available) // count - 1 for i in range(count)]


def _width(value: NDArray[Any], kind: str) -> int:
    return int(value.shape[1] if kind in ("NCHW", "vector") else value.shape[-1])


def tapped(model: Any, taps: Sequence[Tap]) -> Any:
    """A copy of the canonical model with one more output [N, width] float32 for each tap, and one for its spread."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    batch = result.graph.output[0].type.tensor_type.shape.dim[0]
    first = batch.dim_param or batch.dim_value
    for tap in taps:
        source, _, kind = tap.source.rpartition(":")
        axes = POOLED_AXES[kind]
        # Pooling after the cast: a sum over a float16 map can overflow.
        cast = f"{tap.name}_float" if axes else tap.name
        result.graph.node.append(helper.make_node("Cast", [source], [cast], to=onnx.TensorProto.FLOAT))
        if axes:
            result.graph.node.append(_mean(result, cast, tap.name, axes))
        if tap.spread:
            result.graph.node.extend(_deviation(result, cast, tap.spread, axes))
        for name in filter(None, (tap.name, tap.spread)):
            info = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [first, tap.width])
            result.graph.output.append(info)
    return result


def _mean(model: Any, source: str, target: str, axes: tuple[int, ...], *, keep_axes: bool = False) -> Any:
    if opset(model) < OPSET_WITH_AXES_INPUT:
        return helper.make_node("ReduceMean", [source], [target], target, axes=list(axes), keepdims=int(keep_axes))
    name = f"{target}_axes"
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(axes, np.int64), name))
    return helper.make_node("ReduceMean", [source, name], [target], target, keepdims=int(keep_axes))


def _deviation(model: Any, source: str, target: str, axes: tuple[int, ...]) -> list[Any]:
    """Nodes of the standard deviation; from the centred values, for a difference of large squares would cancel."""
    middle, centred, square, variance = (f"{target}_{part}" for part in ("middle", "centred", "square", "variance"))
    return [
        _mean(model, source, middle, axes, keep_axes=True),
        helper.make_node("Sub", [source, middle], [centred], centred),
        helper.make_node("Mul", [centred, centred], [square], square),
        _mean(model, square, variance, axes),
        helper.make_node("Sqrt", [variance], [target], target),
    ]
