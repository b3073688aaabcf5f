"""Runs of a model over any number of rows, with onnxruntime's failures as typed errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from pu_engine.errors import EngineError
from pu_engine.runtime.sessions import open_session

ORT_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    ort_errors.EPFail,
    RuntimeError,  # plain, for an output whose type NumPy lacks
    UnicodeDecodeError,  # in the place of one of these: its text quotes bytes of the model that are no UTF-8
)
CHUNK_ROWS = 32
MESSAGE_CHARACTERS = 300
# How onnxruntime's own messages say that the process's memory limit was met.
OUT_OF_MEMORY_MARKS = ("bad_alloc", "Failed to allocate memory", "exceeds the supported maximum of")


def stranger_session(model: Any, threads: int) -> Any:
    """A session on a guarded model of a stranger, from bytes.

    Raises:
        EngineError: MODEL_BAD_GRAPH where onnxruntime refuses the model, MODEL_MEMORY where memory ends before.
    """
    try:
        return open_session(model.SerializeToString(deterministic=True), threads=threads, fold_constants=False)
    except ORT_ERRORS as error:
        raise _does_not_run("onnxruntime can't load the model", error) from error


def run_rows(session: Any, values: NDArray[Any], batch: int | None) -> list[NDArray[Any]]:
    """All outputs for all rows.

    Args:
        values: [n, ...] input of the session, in its type.
        batch: rows that the model insists on; the last chunk is padded with its own last row. None: any number.

    Returns:
        One array a graph output, [n, ...].

    Raises:
        EngineError: MODEL_BAD_GRAPH where the run fails, or an output has not one entry a row.
    """
    name = session.get_inputs()[0].name
    chunk = CHUNK_ROWS if batch is None else batch
    parts: list[list[NDArray[Any]]] = []
    for start in range(0, len(values), chunk):
        rows = values[start : start + chunk]
        missing = 0 if batch is None else batch - len(rows)
        padded = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows
        try:
            outputs = session.run(None, {name: padded})
        except ORT_ERRORS as error:
            raise _does_not_run("The model can't be run on an image", error) from error
        arrays = [np.asarray(output) for output in outputs]
        for array in arrays:
            if array.ndim == 0 or len(array) != len(padded):
                raise _not_a_row_each(f"An output has shape {list(array.shape)} for {len(padded)} images.")
        parts.append([array[: len(rows)] for array in arrays])
    return [_joined(column) for column in zip(*parts, strict=True)]


def _joined(column: Sequence[NDArray[Any]]) -> NDArray[Any]:
    shapes = sorted({part.shape[1:] for part in column})
    if len(shapes) > 1:
        raise _not_a_row_each(f"An output has entries of shape {list(shapes[0])} and of shape {list(shapes[1])}.")
    return np.concatenate(column)


def with_outputs(model: Any, names: Sequence[str]) -> Any:
    """A copy of a model whose outputs are these tensors, untyped: onnxruntime infers them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.ClearField("output")
    for name in names:
        copy.graph.output.add(name=name)
    return copy


def observe(model: Any, names: Sequence[str], rows: NDArray[Any], threads: int) -> dict[str, NDArray[Any]]:
    """Values of named tensors in one run: their shapes are facts, whatever the file claims.

    Args:
        rows: the model's input, as many rows as it takes at once.

    Raises:
        EngineError: MODEL_BAD_GRAPH where the model can't be loaded or run.
    """
    session = stranger_session(with_outputs(model, names), threads)
    try:
        outputs = session.run(list(names), {session.get_inputs()[0].name: rows})
    except ORT_ERRORS as error:
        raise _does_not_run("The model can't be run on an image", error) from error
    return dict(zip(names, outputs, strict=True))


def _not_a_row_each(message: str) -> EngineError:
    return EngineError(
        "MODEL_BAD_GRAPH", message, "Export a model whose outputs have one entry of one shape for each image."
    )


def _does_not_run(what: str, error: Exception) -> EngineError:
    said = error.object.decode(errors="replace") if isinstance(error, UnicodeDecodeError) else str(error)
    text = "".join(c if c.isprintable() else " " for c in said)[:MESSAGE_CHARACTERS]
    if any(mark in said for mark in OUT_OF_MEMORY_MARKS):
        return EngineError(
            "MODEL_MEMORY",
            f"{what} within the memory that a stranger's model gets.",
            "Use a smaller model or image size, or ask the operator to raise the limit.",
            onnxruntime=text,
        )
    return EngineError(
        "MODEL_BAD_GRAPH",
        f"{what}.",
        "Check that the teacher runs in onnxruntime, and state its height and width if they are dynamic.",
        onnxruntime=text,
    )
