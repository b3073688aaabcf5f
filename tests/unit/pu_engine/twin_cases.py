"""Small graphs, at least one for each operator of the twin's table, in the forms that operator sets gave it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

MAP = (4, 6, 6)  # of one image
OLD, MIDDLE, NEW = 9, 13, 22
EVERY = (OLD, MIDDLE, NEW)
GENERATOR = np.random.default_rng(5)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Nodes from `input` to `output`, with their constants."""

    name: str
    nodes: Sequence[Any]
    weights: Mapping[str, Any] = field(default_factory=dict)
    opsets: tuple[int, ...] = EVERY
    shape: tuple[int, ...] = MAP
    positive: bool = False  # the input

    def model(self, opset: int) -> Any:
        """The graph in one operator set, its batch free; the output's shape is left to onnxruntime."""
        return model_of(self.nodes, self.weights, self.shape, opset)

    def rows(self, batch: int = 3) -> NDArray[np.float32]:
        """Input of the graph."""
        values = np.random.default_rng(11).normal(0, 1.5, (batch, *self.shape)).astype(np.float32)
        return np.abs(values) + np.float32(0.1) if self.positive else values


def model_of(
    nodes: Sequence[Any], weights: Mapping[str, Any], shape: Sequence[int], opset: int = 17, dtype: int = 1
) -> Any:
    """A model from `input` [N, ...] to `output`."""
    graph = helper.make_graph(
        list(nodes),
        "case",
        [helper.make_tensor_value_info("input", dtype, ["N", *shape])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    domains = [("", opset), ("com.microsoft", 1), ("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*d) for d in domains], ir_version=8)


def node(operator: str, inputs: str = "input", outputs: str = "output", **attributes: Any) -> Any:
    """A node; names are separated by spaces, "-" lacks."""
    names = [["" if n == "-" else n for n in text.split()] for text in (inputs, outputs)]
    return helper.make_node(operator, *names, **attributes)


def normal(*shape: int) -> NDArray[np.float32]:
    """Weights."""
    return GENERATOR.normal(0, 0.5, shape).astype(np.float32)


def whole(*values: int) -> NDArray[np.int64]:
    """A shape, axes and the like."""
    return np.array(values, np.int64)


def single(value: float) -> NDArray[np.float32]:
    """A scalar."""
    return np.array(value, np.float32)


def case(name: str, operator: str, inputs: str = "input", **options: Any) -> Case:
    """A graph of one node; `attributes` are its own."""
    attributes = options.pop("attributes", {})
    return Case(name=name, nodes=[node(operator, inputs, **attributes)], **options)


def plain(operator: str, *opsets: int, positive: bool = False, **attributes: Any) -> Case:
    """A graph of one node without constants."""
    suffix = "-".join(f"{k}={v}" for k, v in attributes.items())
    return Case(
        name=f"{operator} {suffix}".strip(),
        nodes=[node(operator, **attributes)],
        opsets=opsets or EVERY,
        positive=positive,
    )


def comparison(operator: str, *opsets: int) -> Case:
    """Both branches of a comparison with a constant, as numbers."""
    nodes = [node(operator, "input zero", "mask"), node("Cast", "mask", "output", to=TensorProto.FLOAT)]
    return Case(name=operator, nodes=nodes, weights={"zero": single(0)}, opsets=opsets or EVERY)


def logic(operator: str) -> Case:
    """Two comparisons joined."""
    nodes = [node("Greater", "input low", "a"), node("Less", "input high", "b"), node(operator, "a b", "c")]
    nodes += [node("Not", "c", "d"), node("Where", "d input high", "output")]
    return Case(name=operator, nodes=nodes, weights={"low": single(-0.5), "high": single(0.5)})


def reduction(operator: str, since: int, **options: Any) -> list[Case]:
    """Axes as attribute up to the operator set before `since`, as input from it on; kept and dropped axes."""
    attributes = {"axes": [2, -1], "keepdims": 0}
    weights = {"axes": whole(1)}
    return [
        case(f"{operator} attribute", operator, attributes=attributes, opsets=(11, since - 1), **options),
        case(f"{operator} input", operator, "input axes", weights=weights, opsets=(max(since, 13), NEW), **options),
    ]


def window(operator: str, opsets: tuple[int, ...] = EVERY, **attributes: Any) -> Case:
    """A pool."""
    suffix = " ".join(f"{k}={v}" for k, v in attributes.items())
    settings = {"kernel_shape": [3, 3], **attributes}
    return case(f"{operator} {suffix}", operator, attributes=settings, opsets=opsets, shape=(4, 7, 8))


def convolution(name: str, inputs: str = "input w", kernel: tuple[int, ...] = (8, 4, 3, 3), **attributes: Any) -> Case:
    """A convolution with random weights."""
    weights = {"w": normal(*kernel)} | ({"b": normal(kernel[0])} if " b" in inputs else {})
    return case(f"Conv {name}", "Conv", inputs, weights=weights, attributes=attributes, shape=(4, 9, 8))


def resize(name: str, scale: float = 2.0, by: str = "scales", **attributes: Any) -> Case:
    """A resize of the map's last two axes."""
    inputs = "input - - size" if by == "sizes" else "input - size"
    opsets = (13, 18) if by == "scales" else (19,)
    if by == "sizes":
        # A resize to sizes states the batch too, so its shape is computed in the graph.
        nodes = [
            node("Shape", "input", "shape", start=0, end=1),
            node("Concat", "shape rest", "size", axis=0),
            node("Resize", inputs, "output", **attributes),
        ]
        weights: dict[str, Any] = {"rest": whole(4, 9, 11)}
    else:
        weights = {"size": np.array([1, 1, scale, 1.5], np.float32)}
        nodes = [node("Resize", inputs, "output", **attributes)]
    return Case(name=f"Resize {name}", nodes=nodes, weights=weights, opsets=opsets)


ARITHMETIC = [
    *(plain(name) for name in ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Identity", "Neg", "Relu", "Sigmoid")),
    *(plain(name) for name in ("Sign", "Sin", "Softplus", "Softsign", "Tanh")),
    *(plain(name, positive=True) for name in ("Log", "Reciprocal", "Sqrt")),
    plain("Round", 11, NEW),
    plain("Elu", alpha=0.7),
    plain("Celu", 12, NEW, alpha=0.7),
    plain("Selu"),
    plain("LeakyRelu", alpha=0.2),
    plain("ThresholdedRelu", 10, NEW, alpha=0.4),
    plain("HardSigmoid", alpha=0.3),
    plain("HardSwish", 14, NEW),
    plain("Mish", 18, NEW),
    plain("Gelu", 20, NEW),
    plain("Gelu", 20, NEW, approximate="tanh"),
    plain("Swish", 24, alpha=1.7),
    plain("Dropout", 7, OLD, ratio=0.4),
    case("Dropout inputs", "Dropout", "input ratio", weights={"ratio": single(0.4)}, opsets=(13, NEW)),
    plain("Clip", 7, OLD, min=-0.5, max=0.8),
    case("Clip inputs", "Clip", "input low high", weights={"low": single(-0.5), "high": single(0.8)}, opsets=(11, NEW)),
    case("Clip one side", "Clip", "input - high", weights={"high": single(0.8)}, opsets=(11, NEW)),
    case("PRelu", "PRelu", "input slope", weights={"slope": normal(4, 1, 1)}),
    *(case(name, name, "input w", weights={"w": normal(4, 1, 6)}) for name in ("Add", "Sub", "Mul")),
    case("Div", "Div", "input w", weights={"w": normal(6) + np.float32(3)}),
    case("Pow", "Pow", "input w", weights={"w": single(2)}),
    *(case(name, name, "input w input", weights={"w": normal(1, 1, 6)}) for name in ("Min", "Max", "Sum", "Mean")),
    comparison("Equal", 11, NEW),
    comparison("Greater"),
    comparison("Less"),
    comparison("GreaterOrEqual", 12, NEW),
    comparison("LessOrEqual", 12, NEW),
    logic("And"),
    logic("Or"),
    plain("Softmax", OLD, 12, axis=1),
    plain("Softmax", OLD),
    plain("Softmax", 13, NEW),
    plain("Softmax", 13, NEW, axis=1),
    plain("LogSoftmax", OLD, axis=2),
    plain("LogSoftmax", 13, NEW, axis=2),
    *reduction("ReduceMean", 18),
    *reduction("ReduceSum", 13),
    *reduction("ReduceMax", 18),
    *reduction("ReduceMin", 18),
    *reduction("ReduceL1", 18),
    *reduction("ReduceL2", 18),
    *reduction("ReduceSumSquare", 18),
    *reduction("ReduceLogSum", 18, positive=True),
    *reduction("ReduceLogSumExp", 18),
    case("ReduceMean nothing", "ReduceMean", attributes={"noop_with_empty_axes": 1}, opsets=(18,)),
]
LAYERS = [
    case("MatMul", "MatMul", "input w", weights={"w": normal(6, 5)}),
    case("Einsum", "Einsum", "input w", attributes={"equation": "nchw,cd->nhwd"}, weights={"w": normal(4, 3)},
         opsets=(12, NEW)),
    case("Gemm", "Gemm", "input w b", attributes={"alpha": 0.5, "beta": 2.0, "transB": 1},
         weights={"w": normal(5, 6), "b": normal(5)}, shape=(6,)),
    case("Gemm without bias", "Gemm", "input w", weights={"w": normal(6, 5)}, shape=(6,), opsets=(11, NEW)),
    convolution("plain"),
    convolution("bias and pads", "input w b", pads=[1, 1, 1, 1]),
    convolution("uneven pads", pads=[0, 1, 2, 1], strides=[2, 2]),
    convolution("same upper", auto_pad="SAME_UPPER", strides=[2, 2]),
    convolution("same lower", auto_pad="SAME_LOWER", strides=[2, 2]),
    convolution("valid", auto_pad="VALID"),
    convolution("depthwise", "input w b", (4, 1, 3, 3), group=4, pads=[1, 1, 1, 1]),
    convolution("dilated", dilations=[2, 2]),
    window("MaxPool"),
    window("MaxPool", strides=[2, 2], pads=[1, 1, 1, 1]),
    window("MaxPool", strides=[2, 2], pads=[0, 0, 1, 1]),
    window("MaxPool", (10, NEW), strides=[2, 2], ceil_mode=1),
    window("MaxPool", (10, NEW), dilations=[2, 2]),
    window("MaxPool", auto_pad="SAME_UPPER", strides=[2, 2]),
    window("AveragePool"),
    window("AveragePool", strides=[2, 2], pads=[1, 1, 1, 1]),
    window("AveragePool", strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1),
    window("AveragePool", strides=[2, 2], pads=[0, 0, 1, 1]),
    window("AveragePool", strides=[2, 2], pads=[0, 0, 1, 1], count_include_pad=1),
    window("AveragePool", auto_pad="SAME_UPPER", strides=[2, 2]),
    window("AveragePool", (10, NEW), strides=[2, 2], ceil_mode=1),
    plain("GlobalAveragePool"),
    plain("GlobalMaxPool"),
    case("BatchNormalization", "BatchNormalization", "input s b m v", attributes={"epsilon": 1e-3},
         weights={"s": normal(4), "b": normal(4), "m": normal(4), "v": normal(4) ** 2 + np.float32(0.1)}),
    case("InstanceNormalization", "InstanceNormalization", "input s b", weights={"s": normal(4), "b": normal(4)}),
    case("LayerNormalization", "LayerNormalization", "input s b", weights={"s": normal(6), "b": normal(6)},
         opsets=(17, NEW)),
    case("LayerNormalization axis", "LayerNormalization", "input s", weights={"s": normal(6, 6)},
         attributes={"axis": 2}, opsets=(17, NEW)),
    case("RMSNormalization", "RMSNormalization", "input s", weights={"s": normal(6)}, opsets=(23,)),
    case("GroupNormalization by group", "GroupNormalization", "input s b", attributes={"num_groups": 2},
         weights={"s": normal(2), "b": normal(2)}, opsets=(18,)),
    case("GroupNormalization by channel", "GroupNormalization", "input s b", attributes={"num_groups": 2},
         weights={"s": normal(4), "b": normal(4)}, opsets=(21, NEW)),
    plain("LpNormalization", axis=1, p=2),
    plain("LpNormalization", axis=-1, p=1),
    plain("LRN", size=3, alpha=0.1),
    plain("LRN", size=5, alpha=0.1, bias=2.0, beta=0.5),
]  # fmt: skip
SHAPES = [
    case("Reshape", "Reshape", "input shape", weights={"shape": whole(0, 2, -1)}),
    plain("Flatten"),
    plain("Flatten", axis=2),
    plain("Transpose", perm=[0, 2, 3, 1]),
    case("Concat", "Concat", "input input", attributes={"axis": -1}),
    Case(name="Squeeze attribute", nodes=[node("Unsqueeze", "input", "u", axes=[1, 5]),
         node("Squeeze", "u", "output", axes=[1, 5])], opsets=(OLD, 11)),
    Case(name="Squeeze input", nodes=[node("Unsqueeze", "input axes", "u"), node("Squeeze", "u axes", "output")],
         weights={"axes": whole(1, -1)}, opsets=(13, NEW)),
    Case(name="Split attribute", nodes=[node("Split", "input", "a b", axis=1, split=[1, 3]),
         node("Mul", "a b", "output")], opsets=(OLD, 11)),
    Case(name="Split input", nodes=[node("Split", "input sizes", "a b", axis=1), node("Mul", "a b", "output")],
         weights={"sizes": whole(1, 3)}, opsets=(13, NEW)),
    Case(name="Split equal", nodes=[node("Split", "input", "a b", axis=1), node("Sub", "a b", "output")],
         opsets=(OLD, 13)),
    Case(name="Split uneven", nodes=[node("Split", "input", "a b c d", axis=2, num_outputs=4),
         node("Concat", "d a", "output", axis=2)], opsets=(18, NEW), shape=(4, 7, 6)),
    plain("Slice", 7, OLD, starts=[1, -3], ends=[3, 100], axes=[1, 3]),
    case("Slice inputs", "Slice", "input starts ends axes steps", weights={"starts": whole(-1, 0),
         "ends": whole(-(2**62), 6), "axes": whole(3, 2), "steps": whole(-2, 2)}, opsets=(10, NEW)),
    case("Slice without axes", "Slice", "input starts ends", weights={"starts": whole(0, 1), "ends": whole(9, 3)},
         opsets=(10, NEW)),
    case("Gather", "Gather", "input places", attributes={"axis": 2}, weights={"places": whole(0, -1, 3)}),
    case("Gather one", "Gather", "input places", attributes={"axis": 1}, weights={"places": np.int64(-2)}),
    case("Expand", "Expand", "input shape", weights={"shape": whole(1, 4, 3, 6)}, shape=(4, 1, 6)),
    case("Tile", "Tile", "input repeats", weights={"repeats": whole(1, 2, 1, 3)}),
    plain("Pad", 7, OLD, pads=[0, 0, 1, 2, 0, 0, -1, 1], value=0.5),
    plain("Pad", OLD, pads=[0, 0, 1, 2, 0, 0, 2, 1], mode="reflect"),
    case("Pad inputs", "Pad", "input pads value", weights={"pads": whole(0, 1, 1, 2, 0, 0, 0, 1), "value": single(0.5)},
         opsets=(11, NEW)),
    case("Pad axes", "Pad", "input pads - axes", weights={"pads": whole(1, 2, 0, 1), "axes": whole(-1, 1)},
         opsets=(18, NEW)),
    case("Pad edge of channels last", "Pad", "input pads", attributes={"mode": "edge"},
         weights={"pads": whole(0, 1, 2, 0, 0, 1, 0, 0)}, opsets=(11, NEW)),
    case("Pad wrap", "Pad", "input pads", attributes={"mode": "wrap"},
         weights={"pads": whole(0, 0, 2, 0, 0, 0, 1, 3)}, opsets=(19,)),
    plain("DepthToSpace", 11, NEW, blocksize=2),
    plain("DepthToSpace", 11, NEW, blocksize=2, mode="CRD"),
    plain("SpaceToDepth", blocksize=2),
    plain("Upsample", 7, mode="nearest", scales=[1.0, 1.0, 2.0, 3.0]),
    case("Upsample input", "Upsample", "input scales", attributes={"mode": "linear"},
         weights={"scales": np.array([1, 1, 2, 1.5], np.float32)}, opsets=(9,)),
    case("Resize of operator set 10", "Resize", "input scales", attributes={"mode": "linear"},
         weights={"scales": np.array([1, 1, 0.5, 1.5], np.float32)}, opsets=(10,)),
    resize("nearest"),
    resize("nearest asymmetric", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    resize("linear", mode="linear"),
    resize("linear down", 0.5, mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
    resize("linear corners", mode="linear", coordinate_transformation_mode="align_corners"),
    resize("cubic", mode="cubic"),
    resize("linear to sizes", by="sizes", mode="linear"),
    Case(name="Token for each image", nodes=[
        node("Shape", "input", "shape"), node("Gather", "shape zero", "n", axis=0),
        node("Unsqueeze", "n axes", "n1"), node("Concat", "n1 rest", "target", axis=0),
        node("Expand", "token target", "tokens"), node("Reshape", "input flat", "rows"),
        node("Concat", "tokens rows", "output", axis=1)],
        weights={"zero": np.int64(0), "axes": whole(0), "rest": whole(1, 9), "token": normal(1, 1, 9),
                 "flat": whole(0, -1, 9)}, opsets=(13, NEW)),
    Case(name="Images picked by number", nodes=[
        node("Shape", "input", "shape"), node("Gather", "shape zero", "n", axis=0),
        node("Range", "zero n one", "numbers"), node("Gather", "input numbers", "output", axis=0)],
        weights={"zero": np.array(0, np.int64), "one": np.array(1, np.int64)}, opsets=(11, NEW)),
    Case(name="Zeros for each image", nodes=[
        node("Shape", "input", "shape"), node("ConstantOfShape", "shape", "zeros"),
        node("Concat", "input zeros", "output", axis=1)]),
]  # fmt: skip
OTHER = [
    Case(name="Scaler", nodes=[helper.make_node("Scaler", ["input"], ["output"], domain="ai.onnx.ml",
         offset=[0.5] * 6, scale=[float(i) for i in range(6)])], shape=(6,)),
    Case(name="FusedConv", nodes=[helper.make_node("FusedConv", ["input", "w", "b"], ["output"],
         domain="com.microsoft", activation="Relu", pads=[1, 1, 1, 1])], weights={"w": normal(8, 4, 3, 3),
         "b": normal(8)}, opsets=(17,)),
    Case(name="FusedMatMul", nodes=[helper.make_node("FusedMatMul", ["input", "w"], ["output"],
         domain="com.microsoft", alpha=0.5, transB=1)], weights={"w": normal(4, 4, 5, 6)[0]}, opsets=(17,)),
    Case(name="Microsoft's Gelu", nodes=[helper.make_node("Gelu", ["input"], ["output"], domain="com.microsoft")],
         opsets=(17,)),
    Case(name="SkipLayerNormalization", nodes=[node("Reshape", "input flat", "x"), helper.make_node(
         "SkipLayerNormalization", ["x", "x", "s", "b", "c"], ["y", "", "", "z"], domain="com.microsoft",
         epsilon=1e-5), node("Add", "y z", "output")],
         weights={"flat": whole(0, 24, 6), "s": normal(6), "b": normal(6), "c": normal(6)}, opsets=(17,)),
    Case(name="QuantizeLinear and back", nodes=[node("QuantizeLinear", "input scale zero", "q"),
         node("DequantizeLinear", "q scale zero", "output")],
         weights={"scale": single(0.01), "zero": np.uint8(100)}, opsets=(13, NEW)),
    Case(name="QuantizeLinear by channel", nodes=[node("QuantizeLinear", "input scale zero", "q", axis=1),
         node("DequantizeLinear", "q scale zero", "output", axis=1)],
         weights={"scale": np.array([0.01, 0.02, 0.005, 0.01], np.float32), "zero": np.array([0, 3, -128, 4], np.int8)},
         opsets=(13, NEW)),
]  # fmt: skip
CASES = [*ARITHMETIC, *LAYERS, *SHAPES, *OTHER]
