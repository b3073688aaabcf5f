"""Several processes that train one student together, seen from the stage that starts them."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from pu_engine.errors import EngineError
from pu_engine.jsonform import to_json
from pu_engine.progress import Progress
from pu_engine.results import write_atomic
from pu_engine.types import DistillationInputs

FOLDER = ".processes"
POLL_SECONDS, PIPE_BYTES = 0.2, 1 << 16
LOOPBACK = "lo" if sys.platform == "linux" else "lo0"


def process_count(inputs: DistillationInputs, progress: Progress) -> int:
    """How many processes train: those asked for, or one a visible GPU; one where they could not talk to each other.

    Raises:
        EngineError: REQUEST_INVALID where there are fewer GPUs or fewer images in a batch.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    count, batch = inputs.processes or max(1, gpus), inputs.distillation.batch_size
    most = min(batch, gpus) if gpus else batch
    if count > most:
        raise EngineError(
            "REQUEST_INVALID",
            f"{count} processes can't share {batch} images a step on {gpus or 'no'} GPUs.",
            f"Train in at most {most} processes.",
            processes=count,
            batch_size=batch,
            gpus=gpus,
        )
    if count > 1 and not loopback_works():
        progress.warn(f"Training in one process, not in {count}: they may not open connections to this machine itself.")
        return 1
    return count


def loopback_works() -> bool:
    """Whether processes may talk to each other over this machine's own address."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=1.0).close()
    except OSError:
        return False
    return True


def train_together(
    module: nn.Module, given: Mapping[str, Any], count: int, out: Path, progress: Progress
) -> list[dict[str, float]]:
    """Train in `count` processes, give the module the weights, and return the curve.

    Args:
        given: the fields of `training_process.JointTraining`.

    Raises:
        EngineError: what one of the processes says; STAGE_CRASHED where one ended without a word.
    """
    from pu_engine.training import training_process as child  # it imports the stage

    folder = out / FOLDER
    shutil.rmtree(folder, ignore_errors=True)  # a killed run's
    folder.mkdir()
    write_atomic(folder / child.INPUTS, json.dumps(to_json(child.JointTraining(**given))).encode())
    os.mkfifo(folder / child.PIPE)
    status = _run(folder, count, given["threads"], progress)
    if (folder / child.ERROR).exists():
        failure = json.loads((folder / child.ERROR).read_text())
        raise EngineError(failure["code"], failure["message"], failure["remedy"], **failure["details"])
    if status or not (folder / child.CURVE).exists():
        raise EngineError(
            "STAGE_CRASHED",
            f"One of {count} training processes ended without a result; their starter's exit status is {status}.",
            "Read the stage's log; with too little memory train in fewer processes.",
            status=status,
        )
    module.load_state_dict(load_file(folder / child.WEIGHTS))
    curve: list[dict[str, float]] = json.loads((folder / child.CURVE).read_text())
    shutil.rmtree(folder)
    return curve


def _run(folder: Path, count: int, threads: int, progress: Progress) -> int:
    """Start the processes and pass on what the first one reports, to the end; the exit status."""
    from pu_engine.training import training_process as child

    # Open for both, so that neither side waits for the other and the pipe never ends.
    pipe = os.open(folder / child.PIPE, os.O_RDWR | os.O_NONBLOCK)
    settings = {"GLOO_SOCKET_IFNAME": LOOPBACK, "NCCL_SOCKET_IFNAME": LOOPBACK, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-I", "-m", child.__name__, str(folder), "--start", str(count)]
    process = subprocess.Popen([*command, "--parent", str(os.getpid())], env=settings | os.environ)
    try:
        rest = b""
        while process.poll() is None:
            rest = _pass_on(pipe, rest, progress)
        _pass_on(pipe, rest, progress)
    finally:
        process.kill()
        process.wait()
        os.close(pipe)
    return process.returncode


def _pass_on(pipe: int, rest: bytes, progress: Progress) -> bytes:
    """Report the lines that came; the unfinished one is returned."""
    if not select.select([pipe], [], [], POLL_SECONDS)[0]:
        return rest
    *lines, rest = (rest + os.read(pipe, PIPE_BYTES)).split(b"\n")
    for line in lines:
        said = json.loads(line)
        if "warning" in said:
            progress.warn(said["warning"])
        else:
            progress.update(said["done"], said["total"], said["unit"], said["metrics"])
    return rest
