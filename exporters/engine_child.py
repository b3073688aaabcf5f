"""Builds an engine in a child process: a crash or hang of native code is an answer, and cancelling leaves nothing.

Bundles carry this module.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from exporters.engine_builder import BUILDERS, EngineFacts, EngineRequest, engine_address, missing
from exporters.errors import BuildCancelledError, ExportError
from exporters.file_lock import file_lock

# The package comes from where this module lies, a bundle's folder maybe; that folder stays on no path, where any file
# of it could shadow a package.
CHILD = (
    "import runpy, sys; sys.path.insert(0, sys.argv[1]); import exporters; del sys.path[0];"
    "runpy.run_module('exporters.engine_builder', run_name='__main__')"
)
ROOT = Path(__file__).resolve().parents[1]
POLL_SECONDS = 0.1
SILENT_SECONDS = 600.0  # TensorRT times one layer's kernels for minutes on a small Jetson
WALL_SECONDS = 2 * 3600.0
OnBeat = Callable[[str, int, int], None]  # phase, done, total


def build_engine(
    request: EngineRequest,
    path: Path,
    *,
    cancel: threading.Event | None = None,
    on_beat: OnBeat | None = None,
    silent_seconds: float = SILENT_SECONDS,
) -> EngineFacts:
    """Build in a child; `path` appears once the engine is whole.

    Args:
        cancel: ends the child when it is set.
        on_beat: called with what the builder does, at most four times a second.
        silent_seconds: longest time without a step of the builder.

    Raises:
        ExportError: what the builder said, or how its process died.
        BuildCancelledError: `cancel` was set; the child is gone and no file is left.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", CHILD, str(ROOT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        order = {"request": asdict(request), "path": str(path), "parent": os.getpid()}
        return _follow(process, order, cancel or threading.Event(), on_beat, silent_seconds)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        path.with_name(f".{path.name}.{process.pid}.partial").unlink(missing_ok=True)


def cached_engine(request: EngineRequest, folder: Path, **options: Any) -> tuple[Path, EngineFacts]:
    """The engine of a request below `folder`, built where it is not there yet; of two at once one builds.

    Takes the options of `build_engine` and raises what it does.
    """
    lacking = missing(request.builder)
    if lacking:
        raise ExportError(f"{lacking}.", "The ONNX file is not affected.", builder=request.builder)
    folder.mkdir(parents=True, exist_ok=True)
    address = engine_address(request, _sha256(Path(request.onnx)))
    path, note = folder / f"{address}.engine", folder / f"{address}.json"
    with file_lock(folder / f"{address}.lock"):
        known = _known(path, note)
        if known is not None:
            return path, known
        facts = build_engine(request, path, **options)
        partial = note.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(facts)))
        os.replace(partial, note)
        return path, facts


def facts_from(values: dict[str, Any]) -> EngineFacts:
    """Facts from their JSON form."""
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return EngineFacts(**{**values, **lists})


def _follow(
    process: subprocess.Popen[str],
    order: dict[str, Any],
    cancel: threading.Event,
    on_beat: OnBeat | None,
    silent_seconds: float,
) -> EngineFacts:
    said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process.stdout, said), daemon=True).start()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):  # it died at once; its end says how
            process.stdin.write(json.dumps(order))
            process.stdin.close()
    started = heard = time.monotonic()
    name = BUILDERS[order["request"]["builder"]]
    file = Path(order["request"]["onnx"]).name
    while True:
        if cancel.is_set():
            raise BuildCancelledError(f"The build of {file} was cancelled.")
        now = time.monotonic()
        if now - heard > silent_seconds or now - started > WALL_SECONDS:
            raise ExportError(
                f"{name} made no step of {file} for {now - heard:.0f} s.", "Build it on a faster machine.", file=file
            )
        try:
            line = said.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue
        if line is None:
            raise ExportError(
                f"The process in which {name} built {file} died with exit status {process.wait()}.",
                "Leave the target out, or choose another student.",
                file=file,
            )
        heard, message = now, json.loads(line)
        if "facts" in message:
            return facts_from(message["facts"])
        if "refusal" in message:
            refusal = message["refusal"]
            raise ExportError(refusal["message"], refusal["remedy"], **refusal["details"])
        if on_beat is not None:
            on_beat(*message["beat"])


def _read(pipe: IO[str] | None, said: queue.SimpleQueue[str | None]) -> None:
    for line in pipe or ():
        said.put(line)
    said.put(None)


def _known(path: Path, note: Path) -> EngineFacts | None:
    """The facts of an engine that is there, whole and unchanged."""
    if not path.exists() or not note.exists():
        return None
    facts = facts_from(json.loads(note.read_text()))
    return facts if _sha256(path) == facts.sha256 else None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
