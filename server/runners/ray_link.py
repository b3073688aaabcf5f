"""The server's end of the driver: its process, and the lines that go to and fro."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from punnet.errors import make_error
from server.processes import signal_group

log = logging.getLogger(__name__)

START_SECONDS = 120.0
END_SECONDS = 10.0
ANSWER_BYTES = 16 << 20
TAIL_BYTES = 2000
INSTALL = "Install Ray on the server and on every node with `pip install 'punnet[ray]'`."

OnTick = Callable[[Mapping[str, Any]], Awaitable[None]]


class DriverLost(Exception):
    """The driver ended while it had work."""


@dataclass(slots=True)
class _Run:
    on_tick: OnTick
    outcome: asyncio.Future[Mapping[str, Any]]


class DriverLink:
    """One driver, started again where it was lost."""

    def __init__(self, arguments: list[str], log_file: Path, environment: Mapping[str, str]) -> None:
        """`arguments` start the driver; it inherits the environment given, its standard error goes to the file."""
        self._arguments = arguments
        self._log_file = log_file
        self._environment = environment
        self._numbers = itertools.count(1)
        self._runs: dict[int, _Run] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self.largest: Mapping[str, float] = {}

    @property
    def pid(self) -> int | None:
        """The driver's process id while it runs."""
        return self._process.pid if self._alive() and self._process else None

    async def start(self) -> None:
        """Start the driver unless it runs, and wait until it has a cluster.

        Raises:
            PunnetError: SERVER_START_FAILED.
        """
        async with self._starting:
            if not self._alive():
                await self._start()

    async def call(self, request: Mapping[str, Any], on_tick: OnTick) -> Mapping[str, Any]:
        """Have the driver run something; its outcome. Cancelled, it returns once the driver has stopped it.

        Raises:
            DriverLost: the driver ended; so did what it ran, or it is about to.
        """
        number = next(self._numbers)
        run = self._runs[number] = _Run(on_tick, asyncio.get_running_loop().create_future())
        try:
            await self._send({"run": number, **request})
            try:
                return await asyncio.shield(run.outcome)
            except asyncio.CancelledError:
                with contextlib.suppress(DriverLost):
                    await self._send({"stop": number})
                    await run.outcome
                raise
        finally:
            del self._runs[number]

    async def close(self) -> None:
        """End the driver, and with it what it runs."""
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), END_SECONDS)
        except TimeoutError:
            log.warning("the Ray driver does not end; it is killed")
        signal_group(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        if self._reading is not None:
            await self._reading

    def _alive(self) -> bool:
        return self._process is not None and self._process.returncode is None and self._reading is not None

    async def _start(self) -> None:
        log_file = os.open(self._log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log_file,
                start_new_session=True,
                limit=ANSWER_BYTES,
                env=dict(self._environment),
            )
        finally:
            os.close(log_file)
        try:
            first = await asyncio.wait_for(self._answer(self._process), START_SECONDS)
        except TimeoutError:
            first = None
        if first is None:
            await self.close()
            raise make_error(
                "SERVER_START_FAILED",
                f"The Ray cluster can't be used: {self._last_words()}",
                f"See {self._log_file}; `ray status` on the head says whether the cluster is up.",
            )
        self.largest = first["ready"]
        self._reading = asyncio.create_task(self._read(self._process))
        log.info("Ray driver started", extra={"pid": self._process.pid, **self.largest})

    async def _send(self, message: Mapping[str, Any]) -> None:
        stdin = self._process.stdin if self._process and self._alive() else None
        if stdin is None:
            raise DriverLost("there is no Ray driver")
        try:
            stdin.write((json.dumps(message) + "\n").encode())
            await stdin.drain()
        except ConnectionError as error:
            raise DriverLost("the Ray driver takes nothing") from error

    async def _answer(self, process: asyncio.subprocess.Process) -> dict[str, Any] | None:
        """The next answer; None where the driver has ended."""
        if process.stdout is None:
            return None
        line = await process.stdout.readline()
        answer: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return answer

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        try:
            while answer := await self._answer(process):
                run = self._runs.get(answer["run"])
                if run is None:
                    continue
                if "tick" in answer:
                    await run.on_tick(answer["tick"])
                elif not run.outcome.done():
                    run.outcome.set_result(answer["outcome"])
        finally:
            self._reading = None
            signal_group(process.pid, signal.SIGKILL)
            await process.wait()
            for run in self._runs.values():
                if not run.outcome.done():
                    run.outcome.set_exception(DriverLost("the Ray driver ended"))

    def _last_words(self) -> str:
        text = self._log_file.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip()
        return text.splitlines()[-1] if text else "its driver says nothing"


def driver_arguments(address: str, cpus: int, run_id: str) -> list[str]:
    """How the driver is started.

    Raises:
        PunnetError: SERVER_START_FAILED where this Python has no Ray.
    """
    if importlib.util.find_spec("ray") is None:
        raise make_error("SERVER_START_FAILED", "This Python lacks Ray, which --runner asks for.", INSTALL)
    module = ["-I", "-m", "server.runners.ray_driver"]
    cluster = ["--address", address, "--cpus", str(cpus), "--scratch", f"punnet-ray-{run_id}"]
    return [sys.executable, *module, *cluster]
