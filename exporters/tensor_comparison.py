"""Where two graphs of one network part: their intermediate tensors, by name, on the same images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from exporters.inference import open_model

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
TINY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstNode:
    """The node that adds the most error; errors are root mean squares relative to the first graph's tensor."""

    name: str
    operator: str
    error: float  # of what it gives
    error_before: float  # the largest of what it takes

    def __str__(self) -> str:
        return f"{self.name} ({self.operator}): relative error {self.error_before:.2g} in, {self.error:.2g} out"


def worst_node(before: Any, after: Any, feed: Mapping[str, NDArray[Any]]) -> WorstNode | None:
    """Compare the tensors that two graphs share, and find the node of the first where the error grows the most.

    Args:
        before, after: graphs with the same inputs, and with tensors of the same names where they mean the same.
        feed: images for both.

    Returns:
        None where they share no tensor behind the input.
    """
    names = [name for name in tensors(before) if name in set(tensors(after))]
    values, others = intermediate(before, names, feed), intermediate(after, names, feed)
    errors = {name: relative_error(values[name], others[name]) for name in names}
    found = None
    for node in before.graph.node:
        given = [errors[name] for name in node.output if name in errors]
        if not given:
            continue
        taken = max((errors[name] for name in node.input if name in errors), default=0.0)
        row = WorstNode(name=node.name, operator=node.op_type, error=given[0], error_before=taken)
        if found is None or _growth(row) > _growth(found):
            found = row
    return found


def tensors(model: Any) -> list[str]:
    """Names of the float tensors that nodes give, in the graph's order."""
    typed = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.output)}
    return [name for node in model.graph.node for name in node.output if typed.get(name) in FLOATS]


def intermediate(model: Any, names: list[str], feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The values of named tensors."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    typed = {value.name: value for value in (*copy.graph.value_info, *copy.graph.output)}
    wanted = [typed[name] for name in names]
    copy.graph.ClearField("output")
    copy.graph.output.extend(wanted)
    session = open_model(copy, threads=1)
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def relative_error(before: NDArray[Any], after: NDArray[Any]) -> float:
    """Root mean square of the difference, relative to that of `before`; infinite where a value is not finite."""
    first, second = before.astype(np.float64), after.astype(np.float64)
    if first.shape != second.shape or not np.isfinite(second).all():
        return math.inf
    return float(np.sqrt(((first - second) ** 2).mean()) / max(float(np.sqrt((first**2).mean())), TINY))


def _growth(row: WorstNode) -> float:
    return 0.0 if math.isinf(row.error_before) else row.error - row.error_before
