"""Small teachers of real structure, built on the spot: nearest tint out of three, written in many ways.

Each of them passes intake on `labelled_tar`, so that a mutant gets as deep as its change lets it. Between them they
hold integer Div and Mod, Gather, Slice, Resize, Pad, If, quantised operators, functions, trees and several outputs.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

SIDE = 8
TINTS = {"amber": (220, 150, 30), "blue": (30, 60, 220), "green": (60, 190, 70)}
CENTRES = np.array(list(TINTS.values())) / 255  # [3, 3] RGB in 0..1
IMAGES_PER_LABEL = 8
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
IMAGE: tuple[int | str, ...] = ("N", 3, SIDE, SIDE)


def labelled_tar() -> bytes:
    """A tar of noisy tinted PNG images, in one folder a label."""
    generator, target = np.random.default_rng(4), io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for label, tint in TINTS.items():
            for index in range(IMAGES_PER_LABEL):
                pixels = generator.normal(tint, 45, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
                encoded = io.BytesIO()
                Image.fromarray(pixels).save(encoded, "PNG")
                member = tarfile.TarInfo(f"{label}/{index}.png")
                member.size = encoded.tell()
                tar.addfile(member, io.BytesIO(encoded.getvalue()))
    return target.getvalue()


def model(
    nodes: Sequence[Any],
    constants: dict[str, Any],
    *,
    dims: Sequence[int | str] = IMAGE,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    **options: Any,
) -> Any:
    """A ModelProto from input x to untyped outputs; constants are arrays by name."""
    graph = helper.make_graph(
        list(nodes),
        "seed",
        [helper.make_tensor_value_info("x", options.pop("elem_type", FLOAT), list(dims))],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    domains = [helper.make_opsetid(domain, version) for domain, version in options.pop("domains", {}).items()]
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), *domains], ir_version=8, **options)


def core(source: str, target: str) -> tuple[list[Any], dict[str, Any]]:
    """Nodes from an image tensor in 0..1 to the scores of the three tints."""
    nodes = [
        helper.make_node("GlobalAveragePool", [source], ["mean"]),
        helper.make_node("Conv", ["mean", "k", "b"], ["near"], kernel_shape=[1, 1], pads=[0, 0, 0, 0]),
        helper.make_node("Abs", ["near"], ["far"]),
        helper.make_node("Flatten", ["far"], ["row"], axis=1),
        helper.make_node("Gemm", ["row", "w", "c"], [target], alpha=1.0),
    ]
    constants = {
        "k": np.repeat(np.eye(3, dtype=np.float32), 3, axis=0).reshape(9, 3, 1, 1),
        "b": -CENTRES.T.reshape(-1).astype(np.float32),
        "w": np.tile(-20 * np.eye(3, dtype=np.float32), (3, 1)),
        "c": np.zeros(3, np.float32),
    }
    return nodes, constants


def plain() -> Any:
    nodes, constants = core("x", "logits")
    return model([*nodes, helper.make_node("Softmax", ["logits"], ["y"], axis=1)], constants)


def shapes() -> Any:
    """A crop, a resize, a pad and a reshape whose sizes are computed from the image's own."""
    nodes, constants = core("padded", "scores")
    before = [
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("Gather", ["size", "axis_0"], ["rows"], axis=0),
        helper.make_node("Div", ["size", "two"], ["half"]),
        helper.make_node("Mod", ["half", "five"], ["rest"], fmod=0),
        helper.make_node("Slice", ["x", "starts", "rest_ends", "axes"], ["crop"]),
        helper.make_node("Resize", ["crop", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("Pad", ["large", "pads", "fill"], ["padded"], mode="constant"),
    ]
    ends = [
        helper.make_node("Gather", ["rest", "axes"], ["rest_ends"], axis=0),
        helper.make_node("Concat", ["rows", "minus_1"], ["row_shape"], axis=0),
        helper.make_node("Reshape", ["scores", "row_shape"], ["y"]),
    ]
    integers = {
        "axis_0": [0],
        "two": [1, 1, 2, 2],
        "five": [5, 5, 5, 5],
        "starts": [0, 0],
        "axes": [2, 3],
        "pads": [0] * 8,
        "minus_1": [-1],
    }
    constants |= {name: np.array(value, np.int64) for name, value in integers.items()}
    constants |= {"scales": np.array([1, 1, 2, 2], np.float32), "fill": np.float32(0)}
    return model([*before[:4], ends[0], *before[4:], *nodes, *ends[1:]], constants)


def branches() -> Any:
    """An If whose branches read the image from outside, at a fixed batch of two; Where, Split and ReduceMean too."""
    nodes, constants = core("chosen", "y")
    value = helper.make_tensor_value_info
    then = helper.make_graph([helper.make_node("Identity", ["x"], ["a"])], "then", [], [value("a", FLOAT, None)])
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["d"])], "else", [], [value("d", FLOAT, None)])
    before = [
        helper.make_node("Size", ["x"], ["count"]),
        helper.make_node("Greater", ["count", "zero"], ["any"]),
        helper.make_node("If", ["any"], ["kept"], then_branch=then, else_branch=other),
        helper.make_node("Split", ["kept"], ["top", "bottom"], axis=2),
        helper.make_node("Concat", ["bottom", "top"], ["turned"], axis=2),
        helper.make_node("Where", ["any", "turned", "x"], ["chosen"]),
    ]
    return model([*before, *nodes], constants | {"zero": np.int64(0)}, dims=[2, 3, SIDE, SIDE], opset=13)


