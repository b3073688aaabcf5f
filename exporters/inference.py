"""Running an ONNX graph of our own on the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# Read at import; the Linux wheels otherwise write a device id.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from exporters.errors import ExportError
from exporters.torch_to_onnx import INPUT

SEVERITY_ERROR = 3
MESSAGE_CHARACTERS = 200
REFUSALS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


def open_model(model: Any, *, threads: int) -> ort.InferenceSession:
    """A session on a graph in memory or a file, on `threads` threads that don't spin.

    Raises:
        ExportError: onnxruntime can't run it, for instance for an operator that it lacks.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = SEVERITY_ERROR
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = str(model) if isinstance(model, Path) else model.SerializeToString(deterministic=True)
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except REFUSALS as error:
        raise ExportError(
            f"onnxruntime can't load the graph: {' '.join(str(error).split())[:MESSAGE_CHARACTERS]}.",
            "Choose another student.",
        ) from error


def logits_of(session: ort.InferenceSession, batches: Any) -> NDArray[np.float32]:
    """The first output for every input tensor of an iterator, [N, K]."""
    return np.concatenate([session.run(None, {INPUT: batch})[0] for batch in batches])
