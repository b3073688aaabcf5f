"""Runs an engine that was built here: logits, device time of each batch, what the inspector says. Not run on hardware.

Nothing but NumPy and the runtime is needed. Bundles carry this module.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.cuda_driver import Device, Stream
from exporters.errors import ExportError

WARM_UP_RUNS = 20
LEAST_RUNS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLatency:
    """Device time of one batch, by CUDA events, without copies."""

    batch: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_second: float
    runs: int


class LoadedEngine:
    """An engine with a context, and device memory for its largest batch.

    Args:
        path: an engine that this machine built, its digest checked: deserialising one runs code.

    Raises:
        ExportError: the runtime refuses the engine.
    """

    def __init__(self, builder: str, path: Path, *, device: Device, stream: Stream, max_batch: int) -> None:
        trt: Any = importlib.import_module(builder)
        self._trt, self._stream = trt, stream
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise ExportError(
                f"{device.name} refuses the engine {path.name}.", "Build it anew on this device.", file=path.name
            )
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = [self._engine.get_tensor_mode(name) for name in names]
        (self._input,) = [n for n, m in zip(names, modes, strict=True) if m == trt.TensorIOMode.INPUT]
        (self._output,) = [n for n, m in zip(names, modes, strict=True) if m == trt.TensorIOMode.OUTPUT]
        self._addresses = {}
        for name in names:
            rest = tuple(self._engine.get_tensor_shape(name))[1:]
            size = max_batch * int(np.prod(rest)) * self._dtype(name).itemsize
            self._addresses[name] = stream.allocate(size)
            self._context.set_tensor_address(name, self._addresses[name])

    def logits(self, inputs: NDArray[Any], batch: int) -> NDArray[np.float32]:
        """Logits [N, K] of model inputs [N, ...], `batch` at a time; the last one is filled up with the first rows."""
        parts = []
        for start in range(0, len(inputs), batch):
            rows = np.arange(start, start + batch) % len(inputs)
            parts.append(self._run(inputs[rows]))
        return np.concatenate(parts)[: len(inputs)].astype(np.float32)

    def measure(self, inputs: NDArray[Any], batch: int, seconds: float) -> EngineLatency:
        """Device time of one batch, over about so many seconds and at least LEAST_RUNS runs."""
        self._run(np.resize(inputs, (batch, *inputs.shape[1:])))
        for _ in range(WARM_UP_RUNS):
            self._enqueue()
        start, end = self._stream.event(), self._stream.event()
        times: list[float] = []
        deadline = time.monotonic() + seconds
        while len(times) < LEAST_RUNS or time.monotonic() < deadline:
            self._stream.record(start)
            self._enqueue()
            self._stream.record(end)
            times.append(self._stream.milliseconds(start, end))
        return latency_of(times, batch)

    def layers(self) -> Any:
        """What the runtime's inspector says of the engine's layers."""
        inspector = self._engine.create_engine_inspector()
        return json.loads(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def _dtype(self, name: str) -> np.dtype[Any]:
        dtype: np.dtype[Any] = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        return dtype

    def _run(self, inputs: NDArray[Any]) -> NDArray[Any]:
        source = np.ascontiguousarray(inputs, self._dtype(self._input))
        self._context.set_input_shape(self._input, source.shape)
        answer = np.empty(tuple(self._context.get_tensor_shape(self._output)), self._dtype(self._output))
        self._stream.upload(self._addresses[self._input], source.ctypes.data, source.nbytes)
        self._enqueue()
        self._stream.download(answer.ctypes.data, self._addresses[self._output], answer.nbytes)
        self._stream.wait()
        return answer

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise ExportError("The runtime refuses to run the engine.", "Build it anew on this device.")


def latency_of(times: Sequence[float], batch: int) -> EngineLatency:
    """Percentiles of single runs in milliseconds."""
    p50, p90, p99 = (float(value) for value in np.percentile(times, (50, 90, 99)))
    return EngineLatency(
        batch=batch, p50_ms=p50, p90_ms=p90, p99_ms=p99, images_per_second=1000 * batch / p50, runs=len(times)
    )
