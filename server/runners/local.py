"""Runs a stage as a confined child of this process."""

from __future__ import annotations

import asyncio
import json
import math
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from server.child_text import holdable, readable
from server.nvidia import gpu_models
from server.processes import kill_marked, signal_group, start_time
from server.runners.port import StageCommand, StageOutcome, StageProgress

LINE_BYTES = 16384  # as pu_engine.progress sends at most
CHUNK_BYTES = 65536
CHUNK_PAUSE_SECONDS = 0.02  # a child that floods the pipe is slowed down, not read faster
STDERR_LOG_BYTES = 1 << 20
STDERR_TAIL_BYTES = 4096
TERM_SECONDS = 10.0
PIPE_END_SECONDS = 2.0
WARNINGS_PER_STAGE = 200
UNIT_CHARACTERS = 32
RUN_MARK = "PUNNET_STAGE_RUN"
MARK_BYTES = 16
SWEEPS = 10  # a process may start another while it is looked for


class _Violation(Exception):
    """The child sent what no stage sends."""


class LocalRunner:
    """Starts `server.confine` in front of `pu_engine.stage`."""

    def __init__(self, term_seconds: float = TERM_SECONDS) -> None:
        self.term_seconds = term_seconds

    async def run(
        self,
        command: StageCommand,
        *,
        stop: asyncio.Event,
        on_start: Callable[[int, int], Awaitable[None]],
        on_progress: Callable[[StageProgress], Awaitable[None]],
    ) -> StageOutcome:
        """See `Runner.run`."""
        # Our own pipe for stderr: asyncio's would let `wait` end with the last process that holds it, not with ours.
        (reader, writer), (errors, errors_writer) = os.pipe(), os.pipe()
        started, mark = time.monotonic(), secrets.token_hex(MARK_BYTES)
        try:
            process = await asyncio.create_subprocess_exec(
                *arguments(command, writer),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=errors_writer,
                pass_fds=(writer,),
                start_new_session=True,
                env=os.environ | {"PUNNET_RUN_ID": command.run_id, RUN_MARK: mark},
            )
        except BaseException:
            os.close(reader)
            os.close(errors)
            raise
        finally:
            os.close(writer)
            os.close(errors_writer)
        stderr = asyncio.create_task(_keep_stderr(errors, command.workdir / "stderr.log"))
        progress = asyncio.create_task(_read_progress(reader, on_progress))
        try:
            await on_start(process.pid, start_time(process.pid) or 0)
            timed_out, stopped = await self._wait(process, progress, stop, command.wall_seconds)
        finally:
            await self._end(process)
            alone = await asyncio.to_thread(_kill_strays, mark)
        violation = await _violation(progress) or ("" if alone else "processes that outlive it")
        tail = await _finished(stderr)
        return StageOutcome(
            returncode=process.returncode if process.returncode is not None else 0,
            seconds=time.monotonic() - started,
            timed_out=timed_out or process.returncode == -signal.SIGXCPU,
            stopped=stopped,
            violation=violation,
            stderr_tail=tail or "",
        )

    async def _wait(
        self, process: asyncio.subprocess.Process, progress: asyncio.Task[None], stop: asyncio.Event, seconds: float
    ) -> tuple[bool, bool]:
        """Until the process ends, or must end: (deadline passed, stop was set)."""
        ended, stopping = asyncio.create_task(process.wait()), asyncio.create_task(stop.wait())
        deadline = time.monotonic() + seconds
        try:
            while not ended.done() and not stopping.done():
                left = deadline - time.monotonic()
                if left <= 0:
                    return True, False
                waiting = {ended, stopping} | ({progress} if not progress.done() else set())
                await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if progress.done() and progress.exception() is not None:
                    return False, False
            return False, not ended.done()
        finally:
            ended.cancel()
            stopping.cancel()

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """SIGTERM, time to obey, SIGKILL; reaps the child and leaves nothing of its group."""
        if process.returncode is None:
            signal_group(process.pid, signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), self.term_seconds)
            except TimeoutError:
                signal_group(process.pid, signal.SIGKILL)
                await process.wait()
        signal_group(process.pid, signal.SIGKILL)


