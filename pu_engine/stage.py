"""One stage as a process of its own: `python -I -m pu_engine.stage NAME WORKDIR [--progress-fd N]`.

Reads `WORKDIR/inputs.json`, writes only below `WORKDIR/out.partial`, and ends with `WORKDIR/out`, in which
`manifest.json` lists every file, or with `WORKDIR/error.json` and exit status 1. It can be killed at any point.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import sys
import time
import traceback
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# onnxruntime reads it at import; its Linux wheels otherwise write a device id.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from pu_engine.errors import EngineError
from pu_engine.jsonform import from_json
from pu_engine.pipeline import ENGINE_VERSION, STAGES, Stage
from pu_engine.progress import LineProgress, Progress, SilentProgress
from pu_engine.results import (
    MANIFEST,
    build_manifest,
    files_below,
    fsync_files,
    fsync_folder,
    write_atomic,
)

EXIT_FAILED = 1
VERSIONED_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "torch", "timm", "tensorrt-rtx", "tensorrt")


def execute(stage: Stage, workdir: Path, inputs: Mapping[str, Any], progress: Progress) -> Path:
    """Run one stage to its finished folder, `workdir/out`; a finished one is returned as it is.

    Raises:
        EngineError: what the stage says of its inputs.
    """
    out, partial = workdir / "out", workdir / "out.partial"
    if (out / MANIFEST).exists():
        return out
    partial.mkdir(parents=True, exist_ok=True)
    module = importlib.import_module(stage.module)
    kind = typing.get_type_hints(module.run)["inputs"]
    started = time.monotonic()
    result = module.run(from_json(kind, dict(inputs)), partial, progress)
    extra = {
        "stage": stage.name,
        "schema": stage.schema,
        "engine": ENGINE_VERSION,
        "seconds": time.monotonic() - started,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "versions": installed_versions(),
    }
    manifest = build_manifest(partial, result, extra)
    fsync_files(partial, files_below(partial))
    write_atomic(partial / MANIFEST, json.dumps(manifest, indent=1, allow_nan=False).encode())
    os.rename(partial, out)
    fsync_folder(workdir)
    return out


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    versions = {"python": platform.python_version()}
    for name in VERSIONED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def main(arguments: list[str] | None = None) -> int:
    """Run the stage that the command line names; 0, or 1 with `error.json`."""
    parser = argparse.ArgumentParser(prog="python -m pu_engine.stage", description=__doc__)
    parser.add_argument("name", choices=sorted(STAGES))
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--progress-fd", type=int)
    options = parser.parse_args(arguments)
    progress: Progress = SilentProgress() if options.progress_fd is None else LineProgress(options.progress_fd)
    try:
        inputs = json.loads((options.workdir / "inputs.json").read_text())
        execute(STAGES[options.name], options.workdir, inputs, progress)
    except Exception as error:  # the outermost frame of a stage: every failure becomes error.json
        write_atomic(options.workdir / "error.json", json.dumps(_error_json(error), indent=1).encode())
        traceback.print_exc(file=sys.stderr)
        return EXIT_FAILED
    return 0


def _error_json(error: Exception) -> dict[str, Any]:
    if isinstance(error, EngineError):
        return {"code": error.code, "message": error.message, "remedy": error.remedy, "details": error.details}
    if isinstance(error, MemoryError):
        return {
            "code": "STAGE_MEMORY",
            "message": "The stage ran out of its memory limit.",
            "remedy": "Use a smaller model or image size, or ask the operator to raise the limit.",
            "details": {},
        }
    return {
        "code": "INTERNAL",
        "message": "The stage failed unexpectedly.",
        "remedy": "Report the error id with the server's log.",
        "details": {"type": type(error).__name__},
    }


if __name__ == "__main__":
    raise SystemExit(main())