def quantised() -> Any:
    """A quantised convolution, Microsoft's quantised addition, and a dynamically quantised product."""
    nodes, constants = core("x", "y")
    pool, _, absolute, flatten, _ = nodes
    quantised_nodes = [
        pool,
        helper.make_node("QuantizeLinear", ["mean", "step", "offset"], ["mean_q"]),
        helper.make_node(
            "QLinearConv",
            ["mean_q", "step", "offset", "k_q", "unit", "none", "step_2", "offset", "b_q"],
            ["near_q"],
            kernel_shape=[1, 1],
        ),
        helper.make_node(
            "QLinearAdd",
            ["near_q", "step_2", "offset", "zero_q", "unit", "offset", "step_2", "offset"],
            ["sum_q"],
            domain="com.microsoft",
        ),
        helper.make_node("DequantizeLinear", ["sum_q", "step_2", "offset"], ["near"]),
        absolute,
        flatten,
        helper.make_node("DynamicQuantizeLinear", ["row"], ["row_q", "row_step", "row_offset"]),
        helper.make_node("MatMulInteger", ["row_q", "w_q", "row_offset"], ["product"]),
        helper.make_node("Cast", ["product"], ["product_f"], to=FLOAT),
        helper.make_node("Mul", ["product_f", "row_step"], ["y"]),
    ]
    step = np.float32(1 / 127)
    constants = {
        "step": step,
        "step_2": np.float32(1 / 100),
        "unit": np.float32(1),
        "offset": np.int8(0),
        "none": np.int8(0),
        "k_q": constants["k"].astype(np.int8),
        "b_q": np.round(constants["b"] / step).astype(np.int32),
        "zero_q": np.zeros(1, np.int8),
        "w_q": constants["w"].astype(np.int8),
    }
    return model(quantised_nodes, constants, domains={"com.microsoft": 1})


def channels_last() -> Any:
    """TensorFlow's layout, probabilities as dictionaries and the predicted label as further outputs."""
    nodes, constants = core("first", "logits")
    around = [
        helper.make_node("Transpose", ["x"], ["first"], perm=[0, 3, 1, 2]),
        *nodes,
        helper.make_node("Softmax", ["logits"], ["p"], axis=-1),
        helper.make_node("ArgMax", ["p"], ["label"], axis=1, keepdims=0),
        helper.make_node("ZipMap", ["p"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
    ]
    made = model(
        around, constants, dims=["N", SIDE, SIDE, 3], outputs=("label", "y"), domains={"ai.onnx.ml": 1}, opset=11
    )
    made.graph.output[0].type.tensor_type.elem_type = INT64
    made.graph.output[1].ClearField("type")
    return made


def function() -> Any:
    """A local function with an attribute's default inside, called twice."""
    nodes, constants = core("x", "y")
    body = [helper.make_node("Neg", ["a"], ["m"]), helper.make_node("Max", ["a", "m"], ["z"])]
    made = helper.make_function("local", "Distance", ["a"], ["z"], body, [helper.make_opsetid("", 17)])
    nodes[2] = helper.make_node("Distance", ["near"], ["far_1"], domain="local")
    nodes.insert(3, helper.make_node("Distance", ["far_1"], ["far"], domain="local"))
    return model(nodes, constants, domains={"local": 1}, functions=[made])


def forest() -> Any:
    """Flat rows, and one tree over the mean colours."""
    averages = np.zeros((SIDE * SIDE, 3, 3), np.float32)
    averages[:] = np.eye(3) / SIDE**2
    nodes = [
        helper.make_node("Gemm", ["x", "m"], ["colour"]),
        helper.make_node(
            "TreeEnsembleClassifier",
            ["colour"],
            ["label", "y"],
            domain="ai.onnx.ml",
            nodes_treeids=[0] * 5,
            nodes_nodeids=[0, 1, 2, 3, 4],
            nodes_featureids=[2, 0, 0, 0, 0],
            nodes_modes=["BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF", "LEAF"],
            nodes_values=[0.55, 0.5, 0.0, 0.0, 0.0],
            nodes_truenodeids=[1, 3, 0, 0, 0],
            nodes_falsenodeids=[2, 4, 0, 0, 0],
            class_treeids=[0, 0, 0],
            class_nodeids=[2, 3, 4],
            class_ids=[1, 2, 0],
            class_weights=[1.0, 1.0, 1.0],
            classlabels_int64s=[0, 1, 2],
            post_transform="NONE",
        ),
    ]
    made = model(
        nodes,
        {"m": averages.reshape(-1, 3)},
        dims=["N", SIDE * SIDE * 3],
        outputs=("label", "y"),
        domains={"ai.onnx.ml": 1},
    )
    made.graph.output[0].type.tensor_type.elem_type = INT64
    return made


def switched() -> Any:
    """A training flag and a keep probability beside the image; one output for each class."""
    nodes, constants = core("x", "scores")
    after = [
        helper.make_node("Mul", ["scores", "keep"], ["kept"]),
        helper.make_node("Neg", ["kept"], ["worse"]),
        helper.make_node("Where", ["training", "worse", "kept"], ["chosen"]),
        helper.make_node("Split", ["chosen"], ["y0", "y1", "y2"], axis=1),
    ]
    made = model([*nodes, *after], constants, outputs=("y0", "y1", "y2"), opset=13)
    for item in made.graph.output:
        item.CopyFrom(helper.make_tensor_value_info(item.name, FLOAT, ["N", 1]))
    made.graph.input.append(helper.make_tensor_value_info("training", TensorProto.BOOL, []))
    made.graph.input.append(helper.make_tensor_value_info("keep", FLOAT, [1]))
    return made


SEEDS = (plain, shapes, branches, quantised, channels_last, function, forest, switched)


def seed_bytes() -> dict[str, bytes]:
    """Every seed, serialised, by name."""
    return {build.__name__: build().SerializeToString() for build in SEEDS}
