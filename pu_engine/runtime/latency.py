"""How long an ONNX session takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pu_engine.teacher.fact_types import Latency

MIN_RUNS, MAX_RUNS = 5, 50
P99_RUNS = 50  # fewer have no 99th percentile worth the name
BUDGET_SECONDS = 2.0  # of one measurement, so that a slow teacher can't hold up the job


def measure_latency(
    session: ort.InferenceSession,
    images: NDArray[np.generic],
    *,
    subject: str,
    threads: int,
    budget_seconds: float = BUDGET_SECONDS,
    max_runs: int = MAX_RUNS,
) -> Latency:
    """Median and high percentiles of repeated runs on one input tensor, after one that is not counted.

    Args:
        budget_seconds: no run starts after it, but for the first MIN_RUNS.
    """
    feed = {session.get_inputs()[0].name: images}
    return measure_calls(
        lambda: session.run(None, feed), batch=len(images), subject=subject, threads=threads,
        budget_seconds=budget_seconds, max_runs=max_runs,
    )  # fmt: skip


def measure_calls(
    call: Callable[[], object], *, batch: int, subject: str, threads: int, budget_seconds: float, max_runs: int
) -> Latency:
    """As `measure_latency`, of anything that can be called."""
    call()
    taken: list[float] = []
    while len(taken) < MIN_RUNS or (len(taken) < max_runs and sum(taken) < budget_seconds):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    p50, p90, p99 = np.percentile(taken, [50, 90, 99]) * 1000
    return Latency(
        subject=subject, batch=batch, threads=threads, p50_ms=float(p50), p90_ms=float(p90), runs=len(taken),
        p99_ms=float(p99) if len(taken) >= P99_RUNS else None,
    )  # fmt: skip
