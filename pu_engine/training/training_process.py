"""One of several processes that train a student together: `python -I -m pu_engine.training.training_process FOLDER`.

`torch.distributed.run` starts it and says by variables who it is; with `--start N` it becomes that starter. Reads
`FOLDER/inputs.json`. The first process writes `student.safetensors` and `curve.json` there and reports through the pipe
`progress`; one that fails writes `error.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from pu_engine.distillation import prepare
from pu_engine.errors import EngineError
from pu_engine.jsonform import from_json
from pu_engine.progress import LineProgress, Progress, SilentProgress
from pu_engine.results import write_atomic
from pu_engine.training.loop import repeatable, train
from pu_engine.training.processes import Processes, joined
from pu_engine.types import DistillationInputs

INPUTS, WEIGHTS, CURVE, ERROR, PIPE = "inputs.json", "student.safetensors", "curve.json", "error.json", "progress"
PR_SET_PDEATHSIG = 1  # linux/prctl.h
EXIT_FAILED, EXIT_ORPHANED = 1, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class JointTraining:
    """What the processes have to do."""

    inputs: DistillationInputs
    student: str  # its name
    targets: str  # cached | views | live
    checkpoints: str  # a folder
    threads: int  # of each


def main(arguments: list[str] | None = None) -> int:
    """Train this process's share, or start the processes."""
    parser = argparse.ArgumentParser(prog="python -m pu_engine.training.training_process", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--start", type=int, metavar="N", help="start so many of them")
    parser.add_argument("--parent", type=int, required=True, help="die with this process")
    options = parser.parse_args(arguments)
    # A killed stage would leave them training: each is a session of its own.
    die_with(options.parent)
    if options.start:
        return start(options.folder, options.start)
    try:
        train_share(options.folder)
    except EngineError as error:
        failure = {"code": error.code, "message": error.message, "remedy": error.remedy, "details": error.details}
        write_atomic(options.folder / ERROR, json.dumps(failure).encode())
        return EXIT_FAILED
    return 0


def start(folder: Path, count: int) -> int:
    """Start the processes and wait for them; all end where one fails."""
    from torch.distributed import run

    run.main(
        [
            # What `--standalone` means, without a name to look up: a confined child reads no hosts file.
            "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1",
            "--nproc-per-node", str(count),
            "--no-python", sys.executable, "-I", "-m", "pu_engine.training.training_process", str(folder),
            "--parent", str(os.getpid()),
        ]
    )  # fmt: skip
    return 0


def train_share(folder: Path) -> None:
    """Train with the other processes; the first one keeps what came of it."""
    given = from_json(JointTraining, json.loads((folder / INPUTS).read_text()))
    device = own_device()
    with repeatable(given.threads), joined(device) as processes, reporting(folder, processes) as progress:
        prepared = prepare(given.inputs, given.student, given.targets, device, processes)
        curve = train(prepared.module, prepared.task, Path(given.checkpoints), progress)
        if processes.first:
            weights = {name: value.cpu().contiguous() for name, value in prepared.module.state_dict().items()}
            save_file(weights, folder / WEIGHTS)
            write_atomic(folder / CURVE, json.dumps(curve).encode())


def own_device() -> torch.device:
    """The GPU of this process, by its place among those of the machine; without one the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def reporting(folder: Path, processes: Processes) -> Iterator[Progress]:
    """The first process's way to the stage; the others have nothing to say."""
    if not processes.first:
        yield SilentProgress()
        return
    pipe = os.open(folder / PIPE, os.O_WRONLY)
    try:
        yield LineProgress(pipe)
    finally:
        os.close(pipe)


def die_with(parent: int) -> None:
    """End when the parent does, where the kernel can see to it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(EXIT_ORPHANED)


if __name__ == "__main__":
    raise SystemExit(main())
