"""Small convolutional teachers of any shape and convention, made without training.

The body is random; its classifier is fitted by ridge regression under the convention that the teacher shall have, so
that it classifies under that one and worse under others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIDE = 12
# In BGR two classes look like each other and a third like one of them, so no order of the classes undoes a swap.
COLOURS = {"blue": (60, 70, 200), "green": (60, 190, 80), "orange": (210, 140, 40), "red": (200, 70, 60)}
NAMES = tuple(COLOURS)
FITTED = 240
RIDGE, GAIN = 1e-3, 8.0
TO_FIRST, TO_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}
# (scale, mean, std) in RGB order, by the published name
SCALINGS = {
    "0..1": (1 / 255, (0.0,) * 3, (1.0,) * 3),
    "-1..1": (1 / 127.5, (1.0,) * 3, (1.0,) * 3),
    "ImageNet mean and std": (1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "0..255": (1.0, (0.0,) * 3, (1.0,) * 3),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Convolution and ReLU, then perhaps a residual and a pooling."""

    width: int
    kernel: int
    stride: int
    padded: bool
    residual: bool
    pool: str  # MaxPool | AveragePool | ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What is generated; `graph` is NCHW, NHWC (a transpose in front) or NHWC body (transposes around operators)."""

    blocks: tuple[Block, ...]
    graph: str
    channels: str  # RGB | BGR
    scaling: str
    dtype: str
    tail: str  # Softmax | LogSoftmax | Sigmoid | ""
    batch: int | None
    seed: int

    @property
    def layout(self) -> str:
        return "NCHW" if self.graph == "NCHW" else "NHWC"


