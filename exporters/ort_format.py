"""An ONNX file in ONNX Runtime's own format (`.ort`), which its builds for phones load."""

from __future__ import annotations

import os
from pathlib import Path

# Read at import; the Linux wheels otherwise write a device id.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

SEVERITY_ERROR = 3
# Blocks channels by the vector width of the x86 that converts; a phone has no such kernels.
X86_ONLY = ["NchwcTransformer"]


def write_ort(onnx_path: Path, path: Path) -> None:
    """Convert with every optimisation that any processor can use.

    Two conversions differ in their bytes: onnxruntime 1.32 writes tables in the order of hash maps that are seeded anew
    in each process.
    """
    options = ort.SessionOptions()
    options.log_severity_level = SEVERITY_ERROR
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(
        str(onnx_path), options, providers=["CPUExecutionProvider"], disabled_optimizers=X86_ONLY, enable_fallback=0
    )
