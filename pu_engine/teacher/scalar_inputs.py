"""Further inputs of a teacher that are single numbers: a training flag, a keep probability. They become constants."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pu_engine.teacher.graph_surgery import not_a_classifier

TENSOR = onnx.TensorProto
MOST_SCALARS = 3  # every combination of their values is tried
IMAGE_RANKS = (2, 4)
# The first value is the usual one at inference: not training, everything kept.
CANDIDATES: Mapping[int, tuple[float, ...]] = {
    TENSOR.BOOL: (0, 1),
    TENSOR.INT32: (0, 1),
    TENSOR.INT64: (0, 1),
    TENSOR.FLOAT: (1, 0),
    TENSOR.FLOAT16: (1, 0),
    TENSOR.DOUBLE: (1, 0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """A model with its image as the only input, and what its other inputs were set to."""

    model: Any
    values: Mapping[str, float]


def bindings(model: Any) -> list[Binding]:
    """Every way to bind the scalar inputs; the model itself where there are none.

    Args:
        model: guarded; initialisers are no longer among its inputs.

    Raises:
        EngineError: TEACHER_NOT_A_CLASSIFIER for a second image or too many scalars.
    """
    scalars = [item for item in model.graph.input if _is_scalar(item)]
    others = [item for item in model.graph.input if not _is_scalar(item)]
    if not scalars or len(others) != 1:
        return [Binding(model=model, values={})]  # the one input, or a number of images that `image_input` refuses
    if len(scalars) > MOST_SCALARS:
        raise not_a_classifier(
            f"The model has {len(scalars)} inputs beside the image; at most {MOST_SCALARS} are set.",
            inputs=", ".join(item.name for item in scalars),
        )
    choices = itertools.product(*(CANDIDATES[item.type.tensor_type.elem_type] for item in scalars))
    return [_bound(model, scalars, values) for values in choices]


def _is_scalar(item: Any) -> bool:
    tensor = item.type.tensor_type
    dims = [d.dim_value for d in tensor.shape.dim]
    return tensor.elem_type in CANDIDATES and len(dims) < min(IMAGE_RANKS) and math.prod(dims) == 1


def _bound(model: Any, scalars: list[Any], values: tuple[float, ...]) -> Binding:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for item, value in zip(scalars, values, strict=True):
        tensor = item.type.tensor_type
        dims = [d.dim_value for d in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        result.graph.initializer.append(numpy_helper.from_array(np.full(dims, value, dtype), item.name))
    names = {item.name for item in scalars}
    kept = [item for item in model.graph.input if item.name not in names]
    result.graph.ClearField("input")
    result.graph.input.extend(kept)
    return Binding(model=result, values={i.name: float(v) for i, v in zip(scalars, values, strict=True)})


def described(values: Mapping[str, float]) -> str:
    """`training = 0, keep = 1` for messages."""
    return ", ".join(f"{name!r} = {value:g}" for name, value in values.items())
