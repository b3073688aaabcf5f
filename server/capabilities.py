"""What this appliance is, has and allows."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import logging
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from pu_engine.pipeline import export_targets
from punnet import __version__
from punnet.v1 import compression_pb2
from server.nvidia import gpu_models

log = logging.getLogger(__name__)

INLINE_BYTES = 2 << 20
TEACHER_BYTES = 512 << 20
PACKAGES = (
    "grpcio",
    "protobuf",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "timm",
    "tensorrt-rtx",
    "tensorrt-cu13",
)
PROBE_SECONDS = 20.0


async def probe_confinement() -> dict[str, bool]:
    """Which attempts of a confined child are stopped here; empty where the probe itself failed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-m", "server.confine", "--probe"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), PROBE_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        log.error("the probe of the confinement hung", extra={"limit_seconds": PROBE_SECONDS})
        return {}
    if process.returncode != 0:
        log.error("the probe of the confinement failed", extra={"stderr": errors.decode(errors="replace")})
        return {}
    return {str(name): bool(stopped) for name, stopped in json.loads(output).items()}


def capabilities(data: Path, confinement: Mapping[str, bool]) -> compression_pb2.GetCapabilitiesResponse:
    """The answer to GetCapabilities."""
    return compression_pb2.GetCapabilitiesResponse(
        version=__version__,
        packages=installed_packages(),
        devices=devices(),
        confinement=confinement,
        max_inline_bytes=INLINE_BYTES,
        max_teacher_bytes=TEACHER_BYTES,
        free_disk_bytes=shutil.disk_usage(data).free,
        targets=list(export_targets()),
    )


def installed_packages() -> dict[str, str]:
    """Versions by name, without importing any of them."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def devices() -> list[str]:
    """The processor, and what NVIDIA's driver lists."""
    return ["cpu", *(f"cuda:{index} {model}" for index, model in enumerate(gpu_models()))]
