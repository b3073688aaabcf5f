"""The faults, each injected into a running server while a user works; the table `FAULTS` names them.

A fault is a function that waits for its moment, does harm, undoes what an operator would undo (frees the disk, starts
the server again) and returns what it did, or None where the work ended before it could.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import random
import resource
import shutil
import signal
import sqlite3
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cutting_proxy import CuttingProxy
from benchmarks.ray_cluster import LocalCluster, kill
from benchmarks.server_process import ServerProcess

POLL_SECONDS = 0.02
WITHOUT_BLOBS = ("upload", "pool_verification", "pool_page")  # moments at which no job names a blob
DELAYS_SECONDS = (0.2, 2.0)  # a stage without torch lives a moment, one with it 1 to 5 s
SHARE_OF_ALL = 0.25  # of the kills in a cluster: everything of a kind in place of what has work
SMALL_DISK_BYTES = 768 << 20
DAY_SECONDS = 86_400.0
CLOCK_SOURCE = Path(__file__).with_name("clock_jump.c")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a fault can reach."""

    server: ServerProcess
    proxy: CuttingProxy
    random: random.Random
    done: threading.Event  # the user has had all once, or has given up
    moments: tuple[str, ...]  # "upload", or a stage that will run
    stages: Path  # the folder below which stages have theirs: the data folder, or the nodes' where there is a store
    clock: Path | None = None  # the file that the server's wall clock is shifted by
    cluster: LocalCluster | None = None  # where the stages run, else beside the server

    @property
    def data(self) -> Path:
        return self.server.data


Injection = dict[str, Any]


def kill_front(scene: Scene) -> Injection | None:
    """SIGKILL to the server, one to three times, each time started again after a moment."""
    moment = wait_for_moment(scene)
    if moment is None:
        return None
    kills = scene.random.randint(1, 3)
    for _ in range(kills):
        scene.server.kill()
        time.sleep(scene.random.uniform(0.0, 2.0))
        scene.server.start()
        if scene.done.wait(scene.random.uniform(0.0, 4.0)):
            break
    return {**moment, "kills": kills}


def kill_stage(scene: Scene) -> Injection | None:
    """SIGKILL to the process of a running stage, once or twice."""
    moment = wait_for_moment(scene)
    killed = []
    for _ in range(scene.random.randint(1, 2) if moment else 0):
        while not (running := running_stages(scene.data)) and not scene.done.is_set():
            time.sleep(POLL_SECONDS)
        for pid, stage in running.items():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed.append(stage)
        scene.done.wait(scene.random.uniform(0.5, 4.0))
    return {**moment, "killed": killed} if moment and killed else None


def kill_ray_worker(scene: Scene) -> Injection | None:
    """SIGKILL to the Ray worker that holds a running stage, or to all workers of the cluster, once or twice."""
    moment = wait_for_moment(scene)
    killed = []
    for _ in range(scene.random.randint(1, 2) if moment else 0):
        held = held_stages(scene)
        if not held or scene.cluster is None:
            break
        workers = scene.cluster.workers()
        victims = list(workers) if scene.random.random() < SHARE_OF_ALL else [worker for _, worker, _ in held]
        kill(victims)
        killed.append({"stages": [stage for stage, _, _ in held], "workers": [workers.get(pid, "") for pid in victims]})
        scene.done.wait(scene.random.uniform(0.5, 4.0))
    return {**moment, "killed": killed} if moment and killed else None


def kill_ray_node(scene: Scene) -> Injection | None:
    """SIGKILL to all of the node that runs a stage, or of every node, once or twice; each time as many join."""
    moment = wait_for_moment(scene)
    killed = []
    for _ in range(scene.random.randint(1, 2) if moment else 0):
        held = held_stages(scene)
        if not held or scene.cluster is None:
            break
        busy = sorted({raylet for _, _, raylet in held})
        victims = scene.cluster.raylets if scene.random.random() < SHARE_OF_ALL else busy
        for raylet in victims:
            scene.cluster.kill_node(raylet)
        killed.append({"stages": [stage for stage, _, _ in held], "nodes": len(victims)})
        scene.done.wait(scene.random.uniform(0.0, 4.0))
        for _ in victims:
            scene.cluster.add_node()
    return {**moment, "killed": killed} if moment and killed else None


