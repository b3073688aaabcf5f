"""The one process that talks to Ray: `python -I -m server.runners.ray_driver --address local|ray://HOST:PORT`.

Requests come as JSON lines on standard input, answers go as JSON lines to the standard output that it started with:

    {"run": 1, "command": {...}, "cpus": 2, "gpus": 0, "parcel": null, "terms": {...}}
        -> {"run": 1, "tick": {...}} any number of times, {"run": 1, "outcome": {...}}
    {"stop": 1}
        -> the outcome of run 1, with `stopped`

The first answer is {"ready": {"cpus": ..., "gpus": ...}} of the largest node. It ends with its standard input, and Ray
ends the tasks that it had.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Before Ray is imported: nothing is reported to its makers.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray.exceptions import RayError, TaskCancelledError

from pu_engine.pipeline import installed_versions
from server.folders import remove_tree
from server.namespaces import die_with_parent
from server.runners.port import StageOutcome
from server.runners.ray_task import Board, stage_task

LOCAL = "local"
RETRIES = 10  # of a task whose node or worker is lost; a stage that dies by itself is an outcome, and not tried again
POLL_SECONDS = 0.5
FORCE_SECONDS = 20.0  # beyond the time that a stage has to obey
OBJECT_STORE_BYTES = 80 << 20  # commands and outcomes go through it; the smallest that Ray takes is 75 MiB
REQUEST_BYTES = 1 << 20


class Driver:
    """Tasks on the cluster, and what is said of them."""

    def __init__(self, answers: int) -> None:
        self._answers = answers
        self._versions = installed_versions()
        self._task = ray.remote(stage_task)
        self._board = ray.remote(num_cpus=0, max_restarts=-1)(Board).remote()
        self._references: dict[int, Any] = {}
        self._ended: dict[int, asyncio.Event] = {}
        self._term_seconds: dict[int, float] = {}

    async def serve(self) -> None:
        """Until standard input ends.

        Raises:
            BaseExceptionGroup: the cluster is gone; whoever started this process starts it again.
        """
        self._send({"ready": largest_node()})
        async with asyncio.TaskGroup() as group:
            tasks = {group.create_task(self._show())}
            async for request in _requests():
                work = self._stop(request["stop"]) if "stop" in request else self._run(request)
                task = group.create_task(work)
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            for task in tasks:
                task.cancel()

    async def _run(self, request: Mapping[str, Any]) -> None:
        run, command = request["run"], request["command"]
        options = {"num_cpus": request["cpus"], "num_gpus": request["gpus"], "scheduling_strategy": "SPREAD"}
        task = self._task.options(**options, max_retries=RETRIES, name=f"punnet {command['stage']}")
        terms = {**request["terms"], "versions": self._versions}
        self._term_seconds[run], self._ended[run] = terms["term_seconds"], asyncio.Event()
        self._references[run] = task.remote(run, command, request["parcel"], terms=terms, board=self._board)
        try:
            outcome = await self._references[run]
        except TaskCancelledError:
            outcome = asdict(StageOutcome(returncode=0, seconds=0.0, stopped=True))
        except RayError as error:
            print(f"run {run} is lost: {error}", file=sys.stderr, flush=True)
            outcome = asdict(StageOutcome(returncode=0, seconds=0.0, lost=f"Ray lost it ({type(error).__name__})"))
        self._ended[run].set()
        del self._references[run], self._ended[run], self._term_seconds[run]
        self._send({"run": run, "outcome": outcome})

    async def _stop(self, run: int) -> None:
        """Interrupt the task, which ends its child; a worker that does not obey is killed, and its child with it."""
        ended = self._ended.get(run)
        if ended is None:
            return
        ray.cancel(self._references[run])
        try:
            await asyncio.wait_for(ended.wait(), self._term_seconds[run] + FORCE_SECONDS)
        except TimeoutError:
            ray.cancel(self._references[run], force=True)

    async def _show(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if not self._references:
                continue
            with contextlib.suppress(RayError):  # its node is lost, and it comes back on another
                for run, tick in (await self._board.take.remote()).items():
                    self._send({"run": run, "tick": tick})

    def _send(self, answer: Mapping[str, Any]) -> None:
        line = (json.dumps(answer) + "\n").encode()
        while line:
            line = line[os.write(self._answers, line) :]


def largest_node() -> dict[str, float]:
    """CPUs and GPUs that one task can have at most, each by the node that has most of it."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return {
        "cpus": max((float(node.get("CPU", 0)) for node in alive), default=0.0),
        "gpus": max((float(node.get("GPU", 0)) for node in alive), default=0.0),
        "nodes": float(len(alive)),
    }


def own_scratch(name: str) -> Path:
    """A new folder for a cluster of this machine: Ray's sockets need a short path. A killed one's is removed."""
    folder = Path(tempfile.gettempdir()) / name
    if folder.is_dir() and folder.lstat().st_uid == os.getuid():
        remove_tree(folder)
    folder.mkdir(mode=0o700)
    return folder


async def _requests() -> Any:
    stream = asyncio.StreamReader(limit=REQUEST_BYTES)
    protocol = asyncio.StreamReaderProtocol(stream)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    while line := await stream.readline():
        yield json.loads(line)


def main() -> int:
    """Connect, or start a cluster of this machine, and serve."""
    parser = argparse.ArgumentParser(prog="python -m server.runners.ray_driver", description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--cpus", type=int, default=os.cpu_count() or 1, help="of a cluster of this machine")
    parser.add_argument("--scratch", default="punnet-ray", help="name of its folder below TMPDIR")
    options = parser.parse_args()
    die_with_parent()
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what Ray prints
    scratch = own_scratch(options.scratch) if options.address == LOCAL else None
    try:
        if scratch is not None:
            ray.init(
                address=LOCAL,
                num_cpus=options.cpus,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(scratch),
            )
        else:
            ray.init(address=options.address, namespace="punnet", log_to_driver=False)
        asyncio.run(Driver(answers).serve())
    finally:
        ray.shutdown()
        if scratch is not None:
            remove_tree(scratch)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
