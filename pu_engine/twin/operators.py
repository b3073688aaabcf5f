"""The operators that a twin can be made of: one table, each line tested against onnxruntime.

A name is the ONNX operator's, with its domain where that is not the standard one, and with the operator set before
which it meant something else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F

from pu_engine.twin import arithmetic, layers, shapes

ANCHOR = "anchor"  # the keyword of functions that have to know the twin's own type and device


@dataclass(frozen=True, slots=True)
class Operator:
    """A function (*tensors, **settings) -> tensor or tuple, and which inputs are settings, by position."""

    run: Callable[..., Any]
    settings: Mapping[int, str] = field(default_factory=dict)

    @property
    def signature(self) -> inspect.Signature:
        """Of the function; torch's own take tensors only."""
        try:
            return inspect.signature(self.run)
        except ValueError:
            return inspect.signature(lambda *tensors: tensors)


AXES = {1: "axes"}

OPERATORS: Mapping[str, Operator] = {
    "Abs": Operator(torch.abs),
    "Add": Operator(torch.add),
    "And": Operator(torch.logical_and),
    "AveragePool": Operator(layers.average_pool),
    "BatchNormalization": Operator(layers.batch_norm),
    "Cast": Operator(arithmetic.cast),
    "Ceil": Operator(torch.ceil),
    "Celu": Operator(arithmetic.celu),
    "Clip": Operator(arithmetic.clip, {1: "min", 2: "max"}),
    "Concat": Operator(shapes.concat),
    "ConstantOfShape": Operator(shapes.constant_of_shape, {0: "shape"}),
    "Conv": Operator(layers.conv),
    "Cos": Operator(torch.cos),
    "DepthToSpace": Operator(shapes.depth_to_space),
    "DequantizeLinear": Operator(arithmetic.dequantise, {1: "scale", 2: "zero_point"}),
    "Div": Operator(arithmetic.divide),
    "Dropout": Operator(arithmetic.dropout, {1: "ratio", 2: "training_mode"}),
    "Einsum": Operator(layers.einsum),
    "Elu": Operator(arithmetic.elu),
    "Equal": Operator(torch.eq),
    "Erf": Operator(torch.erf),
    "Exp": Operator(torch.exp),
    "Expand": Operator(shapes.expand, {1: "shape"}),
    "Flatten": Operator(shapes.flatten),
    "Floor": Operator(torch.floor),
    "Gather": Operator(shapes.gather),
    "Gelu": Operator(arithmetic.gelu),
    "Gemm": Operator(layers.gemm),
    "GlobalAveragePool": Operator(layers.global_average_pool),
    "GlobalMaxPool": Operator(layers.global_max_pool),
    "Greater": Operator(torch.gt),
    "GreaterOrEqual": Operator(torch.ge),
    "GroupNormalization": Operator(layers.group_norm),
    "HardSigmoid": Operator(arithmetic.hard_sigmoid),
    "HardSwish": Operator(F.hardswish),
    "Identity": Operator(arithmetic.identity),
    "InstanceNormalization": Operator(layers.instance_norm),
    "LRN": Operator(layers.local_response_norm),
    "LayerNormalization": Operator(layers.layer_norm),
    "LeakyRelu": Operator(arithmetic.leaky_relu),
    "Less": Operator(torch.lt),
    "LessOrEqual": Operator(torch.le),
    "Log": Operator(torch.log),
    "LogSoftmax": Operator(arithmetic.log_softmax),
    "LogSoftmax before 13": Operator(arithmetic.joint_log_softmax),
    "LpNormalization": Operator(layers.lp_norm),
    "MatMul": Operator(layers.matmul),
    "Max": Operator(arithmetic.maximum),
    "MaxPool": Operator(layers.max_pool),
    "Mean": Operator(arithmetic.average),
    "Min": Operator(arithmetic.minimum),
    "Mish": Operator(F.mish),
    "Mul": Operator(torch.mul),
    "Neg": Operator(torch.neg),
    "Not": Operator(torch.logical_not),
    "Or": Operator(torch.logical_or),
    "PRelu": Operator(arithmetic.prelu),
    "Pad": Operator(shapes.pad, {1: "pads", 2: "value", 3: "axes"}),
    "Pow": Operator(torch.pow),
    "QuantizeLinear": Operator(arithmetic.quantise, {1: "scale", 2: "zero_point"}),
    "RMSNormalization": Operator(layers.rms_norm),
    "Range": Operator(shapes.arange, {0: "start", 1: "limit", 2: "delta"}),
    "Reciprocal": Operator(torch.reciprocal),
    "ReduceL1": Operator(arithmetic.reduce_l1, AXES),
    "ReduceL2": Operator(arithmetic.reduce_l2, AXES),
    "ReduceLogSum": Operator(arithmetic.reduce_log_sum, AXES),
    "ReduceLogSumExp": Operator(arithmetic.reduce_log_sum_exp, AXES),
    "ReduceMax": Operator(arithmetic.reduce_max, AXES),
    "ReduceMean": Operator(arithmetic.reduce_mean, AXES),
    "ReduceMin": Operator(arithmetic.reduce_min, AXES),
    "ReduceSum": Operator(arithmetic.reduce_sum, AXES),
    "ReduceSumSquare": Operator(arithmetic.reduce_sum_square, AXES),
    "Relu": Operator(F.relu),
    "Reshape": Operator(shapes.reshape, {1: "shape"}),
    "Resize": Operator(shapes.resize, {1: "roi", 2: "scales", 3: "sizes"}),
    "Resize before 11": Operator(shapes.upsample, {1: "scales"}),
    "Round": Operator(torch.round),
    "Selu": Operator(arithmetic.selu),
    "Sigmoid": Operator(torch.sigmoid),
    "Sign": Operator(torch.sign),
    "Sin": Operator(torch.sin),
    "Slice": Operator(shapes.slice_axes, {1: "starts", 2: "ends", 3: "axes", 4: "steps"}),
    "Softmax": Operator(arithmetic.softmax),
    "Softmax before 13": Operator(arithmetic.joint_softmax),
    "Softplus": Operator(arithmetic.softplus),
    "Softsign": Operator(F.softsign),
    "SpaceToDepth": Operator(shapes.space_to_depth),
    "Split": Operator(shapes.split, {1: "split"}),
    "Sqrt": Operator(torch.sqrt),
    "Squeeze": Operator(shapes.squeeze, AXES),
    "Sub": Operator(torch.sub),
    "Sum": Operator(arithmetic.total),
    "Swish": Operator(arithmetic.swish),
    "Tanh": Operator(torch.tanh),
    "ThresholdedRelu": Operator(arithmetic.thresholded_relu),
    "Tile": Operator(shapes.tile, {1: "repeats"}),
    "Transpose": Operator(shapes.transpose),
    "Unsqueeze": Operator(shapes.unsqueeze, AXES),
    "Upsample": Operator(shapes.upsample, {1: "scales"}),
    "Where": Operator(torch.where),
    "ai.onnx.ml.Scaler": Operator(arithmetic.scale_features),
    "com.microsoft.FusedConv": Operator(layers.fused_conv),
    "com.microsoft.FusedMatMul": Operator(layers.fused_matmul),
    "com.microsoft.Gelu": Operator(arithmetic.gelu),
    "com.microsoft.SkipLayerNormalization": Operator(layers.skip_layer_norm),
}
# Operators whose meaning changed: the operator set that has the present one.
CHANGED = {"LogSoftmax": 13, "Softmax": 13, "Resize": 11}


def key(domain: str, operator: str, opset: int) -> str:
    """The operator's name in the table."""
    if domain not in ("", "ai.onnx"):
        return f"{domain}.{operator}"
    since = CHANGED.get(operator, 0)
    return f"{operator} before {since}" if opset < since else operator
