"""What may come of a stranger's model, and a process that finds out: guard, load, run and intake, each in its turn.

Started by `tests.hostile.fuzz` through `server.confine`. It forks before onnxruntime makes a thread, so that a mutant
that kills its process takes no other with it, and writes one JSON line for each step and each end. The twin is imported
for torch alone: intake loads it late, and each fork would again.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pu_engine import intake
from pu_engine.errors import EngineError
from pu_engine.guard import static_guard
from pu_engine.jsonform import to_json
from pu_engine.progress import SilentProgress
from pu_engine.results import file_sha256
from pu_engine.runtime import forward
from pu_engine.teacher.graph_surgery import image_input, prune
from pu_engine.twin import proof  # noqa: F401
from pu_engine.types import File, IntakeInputs, LabelledImages
from tests.hostile.mutation import mutants

FORK_MUTANTS = 50
CPU_SECONDS = 10.0  # of one mutant
FREE_SIZE = 2
CLEAN = "clean"
Write = Callable[[dict[str, Any]], None]


class OracleBroken(Exception):
    """The guard broke its promise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one process examines; its folder holds `seeds/*.onnx` and `images.tar`."""

    folder: Path
    seed: int
    indices: range


def guarded(data: bytes) -> bytes:
    """The canonical bytes, after the guard took them again and left them as they were.

    Raises:
        EngineError: the guard refuses the model.
        OracleBroken: it refuses or changes what it had let through.
    """
    canonical = static_guard.canonical_bytes(static_guard.vet(data))
    try:
        again = static_guard.canonical_bytes(static_guard.vet(canonical))
    except EngineError as error:
        raise OracleBroken(f"the guard refuses its own canonical bytes: {error.code}, {error.message}") from error
    if again != canonical:
        raise OracleBroken("the guard's canonical bytes are not stable")
    return canonical


def run_once(data: bytes) -> None:
    """Load a guarded model and run it on an image of zeros, of the size that it declares.

    Raises:
        EngineError: it has no image input, or onnxruntime refuses it.
    """
    model = onnx.ModelProto.FromString(data)
    source = image_input(model)
    rows = np.zeros([min(size or FREE_SIZE, 64) for size in source.dims], source.dtype)
    forward.observe(model, [item.name for item in model.graph.output], rows, 1)


def take_in(folder: Path, data: bytes) -> None:
    """The whole intake of a model with the folder's labelled images.

    Raises:
        EngineError: what intake says of it.
    """
    out = folder / "out"
    out.mkdir(exist_ok=True)
    (folder / "mutant.onnx").write_bytes(data)
    files = [File(path=str(path), sha256=file_sha256(path)) for path in (folder / "mutant.onnx", folder / "images.tar")]
    teacher = intake.run(IntakeInputs(teacher=files[0], images=LabelledImages(tar=files[1])), out, SilentProgress())
    json.dumps(to_json(teacher), allow_nan=False)  # as the stage's manifest holds it


def examine(folder: Path, data: bytes, step: Callable[[str], None]) -> str:
    """CLEAN or the code of the refusal; any other exception is a defect of ours.

    Args:
        step: told of each step as it begins, for the case that it does not end.
    """
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # SIGPROF ends the process
    outcome = CLEAN
    try:
        step("guard")
        canonical = guarded(data)
        for name in ("run", "intake"):
            step(name)
            try:
                if name == "run":
                    run_once(canonical)
                else:
                    take_in(folder, canonical)
                outcome = CLEAN
            except EngineError as error:
                outcome = error.code
            except MemoryError:
                outcome = "STAGE_MEMORY"  # as the stage's outermost frame says
    except EngineError as error:
        return error.code
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return outcome


def work(task: Work, write: Write) -> None:
    """Examine the mutants in forks of this process, and go on behind each that dies."""
    models = {path.stem: path.read_bytes() for path in sorted((task.folder / "seeds").glob("*.onnx"))}
    current = mmap.mmap(-1, 8)  # shared with the forks: the mutant that is being examined
    first = task.indices.start
    while first < task.indices.stop:
        last = min(first + FORK_MUTANTS, task.indices.stop)
        code = _in_fork(partial(_examine_all, task, models, range(first, last), current, write))
        if code == 0:
            first = last
            continue
        index = int.from_bytes(current[:], "little")
        mutant = next(mutants(models, task.seed, range(index, index + 1)))
        smaller = _smallest_that_dies(task.folder, mutant.data, code)
        write({"index": index, "died": _name(code), "source": mutant.source, "data": smaller.hex()})
        first = index + 1


def _examine_all(task: Work, models: dict[str, bytes], chunk: range, current: mmap.mmap, write: Write) -> None:
    for mutant in mutants(models, task.seed, chunk):
        current[:] = mutant.index.to_bytes(8, "little")

        def step(name: str, index: int = mutant.index) -> None:
            write({"index": index, "step": name})

        try:
            write({"index": mutant.index, "end": examine(task.folder, mutant.data, step)})
        except Exception as error:  # noqa: BLE001  the oracle: whatever is no EngineError is to be reported
            text = "".join(traceback.format_exception(error))
            write({"index": mutant.index, "broken": text, "source": mutant.source, "data": mutant.data.hex()})


def _in_fork(action: Callable[[], None]) -> int:
    """The exit status of a fork that does this: 0, or minus the signal that ended it."""
    process = os.fork()
    if process == 0:
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _smallest_that_dies(folder: Path, data: bytes, code: int) -> bytes:
    """The canonical model cut off behind its first tensor that still ends a process in the same way."""
    try:
        model = static_guard.vet(data)
    except EngineError:
        return data
    for smaller in _prefixes(model):
        if _in_fork(partial(_quietly, folder, smaller)) == code:
            return smaller
    return data


def _quietly(folder: Path, data: bytes) -> None:
    examine(folder, data, lambda _: None)


def _prefixes(model: Any) -> Iterator[bytes]:
    for node in model.graph.node:
        smaller = onnx.ModelProto()
        smaller.CopyFrom(model)
        smaller.graph.ClearField("output")
        for name in node.output:
            if name:
                smaller.graph.output.add(name=name)
        prune(smaller)
        yield smaller.SerializeToString(deterministic=True)


def _name(code: int) -> str:
    if code == -signal.SIGPROF:
        return "timeout"
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def main(folder: str, seed: int, start: int, stop: int, descriptor: int) -> None:
    """Examine mutants of the models in a folder, and write what came of them to a descriptor."""

    def write(line: dict[str, Any]) -> None:
        os.write(descriptor, json.dumps(line).encode() + b"\n")

    work(Work(folder=Path(folder), seed=seed, indices=range(start, stop)), write)
