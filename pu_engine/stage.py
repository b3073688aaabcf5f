"""One stage as a process of its own: `python -I -m pu_engine.stage NAME WORKDIR [--progress-fd N]`.

Reads `WORKDIR/inputs.json`, writes only below `WORKDIR/out.partial`, and ends with `WORKDIR/out`, in which
`manifest.json` lists every file, or with `WORKDIR/error.json` and exit status 1. It can be killed at any point.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from pu_engine.errors import EngineError
from pu_engine.execution import execute
from pu_engine.pipeline import STAGES
from pu_engine.progress import LineProgress, Progress, SilentProgress
from pu_engine.results import write_atomic

EXIT_FAILED = 1
FULL = (errno.ENOSPC, errno.EDQUOT)
LEAST_FREE_BYTES = 1 << 20  # below, libraries that hide the system's error have failed for want of space


def main(arguments: list[str] | None = None) -> int:
    """Run the stage that the command line names; 0, or 1 with `error.json`."""
    parser = argparse.ArgumentParser(prog="python -m pu_engine.stage", description=__doc__)
    parser.add_argument("name", choices=sorted(STAGES))
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--progress-fd", type=int)
    options = parser.parse_args(arguments)
    # onnxruntime reads it at import; its Linux wheels otherwise write a device id.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # Threads that spin while they wait doubled torch's CPU time a step on two shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    progress: Progress = SilentProgress() if options.progress_fd is None else LineProgress(options.progress_fd)
    try:
        inputs = json.loads((options.workdir / "inputs.json").read_text())
        execute(STAGES[options.name], options.workdir, inputs, progress)
    except Exception as error:  # the outermost frame of a stage: every failure becomes error.json
        write_atomic(options.workdir / "error.json", json.dumps(_error_json(error, options.workdir), indent=1).encode())
        traceback.print_exc(file=sys.stderr)
        return EXIT_FAILED
    return 0


def _error_json(error: Exception, workdir: Path) -> dict[str, Any]:
    if isinstance(error, EngineError):
        return {"code": error.code, "message": error.message, "remedy": error.remedy, "details": error.details}
    if isinstance(error, MemoryError):
        return {
            "code": "STAGE_MEMORY",
            "message": "The stage ran out of its memory limit.",
            "remedy": "Use a smaller model or image size, or ask the operator to raise the limit.",
            "details": {},
        }
    if (isinstance(error, OSError) and error.errno in FULL) or shutil.disk_usage(workdir).free < LEAST_FREE_BYTES:
        return {
            "code": "DISK_FULL",
            "message": "The data folder's disk is full.",
            "remedy": "Free space on it, then send the job again: finished stages are kept.",
            "details": {},
        }
    if isinstance(error, OSError) and error.errno == errno.EIO:
        return {
            "code": "DISK_FAILED",
            "message": f"The data folder can't be read or written just now ({os.strerror(errno.EIO)}).",
            "remedy": "Send the job again; if it stays so, have the operator look at the disk.",
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
