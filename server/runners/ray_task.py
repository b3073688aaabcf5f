"""What a Ray task does on its node: the confined child that `LocalRunner` starts, alone in the stage's folder.

Runs in a worker process of Ray, which needs Punnet of the same versions installed; nothing of it is sent along.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pu_engine.pipeline import STAGES, installed_versions
from server.folders import read_bounded, remove_tree
from server.manifest import ERROR_BYTES, ProtocolError, read_finished
from server.object_store import open_store
from server.processes import start_time
from server.runners.local import LocalRunner
from server.runners.parcels import Place, deliver, is_published, publish
from server.runners.port import StageCommand, StageOutcome, StageProgress

LOCK = ".running"
LOCK_SECONDS = 300.0  # longer than a file server keeps the lock of a node that is gone
POLL_SECONDS = 0.5
PROBE_SECONDS = 60.0
SCRATCH = "punnet-task-"

Tell = Callable[[Mapping[str, Any]], object]


class Board:
    """The last progress of each run: an actor, asked by the driver. Losing it loses nothing but a few ticks."""

    def __init__(self) -> None:
        self._latest: dict[int, Mapping[str, Any]] = {}

    def tell(self, run: int, tick: Mapping[str, Any]) -> None:
        """Keep a run's newest tick."""
        self._latest[run] = tick

    def take(self) -> dict[int, Mapping[str, Any]]:
        """The ticks that came since the last call."""
        taken, self._latest = self._latest, {}
        return taken


def stage_task(
    run: int,
    command: Mapping[str, Any],
    parcel: Mapping[str, str] | None,
    *,
    terms: Mapping[str, Any],
    board: Any,
) -> dict[str, Any]:
    """Run one stage here; what Ray calls. The outcome with its warnings, as JSON values.

    Args:
        parcel: where a store has the inputs and takes the result; None where this node sees the data folder.
        terms: of the server: versions, term_seconds, weak_sandbox.
        board: the actor that progress goes to.

    Raises:
        KeyboardInterrupt: the task was cancelled; the stage's processes are gone.
    """
    differing = _differing(terms["versions"])
    if differing:
        return _lost(f"node {platform.node()} has other packages than the server: {differing}")
    if not terms["weak_sandbox"] and (ways := open_ways()):
        return _lost(f"node {platform.node()} does not stop confined children from: {', '.join(ways)}")
    term_seconds = terms["term_seconds"]

    def tell(tick: Mapping[str, Any]) -> object:
        return board.tell.remote(run, tick)

    if parcel is None:
        return asyncio.run(run_stage(command_of(command), term_seconds, tell))
    place = Place(store=open_store(parcel["store"]), prefix=parcel["prefix"], result=parcel["result"])
    return run_parcel(command_of(command), term_seconds, tell, place=place, listing=parcel["listing"])


@functools.cache
def open_ways() -> tuple[str, ...]:
    """What a confined child is not stopped from on this node; the server's own probe says nothing of it."""
    probe = [sys.executable, "-I", "-m", "server.confine", "--probe"]
    try:
        done = subprocess.run(probe, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_SECONDS, check=True)
    except subprocess.SubprocessError:
        return ("anything: its probe failed",)
    return tuple(name for name, stopped in json.loads(done.stdout).items() if not stopped)


def run_parcel(command: StageCommand, term_seconds: float, tell: Tell, *, place: Place, listing: str) -> dict[str, Any]:
    """Fetch a stage's inputs into a folder of this node, run it, and put its result where the first one counts."""
    remove_dead_scratch()
    if is_published(place):  # by a task that was killed after that
        return {**asdict(StageOutcome(returncode=0, seconds=0.0)), "warnings": [], "node": platform.node()}
    scratch = Path(tempfile.gettempdir()) / f"{SCRATCH}{os.getpid()}-{start_time(os.getpid())}"
    scratch.mkdir(mode=0o700)
    try:
        here = deliver(command, place, listing, scratch)
        outcome = asyncio.run(run_stage(here, term_seconds, tell))
        return {**outcome, **_published(here, outcome, place)}
    finally:
        remove_tree(scratch)


def remove_dead_scratch() -> None:
    """Remove what tasks left on this node whose process was killed: it holds users' images."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        pid, _, started = folder.name.removeprefix(SCRATCH).partition("-")
        ours = folder.lstat().st_uid == os.getuid() and pid.isdigit()
        if ours and str(start_time(int(pid))) != started:
            remove_tree(folder)


def _published(command: StageCommand, outcome: Mapping[str, Any], place: Place) -> dict[str, str]:
    """What the outcome gains: nothing where the result is in the store, else why it is not."""
    if outcome["lost"] or outcome["timed_out"] or outcome["violation"]:
        return {}
    if outcome["returncode"] != 0:
        try:
            return {"error": read_bounded(command.workdir / "error.json", ERROR_BYTES).decode(errors="replace")}
        except OSError:  # it left no account, or none that is a file
            return {}
    out = command.workdir / "out"
    try:
        manifest = read_finished(STAGES[command.stage], out)
    except ProtocolError as violation:
        return {"violation": f"a result that is none: {violation}"}
    publish(out, manifest, place)
    return {}


async def run_stage(command: StageCommand, term_seconds: float, tell: Tell) -> dict[str, Any]:
    """One stage as a confined child of this process; nobody else runs it meanwhile."""
    warnings: list[str] = []

    async def on_progress(progress: StageProgress) -> None:
        if progress.warning:
            warnings.append(progress.warning)
        else:
            tell(asdict(progress))

    async def on_start(pid: int, started: int) -> None:
        return None

    runner = LocalRunner(term_seconds=term_seconds)
    try:
        async with _waking(), alone(command.workdir):
            outcome = await runner.run(command, stop=asyncio.Event(), on_start=on_start, on_progress=on_progress)
    except TimeoutError:
        return _lost(f"another node has been at it for {LOCK_SECONDS:g} s and does not end")
    return {**asdict(outcome), "warnings": warnings, "node": platform.node()}


@contextlib.asynccontextmanager
async def alone(workdir: Path) -> AsyncIterator[None]:
    """Hold the folder's lock: a task that the cluster gave up may still run on a node that it can't reach.

    Raises:
        TimeoutError: another process keeps it.
    """
    descriptor = os.open(workdir / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _locked(descriptor):
            if time.monotonic() > deadline:
                raise TimeoutError
            await asyncio.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def command_of(value: Mapping[str, Any]) -> StageCommand:
    """A command from its JSON form."""
    return StageCommand(**{**value, "workdir": Path(value["workdir"]), "read": tuple(map(Path, value["read"]))})


def command_json(command: StageCommand) -> dict[str, Any]:
    """The JSON form of a command."""
    return {**asdict(command), "workdir": str(command.workdir), "read": [str(path) for path in command.read]}


def _lost(why: str) -> dict[str, Any]:
    return {**asdict(StageOutcome(returncode=0, seconds=0.0, lost=why)), "warnings": [], "node": platform.node()}


def _differing(versions: Mapping[str, str]) -> str:
    """The packages whose version here is not the server's; results would depend on the node."""
    here = installed_versions()
    names = sorted(name for name in versions.keys() | here.keys() if versions.get(name) != here.get(name))
    return ", ".join(f"{name} {here.get(name, 'none')} (server: {versions.get(name, 'none')})" for name in names)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.asynccontextmanager
async def _waking() -> AsyncIterator[None]:
    """Wake the loop now and then: Ray's cancellation sets a flag that Python looks at between two events only."""

    async def tick() -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)

    task = asyncio.create_task(tick())
    try:
        yield
    finally:
        task.cancel()