def held_stages(scene: Scene) -> list[tuple[str, int, int]]:
    """The stages that run on the cluster, once there is one: name, the worker's process and its node's."""
    while scene.cluster is not None and not scene.done.is_set():
        found = [(stage, scene.cluster.holders(pid)) for pid, stage in sorted(running_stages(scene.stages).items())]
        held = [(stage, *holders) for stage, holders in found if holders is not None]
        if held:
            return held
        time.sleep(POLL_SECONDS)
    return []


def fill_disk(scene: Scene) -> Injection | None:
    """Fill the small file system but for a few bytes, for seconds, then free it."""
    moment = wait_for_moment(scene)
    if moment is None:
        return None
    left = scene.random.choice((0, 1 << 16, 1 << 20, 16 << 20))
    seconds = scene.random.uniform(1.0, 15.0)
    ballast = scene.data.parent / "ballast"
    _fill(ballast, left)
    scene.done.wait(seconds)
    ballast.unlink()
    return {**moment, "bytes_left": left, "seconds": round(seconds, 1)}


def _fill(ballast: Path, left: int) -> None:
    """Take all space but so much; the server writes meanwhile, and may be faster."""
    with ballast.open("wb") as file:
        while True:
            size = shutil.disk_usage(ballast.parent).free - left
            try:
                os.posix_fallocate(file.fileno(), 0, max(1, size))
                return
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def cut_connections(scene: Scene) -> Injection | None:
    """Break every connection off, up to eight times in a row."""
    moment = wait_for_moment(scene)
    if moment is None:
        return None
    cuts = 0
    for _ in range(scene.random.randint(1, 8)):
        cuts += scene.proxy.cut()
        if scene.done.wait(scene.random.uniform(0.05, 1.5)):
            break
    return {**moment, "sides_cut": cuts}


def stall_connections(scene: Scene) -> Injection | None:
    """Let nothing through for seconds, at times for longer than keepalive waits, then go on."""
    moment = wait_for_moment(scene)
    if moment is None:
        return None
    seconds = scene.random.choice((scene.random.uniform(0.5, 10.0), 50.0))
    scene.proxy.stall()
    time.sleep(seconds)
    scene.proxy.resume()
    return {**moment, "seconds": round(seconds, 1)}


def jump_clock(scene: Scene) -> Injection | None:
    """Shift the server's wall clock by seconds to years, forwards and backwards, up to four times."""
    moment = wait_for_moment(scene)
    if moment is None or scene.clock is None:
        return None
    jumps = []
    for _ in range(scene.random.randint(1, 4)):
        seconds = scene.random.choice((-1, 1)) * 10 ** scene.random.uniform(0.0, 7.5)
        set_clock(scene.clock, seconds)
        jumps.append(round(seconds))
        if scene.done.wait(scene.random.uniform(0.5, 5.0)):
            break
    return {**moment, "seconds_off": jumps}


def flip_blob(scene: Scene) -> Injection | None:
    """Flip one bit of a blob that a job names."""
    moment = wait_for_moment(scene, without=WITHOUT_BLOBS)
    # A job's folder links to the blobs that the job names: the same bytes.
    pinned = sorted((scene.data / "jobs").glob("*/*/*")) if moment else []
    if moment is None or not pinned:
        return None
    return {**moment, **flip_bit(scene.random.choice(pinned), scene.random)}


def flip_result(scene: Scene) -> Injection | None:
    """Flip one bit of a file of a finished stage, or of the pool."""
    moment = wait_for_moment(scene)
    while moment and not scene.done.is_set():
        below = (("stages", "*/*/out/**/*"), ("pools", "*/*/*/*"))
        found = sorted(p for folder, files in below for p in (scene.data / folder).glob(files) if p.is_file())
        found = [path for path in found if path.stat().st_size]
        if found:
            return {**moment, **flip_bit(scene.random.choice(found), scene.random)}
        time.sleep(POLL_SECONDS)
    return None


