"""An fp32 graph and its tensors' ranges to int8 in QDQ form, for one of two kinds of target.

`int8-cpu`: unsigned activations and int32 bias, as onnxruntime's x86 kernels fuse them whole. `int8-trt`: symmetric
signed activations, float bias (TensorRT refuses an int32 one), residual additions quantised; NVIDIA's builders read it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from exporters.errors import ExportError
from exporters.onnx_file import infer_again
from exporters.torch_to_onnx import OUTPUT, strip_traces

UNFIT = (ValueError, RuntimeError, KeyError, TypeError, AttributeError, IndexError, NotImplementedError)
MESSAGE_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a target wants its int8."""

    symmetric: bool  # activations
    activation: Any
    operators: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


FORMS: Mapping[str, Form] = {
    "int8-cpu": Form(
        symmetric=False,
        activation=QuantType.QUInt8,
        operators=tuple(sorted({*QLinearOpsRegistry, *QDQRegistry})),
    ),
    "int8-trt": Form(
        symmetric=True,
        activation=QuantType.QInt8,
        operators=("Add", "Conv", "Gemm", "MatMul"),
        options={"QuantizeBias": False},
    ),
}


def quantise(
    model: Any,
    ranges: Mapping[str, tuple[float, float]],
    form: str,
    *,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
) -> Any:
    """The graph with quantise and dequantise nodes around what `form` quantises; weights int8 a channel.

    The logits are not quantised: 256 steps would make ties of them.

    Args:
        ranges: of every float tensor, by name.
        only: names of nodes; empty: all that the form quantises.
        without: names of nodes that stay in float.

    Raises:
        ExportError: onnxruntime's quantiser can't read the graph.
    """
    chosen = FORMS[form]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    extremes = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    options = {"ActivationSymmetric": chosen.symmetric, "WeightSymmetric": True, **chosen.options}
    try:
        with _silence():
            quantiser = QDQQuantizer(
                copy, True, False, QuantType.QInt8, chosen.activation,
                TensorsData(CalibrationMethod.MinMax, extremes), list(only), list(without), list(chosen.operators),
                options,
            )  # fmt: skip
            quantiser.quantize_model()
    except UNFIT as error:
        raise ExportError(
            f"onnxruntime can't quantise the student ({type(error).__name__}: {str(error)[:MESSAGE_CHARACTERS]}).",
            "Use the fp32 or the fp16 file.",
            variant=form,
        ) from error
    quantised = quantiser.model.model
    quantiser.model.topological_sort()
    free_output(quantised.graph, OUTPUT)
    strip_traces(quantised)
    return infer_again(quantised)


def free_output(graph: Any, name: str) -> None:
    """Let the graph's output be what its last layer gives, without a quantise and dequantise pair behind it."""
    makers = {output: node for node in graph.node for output in node.output}
    last = makers[name]
    if last.op_type != "DequantizeLinear" or makers.get(last.input[0]) is None:
        return
    first = makers[last.input[0]]
    source = first.input[0]
    readers = [n for n in graph.node if name in n.input or first.output[0] in n.input]
    if readers != [last] or source not in makers:
        return
    graph.node.remove(last)
    graph.node.remove(first)
    for node in graph.node:
        for names in (node.input, node.output):
            for index, used in enumerate(names):
                if used == source:
                    names[index] = name
    _drop_unused(graph)


def _drop_unused(graph: Any) -> None:
    """Remove initializers that no node reads: onnxruntime warns of them."""
    read = {used for node in graph.node for used in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    graph.ClearField("initializer")
    graph.initializer.extend(kept)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the quantiser's advice off the log: it asks for a preparation that the exporter did."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