@dataclass(slots=True)
class _Graph:
    """Nodes and weights as they are added; `size` is the side of the current map."""

    body_last: bool
    generator: np.random.Generator
    weights: dict[str, NDArray[Any]] = field(default_factory=dict)
    nodes: list[Any] = field(default_factory=list)
    size: int = SIDE

    def add(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        target = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [target], **attributes))
        return target

    def constant(self, value: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(value)
        return name

    def spatial(self, operator: str, maps: str, *further: str, **attributes: Any) -> str:
        """An operator that wants its channels first."""
        if not self.body_last:
            return self.add(operator, [maps, *further], **attributes)
        first = self.add("Transpose", [maps], perm=TO_FIRST)
        return self.add("Transpose", [self.add(operator, [first, *further], **attributes)], perm=TO_LAST)

    def convolution(self, maps: str, before: int, after: int, kernel: int, *, stride: int = 1, padded: bool) -> str:
        spread = (2 / (before * kernel * kernel)) ** 0.5
        weight = self.constant(self.generator.normal(0, spread, (after, before, kernel, kernel)).astype(np.float32))
        bias = self.constant(self.generator.normal(0, 0.1, after).astype(np.float32))
        pad = kernel // 2 if padded else 0
        self.size = (self.size + 2 * pad - kernel) // stride + 1
        return self.spatial("Conv", maps, weight, bias, pads=[pad] * 4, strides=[stride] * 2)

    def block(self, maps: str, before: int, block: Block) -> str:
        stride = block.stride if self.size >= 6 else 1
        padded = block.padded or self.size < block.kernel + 2
        out = self.convolution(maps, before, block.width, block.kernel, stride=stride, padded=padded)
        maps = self.add("Relu", [out])
        if block.residual:
            inner = self.add("Relu", [self.convolution(maps, block.width, block.width, 3, padded=True)])
            maps = self.add("Add", [maps, self.convolution(inner, block.width, block.width, 3, padded=True)])
            maps = self.add("Relu", [maps])
        if block.pool and self.size >= 4:
            maps = self.spatial(block.pool, maps, kernel_shape=[2, 2], strides=[2, 2])
            self.size //= 2
        return maps


def images_of(labels: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.uint8]:
    """[N, SIDE, SIDE, 3] uint8: a noisy colour by class, brighter and darker."""
    colours = np.array([COLOURS[NAMES[label]] for label in labels])[:, None, None, :]
    brightness = generator.uniform(0.75, 1.15, (len(labels), 1, 1, 1))
    noise = generator.normal(0, 18, (len(labels), SIDE, SIDE, 3))
    clipped: NDArray[np.uint8] = np.clip(colours * brightness + noise, 0, 255).astype(np.uint8)
    return clipped


def rows_of(images: NDArray[np.uint8], design: Design) -> NDArray[Any]:
    """The input that the design documents for these images."""
    ordered = images[..., ::-1] if design.channels == "BGR" else images
    if design.dtype == "uint8":
        values: NDArray[Any] = ordered
    else:
        scale, mean, std = SCALINGS[design.scaling]
        turned = slice(None, None, -1 if design.channels == "BGR" else 1)
        values = (ordered * scale - np.array(mean)[turned]) / np.array(std)[turned]
    values = values.transpose(0, 3, 1, 2) if design.layout == "NCHW" else values
    return np.ascontiguousarray(values, design.dtype)


def build(design: Design) -> bytes:
    """The teacher's file; `features` [N, C] goes into its classifier and `scores` [N, K] comes out."""
    generator = np.random.default_rng(design.seed)
    graph = _Graph(body_last=design.graph == "NHWC body", generator=generator)
    maps, width = _entry(graph, design), 3
    for block in design.blocks:
        maps, width = graph.block(maps, width, block), block.width
    pooled = graph.add(
        "ReduceMean", [maps], axes=[1, 2] if graph.body_last else [2, 3], keepdims=0 if not design.batch else 1
    )
    if design.batch:
        pooled = graph.add("Reshape", [pooled, graph.constant(np.array([design.batch, width], np.int64))])
    graph.nodes[-1].output[0] = "features"
    _fit(graph, design, generator)
    graph.nodes.append(helper.make_node("Gemm", ["features", "classifier", "offset"], ["scores"]))
    if design.tail:
        graph.nodes.append(
            helper.make_node(design.tail, ["scores"], ["y"], **({} if design.tail == "Sigmoid" else {"axis": 1}))
        )
    file: bytes = _model(graph, design, "y" if design.tail else "scores").SerializeToString()
    return file


def _entry(graph: _Graph, design: Design) -> str:
    maps = "x"
    if design.dtype == "uint8":
        scale, mean, std = SCALINGS[design.scaling]
        maps = graph.add("Cast", [maps], to=TensorProto.FLOAT)
        maps = graph.add("Mul", [maps, graph.constant(np.float32(scale / np.mean(std)))])
        maps = graph.add("Sub", [maps, graph.constant(np.float32(np.mean(mean) / np.mean(std)))])
    elif design.scaling == "0..255":
        maps = graph.add("Mul", [maps, graph.constant(np.float32(1 / 64))])
    return graph.add("Transpose", [maps], perm=TO_FIRST) if design.graph == "NHWC" else maps


def _fit(graph: _Graph, design: Design, generator: np.random.Generator) -> None:
    """Ridge regression of the classes on the features, under the documented convention."""
    labels = np.arange(FITTED) % len(NAMES)
    rows = rows_of(images_of(labels, generator), design)
    features = run(_model(graph, design, "features"), rows, design.batch, ["features"])[0].astype(np.float64)
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-3
    centred = (features - mean) / spread
    targets = GAIN * (np.eye(len(NAMES))[labels] - 1 / len(NAMES))
    weights = np.linalg.solve(centred.T @ centred + RIDGE * FITTED * np.eye(len(mean)), centred.T @ targets)
    weights /= spread[:, None]
    graph.weights["classifier"] = weights.astype(np.float32)
    graph.weights["offset"] = (-mean @ weights).astype(np.float32)


def _model(graph: _Graph, design: Design, output: str) -> Any:
    """A complete model of the nodes so far, in the design's type."""
    half = design.dtype == "float16"
    shape = [3, SIDE, SIDE] if design.layout == "NCHW" else [SIDE, SIDE, 3]
    weights = [
        numpy_helper.from_array(value.astype(np.float16) if half and value.dtype == np.float32 else value, name)
        for name, value in graph.weights.items()
    ]
    image = helper.make_tensor_value_info("x", TYPES[design.dtype], [design.batch or "N", *shape])
    proto = helper.make_graph(graph.nodes, "g", [image], [onnx.ValueInfoProto(name=output)], weights)
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)


def run(model: Any, rows: NDArray[Any], batch: int | None, names: Sequence[str]) -> list[NDArray[Any]]:
    """Named tensors of a model's run over all rows, in chunks of its batch."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.ClearField("output")
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = ort.InferenceSession(copy.SerializeToString())
    step = batch or len(rows)
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: rows[i : i + step]}) for i in range(0, len(rows), step)]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]
