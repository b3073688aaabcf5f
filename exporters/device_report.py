"""What a device says of the engines that it built: parity with the expected logits, time, and which one to take.

Bundles carry this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporters.cuda_driver import Device
from exporters.engine_builder import EngineFacts
from exporters.engine_run import EngineLatency

REPORT_SCHEMA = 1
TIE = 1e-3  # of the largest logit: two classes that near may change places by rounding
# Bounds of the last hop, from the ONNX file on a CPU to the engine: TF32 is on, and rounds fp32 products to 10 bits.
GATES = {"fp32": (0.99, 1e-2), "fp16": (0.98, 5e-2), "int8": (0.95, 2e-1)}
FASTER = 1.03  # a variant must be this much faster than one before it in the target's order
NO_DEVICE = "not measured: no CUDA device here"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineParity:
    """An engine's logits against those of its ONNX file."""

    images: int
    agreement: float  # share of equal argmax, ties apart
    max_error: float  # largest difference, relative to the largest logit
    gate: str
    passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantReport:
    """What became of one ONNX file."""

    name: str
    precision: str
    onnx_sha256: str
    engine: EngineFacts | None = None
    path: str = ""  # of the engine, beside the report
    refused: str = ""  # why there is none
    parity: EngineParity | None = None
    latencies: tuple[EngineLatency, ...] = ()
    layers: str = ""  # file with what the inspector said


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """Everything, as `device-report.json` holds it."""

    target: str
    runtime: str
    device: Device | None
    variants: tuple[VariantReport, ...]
    recommended: str  # a variant's name; empty where no engine may be used
    why: str
    not_measured: str  # why there are no times; empty where there are
    seconds: float
    schema: int = REPORT_SCHEMA


def compare(expected: NDArray[np.float32], answers: Sequence[NDArray[np.float32]], precision: str) -> EngineParity:
    """Parity of answers [N, K], one array a batch size, with the expected logits [N, K]; the worst batch counts."""
    least_agreement, most_error = GATES[precision.partition("-")[0]]
    largest = float(np.abs(expected).max()) or 1.0
    chosen = expected.argmax(axis=1)
    agreements, errors = [], []
    for answer in answers:
        behind = answer.max(axis=1) - answer[np.arange(len(answer)), chosen]
        agreements.append(float((behind <= TIE * largest).mean()))
        errors.append(float(np.abs(answer - expected).max()) / largest)
    agreement, error = min(agreements), float(np.max(errors))  # NumPy's: a NaN stays one, and fails the gate
    return EngineParity(
        images=len(expected),
        agreement=agreement,
        max_error=error,
        gate=f"equal argmax on {least_agreement:.0%} and relative max error <= {most_error:g}",
        passed=agreement >= least_agreement and error <= most_error,
    )


def recommend(variants: Sequence[VariantReport]) -> tuple[str, str]:
    """The variant to take and why; variants come in the target's order."""
    usable = [v for v in variants if v.engine is not None and (v.parity is None or v.parity.passed)]
    if not usable:
        return "", "no engine was built that passed its parity gate"
    timed = [v for v in usable if v.latencies]
    if not timed:
        return usable[0].name, f"the first in the target's order that was built; {NO_DEVICE}"
    best = timed[0]
    for other in timed[1:]:
        if other.latencies[0].p50_ms * FASTER < best.latencies[0].p50_ms:
            best = other
    batch, milliseconds = best.latencies[0].batch, best.latencies[0].p50_ms
    return best.name, f"fastest that passed its parity gate: {milliseconds:.3f} ms at batch {batch} on this device"
