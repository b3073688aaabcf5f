"""An ONNX file to a TensorRT-RTX engine, ahead of time and without a GPU.

One engine serves several generations of desktop and laptop RTX cards; it is neither for Jetson nor for phones.
Two builds of the same file differ in their bytes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporters.errors import ExportError

OPTIMAL_BATCH = 8
REMEDY = "Leave the target rtx out, or choose another student."


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What was built."""

    sha256: str
    size: int
    capabilities: tuple[str, ...]
    profile: tuple[int, int, int]  # batch: least, best, most
    version: str  # of TensorRT-RTX
    seconds: float


def missing() -> str | None:
    """What keeps engines from being built here; None where nothing does."""
    try:
        importlib.import_module("tensorrt_rtx")
    except ImportError as error:
        return f"TensorRT-RTX can't be imported ({error}); the extra punnet[rtx] installs it"
    return None


def build_engine(onnx_path: Path, path: Path, *, capabilities: Sequence[str], max_batch: int) -> EngineFacts:
    """Build one engine for all capabilities; types are those of the ONNX file (strongly typed).

    Args:
        onnx_path: one input with a free batch and otherwise fixed sizes.
        capabilities: names such as "SM89".
        max_batch: largest batch of the profile, >= 1.

    Raises:
        ExportError: TensorRT-RTX refuses a node (named), a capability, or the whole network.
    """
    import tensorrt_rtx as trt

    started = time.monotonic()
    log = _logger()
    del log.messages[:]
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_path)):
        raise _unparsed(onnx_path, [parser.get_error(i) for i in range(parser.num_errors)])
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(capabilities)
    for slot, name in enumerate(capabilities):
        config.set_compute_capability(_capability(trt, name), slot)
    batches = (1, min(OPTIMAL_BATCH, max_batch), max_batch)
    source = network.get_input(0)
    profile = builder.create_optimization_profile()
    profile.set_shape(source.name, *((batch, *tuple(source.shape)[1:]) for batch in batches))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        said = "; ".join(log.messages[-3:]) or "it gave no reason"
        raise ExportError(f"TensorRT-RTX could not build {onnx_path.name}: {said}.", REMEDY, file=onnx_path.name)
    data = bytes(plan)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)
    return EngineFacts(
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        capabilities=tuple(capabilities),
        profile=batches,
        version=str(trt.__version__),
        seconds=time.monotonic() - started,
    )


def _unparsed(onnx_path: Path, errors: Sequence[Any]) -> ExportError:
    said = [f"{e.node_operator() or 'model'} {e.node_name()!r}: {e.desc()}" for e in errors]
    return ExportError(
        f"TensorRT-RTX can't read {onnx_path.name}: {'; '.join(said)[:600]}.",
        REMEDY,
        nodes=", ".join(e.node_name() for e in errors),
        operators=", ".join(e.node_operator() for e in errors),
    )


def _capability(trt: Any, name: str) -> Any:
    known = trt.ComputeCapability.__members__
    if name not in known:
        raise ExportError(
            f"TensorRT-RTX knows no compute capability {name!r}.", f"Choose from {', '.join(sorted(known))}.", name=name
        )
    return known[name]


@functools.cache
def _logger() -> Any:
    """The process's one logger: TensorRT-RTX ignores later ones. It keeps errors instead of printing them."""
    import tensorrt_rtx as trt

    class CollectingLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.messages.append(message.strip())

    return CollectingLogger()