def lock_database(scene: Scene) -> Injection | None:
    """Hold the database's write lock, at times for longer than the server waits for it."""
    moment = wait_for_moment(scene)
    if moment is None:
        return None
    seconds = scene.random.uniform(1.0, 14.0)
    with contextlib.closing(sqlite3.connect(scene.data / "punnet.sqlite3", timeout=30, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
        other.execute("ROLLBACK")
    return {**moment, "seconds": round(seconds, 1)}


def refuse_writes(scene: Scene) -> Injection | None:
    """Let every write of the server fail with EFBIG, the database's among them, for seconds."""
    moment = wait_for_moment(scene)
    if moment is None:
        return None
    seconds = scene.random.uniform(0.3, 6.0)
    before = resource.prlimit(scene.server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(scene.server.pid, resource.RLIMIT_FSIZE, (0, before[1]))
    time.sleep(seconds)
    resource.prlimit(scene.server.pid, resource.RLIMIT_FSIZE, before)
    return {**moment, "seconds": round(seconds, 1)}


FAULTS: Mapping[str, Callable[[Scene], Injection | None]] = {
    "front_killed": kill_front,
    "stage_killed": kill_stage,
    "ray_worker_killed": kill_ray_worker,
    "ray_node_killed": kill_ray_node,
    "disk_full": fill_disk,
    "connections_cut": cut_connections,
    "connections_stalled": stall_connections,
    "clock_jumped": jump_clock,
    "blob_bit_flipped": flip_blob,
    "result_bit_flipped": flip_result,
    "database_locked": lock_database,
    "writes_refused": refuse_writes,
}
ON_RAY = ("ray_worker_killed", "ray_node_killed")  # their rounds' stages run on a cluster


def unavailable() -> dict[str, str]:
    """Faults that can't be injected on this machine, and why."""
    missing = {}
    if os.geteuid() != 0:
        missing["disk_full"] = "a small file system can be mounted by root only"
    if shutil.which("cc") is None:
        missing["clock_jumped"] = "there is no C compiler for clock_jump.c"
    if importlib.util.find_spec("ray") is None:
        missing |= dict.fromkeys(ON_RAY, "Ray is not installed: pip install 'punnet[cpu,ray]'")
    return missing


def wait_for_moment(scene: Scene, *, without: Collection[str] = ()) -> Injection | None:
    """Wait for a stage (or the upload) to run, and then a little; None where the work ended before."""
    name = scene.random.choice([moment for moment in scene.moments if moment not in without])
    delay = scene.random.uniform(0.0, scene.random.choice(DELAYS_SECONDS))
    while not scene.done.is_set():
        if _begun(scene, name):
            scene.done.wait(delay)
            return None if scene.done.is_set() else {"moment": name, "delay": round(delay, 2)}
        time.sleep(POLL_SECONDS)
    return None


def _begun(scene: Scene, moment: str) -> bool:
    stages = running_stages(scene.stages).values()
    if moment == "upload":  # or what comes after it, where it was too short to be seen
        return bool(stages) or any((scene.data / "blobs").glob("*/partial/*"))
    return moment in stages


def running_stages(below: Path) -> dict[int, str]:
    """Process id -> name of each stage whose folder is below another."""
    found = {}
    for pid, command in commands_naming(below):
        if b"pu_engine.stage" in command:
            found[pid] = command[command.index(b"pu_engine.stage") + 1].decode()
    return found


def commands_naming(folder: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Processes in whose command line a folder stands, with that line."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:  # it has ended
                continue
            if str(folder).encode() in command:
                yield int(entry.name), command.split(b"\0")


def flip_bit(path: Path, generator: random.Random) -> Injection:
    """Flip one bit in place, as a failing disk does."""
    size = path.stat().st_size
    position, bit = generator.randrange(size), generator.randrange(8)
    with path.open("r+b", buffering=0) as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ (1 << bit)]))
    return {"file": "/".join(path.parts[-3:]), "byte": position, "bit": bit}


def make_clock(folder: Path) -> tuple[Path, dict[str, str]]:
    """The file that shifts a server's wall clock, and the environment in which it does."""
    library, shift = folder / "clock_jump.so", folder / "clock"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, CLOCK_SOURCE], check=True)
    set_clock(shift, 0.0)
    return shift, {"LD_PRELOAD": str(library), "CLOCK_JUMP_FILE": str(shift)}


def set_clock(shift: Path, seconds: float) -> None:
    """Let the wall clock be so far off."""
    with shift.open("r+b" if shift.exists() else "wb") as file:
        file.write(struct.pack("=q", int(seconds * 1e9)))


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of its own of SMALL_DISK_BYTES; root only."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "punnet-faults", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
