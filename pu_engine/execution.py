"""Running one stage in this process, from its inputs to its finished folder."""

from __future__ import annotations

import importlib
import json
import os
import time
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pu_engine.jsonform import from_json
from pu_engine.peak_memory import peak_bytes
from pu_engine.pipeline import ENGINE_VERSION, Stage, installed_versions
from pu_engine.progress import Progress
from pu_engine.results import MANIFEST, build_manifest, files_below, fsync_files, fsync_folder, write_atomic


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
        "peak_memory_bytes": peak_bytes(),
        "versions": installed_versions(),
    }
    manifest = build_manifest(partial, result, extra)
    fsync_files(partial, files_below(partial))
    write_atomic(partial / MANIFEST, json.dumps(manifest, indent=1, allow_nan=False).encode())
    os.rename(partial, out)
    fsync_folder(workdir)
    return out