def _kill_strays(mark: str) -> bool:
    """Kill what left the stage's process group, and could still change its files; false where more kept coming."""
    return any(not kill_marked(RUN_MARK, mark) for _ in range(SWEEPS))


def arguments(command: StageCommand, progress: int) -> list[str]:
    """The command line of a stage's confined child; it may open this machine's GPUs where it can use them."""
    python = [sys.executable, "-I", "-m"]
    confine = [
        *("--workdir", str(command.workdir), "--profile", command.profile, "--parent", str(os.getpid())),
        *("--cpu-seconds", str(math.ceil(command.wall_seconds * command.threads)), "--threads", str(command.threads)),
    ]
    if command.uses_gpu and gpu_models():
        confine.append("--gpu")
    reads = [part for path in command.read for part in ("--read", str(path))]
    stage = [*python, "pu_engine.stage", command.stage, str(command.workdir), "--progress-fd", str(progress)]
    return [*python, "server.confine", *confine, *reads, "--", *stage]


async def _opened(descriptor: int) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    stream = asyncio.StreamReader(limit=CHUNK_BYTES)
    pipe = os.fdopen(descriptor, "rb", buffering=0)
    protocol = asyncio.StreamReaderProtocol(stream)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
    return stream, transport


async def _lines(descriptor: int) -> AsyncIterator[bytes]:
    stream, transport = await _opened(descriptor)
    rest = b""
    try:
        while chunk := await stream.read(CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line
            if len(rest) > LINE_BYTES:
                raise _Violation(f"a progress line of more than {LINE_BYTES} bytes")
            await asyncio.sleep(CHUNK_PAUSE_SECONDS)
    finally:
        transport.close()


async def _read_progress(descriptor: int, on_progress: Callable[[StageProgress], Awaitable[None]]) -> None:
    warnings = 0
    async for line in _lines(descriptor):
        progress = _parse(line)
        warnings += bool(progress.warning)
        if warnings > WARNINGS_PER_STAGE:
            raise _Violation(f"more than {WARNINGS_PER_STAGE} warnings")
        await on_progress(progress)


def _parse(line: bytes) -> StageProgress:
    try:
        value: Any = json.loads(line)
        if "warning" in value:
            return StageProgress(warning=readable(str(value["warning"])))
        metrics = {holdable(name): float(figure) for name, figure in value["metrics"].items()}
        figures = [float(value["rate"]), *metrics.values()]
        unit = holdable(str(value["unit"])[:UNIT_CHARACTERS])
        done, total = int(value["done"]), int(value["total"])
        if not 0 <= done < 2**63 or not 0 <= total < 2**63 or not math.isfinite(figures[0]):
            raise ValueError("out of range")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise _Violation(f"a progress line that is none ({type(error).__name__})") from error
    # A diverging loss is NaN for a while; it is shown as it is.
    return StageProgress(done=done, total=total, unit=unit, rate=figures[0], metrics=metrics)


async def _violation(progress: asyncio.Task[None]) -> str:
    try:
        await _finished(progress)
    except _Violation as violation:
        return str(violation)
    return ""


async def _finished(task: asyncio.Task[Any]) -> Any:
    """The task's result; a pipe that a stray grandchild still holds open is not waited for."""
    done, _ = await asyncio.wait({task}, timeout=PIPE_END_SECONDS)
    if not done:
        task.cancel()
        return None
    return task.result()


async def _keep_stderr(descriptor: int, path: Path) -> str:
    """Write the head to a file, read the rest away, return the tail."""
    stream, transport = await _opened(descriptor)
    tail = b""
    try:
        path.unlink(missing_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(file, "wb", buffering=0) as log:
            while chunk := await stream.read(CHUNK_BYTES):
                log.write(chunk[: max(0, STDERR_LOG_BYTES - log.tell())])
                tail = (tail + chunk)[-STDERR_TAIL_BYTES:]
    finally:
        transport.close()
    return tail.decode(errors="replace")
