"""One stage of one job: reuse a finished result or run the stage, and believe only what was checked."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from pu_engine.pipeline import INTAKE, Stage, installed_versions, stage_key
from server.folders import DataFolder, remove_tree, write_json
from server.job_message import tick_message
from server.job_table import (
    ALIVE_RUN,
    CRASHED_RUN,
    LOST_RUN,
    JobRow,
    StageRun,
    add_warning,
    finished_keys,
    key_used,
    put_run,
    result_needed,
    runs_of,
    set_process,
)
from server.logs import about
from server.manifest import MANIFEST, Manifest, ProtocolError, read_error, read_finished
from server.runners.port import Runner, StageCommand, StageOutcome, StageProgress
from server.store import Store
from server.watch import Watch

log = logging.getLogger(__name__)

KEPT_RESULTS = 16  # earlier results of a stage that a new run may take parts of
OUT_OF_MEMORY_MARKS = ("bad_alloc", "Cannot allocate memory", "MemoryError", "DefaultCPUAllocator")
FULL_DISK_MARKS = ("No space left on device", "Disk quota exceeded")
REPORT_REMEDY = "Send the job again; if it fails again, report it with the server's log."
LOST_REMEDY = "Send the job again once the cluster is whole; what is finished is not run again."
MEMORY_REMEDY = "Use a smaller model, image size or batch, or ask the operator to raise the limit."


class StageFailed(Exception):
    """A stage ended with an error; `error` is the job's error without the stage's name."""

    def __init__(self, code: str, message: str, remedy: str, details: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message, "remedy": remedy, "details": dict(details or {})}


class StageStopped(Exception):
    """The stage was ended because the job or the server stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A stage's finished folder."""

    folder: Path
    manifest: Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class JobContext:
    """A claimed job and the ways in which it is told to stop."""

    job: JobRow
    stop: asyncio.Event
    cancelled: Callable[[], bool]  # else the server stops, and the job goes on after its next start


class StageExecution:
    """Runs stages; never two processes at once on one key."""

    def __init__(self, store: Store, data: DataFolder, runner: Runner, watch: Watch) -> None:
        self._store = store
        self._data = data
        self._runner = runner
        self._watch = watch
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def finish(
        self, context: JobContext, stage: Stage, inputs: Mapping[str, Any], read: Sequence[Path]
    ) -> Finished:
        """The stage's finished folder, from an earlier run with the same key or from a new one.

        Raises:
            StageFailed: with the error of the job.
            StageStopped: the job or the server stops.
        """
        key = stage_key(stage, inputs, installed_versions())
        with about(stage=stage.name):
            return await self._finish(context, stage, key, inputs, read)

    async def _finish(
        self, context: JobContext, stage: Stage, key: str, inputs: Mapping[str, Any], read: Sequence[Path]
    ) -> Finished:
        async with self._alone(context, key):
            workdir = self._data.stage(context.job.tenant, key)
            finished = await self._reusable(context, stage, key, workdir)
            if finished is None:
                finished = await self._run(context, stage, key, inputs, read)
            return finished

    async def discard(self, tenant: str, key: str) -> None:
        """Remove a stage's folder, unless a job has come to use it."""
        async with self._lock(tenant, key):
            if not await self._store.read(key_used, tenant, key):
                await asyncio.to_thread(remove_tree, self._data.stage(tenant, key))

    async def forget(self, tenant: str, key: str) -> bool:
        """Remove a result to save space, unless a job that has not ended needs it or artifacts lie in it."""
        folder = self._data.stage(tenant, key)
        async with self._lock(tenant, key):
            if await self._store.read(result_needed, tenant, key, self._data.relative(folder / "out")):
                return False
            await asyncio.to_thread(remove_tree, folder)
            return True

    def _lock(self, tenant: str, key: str) -> asyncio.Lock:
        """One lock for all who hold it or wait for it; it goes with the last of them."""
        return self._locks.setdefault((tenant, key), asyncio.Lock())

    @asynccontextmanager
    async def _alone(self, context: JobContext, key: str) -> Any:
        lock = self._lock(context.job.tenant, key)
        waiting, stopping = asyncio.create_task(lock.acquire()), asyncio.create_task(context.stop.wait())
        await asyncio.wait({waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not waiting.done():
            waiting.cancel()
            raise StageStopped
        try:
            yield
        finally:
            lock.release()

    async def _reusable(self, context: JobContext, stage: Stage, key: str, workdir: Path) -> Finished | None:
        out = workdir / "out"
        if not (out / MANIFEST).is_file():
            return None
        job = context.job
        try:  # every byte again, though the server has checked them once: a disk can change them since
            manifest = await asyncio.to_thread(read_finished, stage, out)
        except ProtocolError as error:
            log.warning("a finished stage is not as it was; it runs again", extra={"key": key, "why": str(error)})
            await asyncio.to_thread(remove_tree, out)
            return None
        runs = await self._store.read(runs_of, job, stage.name)
        # A restart between the child's end and our note of it: the result is this job's own.
        own = bool(runs) and runs[-1].key == key and runs[-1].state == LOST_RUN
        done = any(run.key == key and run.state in ("SUCCEEDED", "REUSED") for run in runs)
        if not done:
            run = StageRun(
                name=stage.name,
                attempt=runs[-1].attempt if own else len(runs) + 1,
                state="SUCCEEDED" if own else "REUSED",
                key=key,
                seconds=manifest.seconds,
                peak_memory_bytes=manifest.peak_memory_bytes,
            )
            await self._note(job, run)
        for text in manifest.warnings:
            await self._warn(job, stage, text)
        return Finished(folder=out, manifest=manifest)

    async def _run(
        self, context: JobContext, stage: Stage, key: str, inputs: Mapping[str, Any], read: Sequence[Path]
    ) -> Finished:
        job = context.job
        while True:
            if context.stop.is_set():
                raise StageStopped
            runs = await self._store.read(runs_of, job, stage.name)
            run = StageRun(name=stage.name, attempt=len(runs) + 1, state=ALIVE_RUN, key=key)
            outcome = await self._attempt(context, stage, run, inputs=inputs, read=read)
            if outcome.stopped:
                await self._note(job, replace(run, state="CANCELLED" if context.cancelled() else LOST_RUN))
                raise StageStopped
            try:
                manifest = await asyncio.to_thread(judge, stage, self._data.stage(job.tenant, key), outcome)
            except StageFailed as failure:
                crashes = sum(earlier.state == CRASHED_RUN for earlier in runs)
                again = failure.error["code"] in ("STAGE_CRASHED", "STAGE_MEMORY") and crashes < stage.retries
                state = CRASHED_RUN if again else "FAILED"
                await self._note(job, replace(run, state=state, seconds=outcome.seconds))
                if again:
                    continue
                raise
            await self._note(
                job,
                replace(run, state="SUCCEEDED", seconds=manifest.seconds, peak_memory_bytes=manifest.peak_memory_bytes),
            )
            return Finished(folder=self._data.stage(job.tenant, key) / "out", manifest=manifest)

    async def _attempt(
        self, context: JobContext, stage: Stage, run: StageRun, *, inputs: Mapping[str, Any], read: Sequence[Path]
    ) -> StageOutcome:
        job = context.job
        workdir = self._data.stage(job.tenant, run.key)
        kept = await self._kept(job, stage)
        if kept:
            inputs = {**inputs, "kept": [str(path) for path in kept]}
        await asyncio.to_thread(_prepare, workdir, inputs)
        await self._note(job, run)

        async def on_start(pid: int, started: int) -> None:
            await self._store.write_patiently(set_process, job, run, pid, started)

        async def on_progress(progress: StageProgress) -> None:
            if progress.warning:
                await self._warn(job, stage, progress.warning)
            else:
                await self._watch.show((job.tenant, job.id), tick_message(run, progress))

        command = StageCommand(
            stage=stage.name,
            workdir=workdir,
            read=(*read, *kept),
            profile=stage.profile,
            wall_seconds=stage.minutes * 60.0,
            threads=int(inputs["threads"]),
            run_id=self._data.id,
            uses_gpu=stage.uses_gpu,
        )
        outcome = await self._runner.run(command, stop=context.stop, on_start=on_start, on_progress=on_progress)
        await asyncio.to_thread(remove_tree, workdir / "tmp")
        return outcome

    async def _kept(self, job: JobRow, stage: Stage) -> list[Path]:
        """Folders of this tenant's earlier results that the stage may take parts of, the newest first."""
        if not stage.shares_parts:
            return []
        keys = await self._store.read(finished_keys, job.tenant, stage.name, KEPT_RESULTS)
        folders = [(self._data.stage(job.tenant, key) / "out").resolve() for key in keys]
        return [folder for folder in folders if (folder / MANIFEST).is_file()]

    async def _warn(self, job: JobRow, stage: Stage, text: str) -> None:
        events = await self._store.write_patiently(add_warning, job, stage.name, text)
        await self._watch.publish((job.tenant, job.id), events)

    async def _note(self, job: JobRow, run: StageRun) -> None:
        events = await self._store.write_patiently(put_run, job, run)
        facts = {"state": run.state, "attempt": run.attempt, "seconds": run.seconds}
        log.info("stage", extra={**facts, "key": run.key, "peak_memory_bytes": run.peak_memory_bytes})
        await self._watch.publish((job.tenant, job.id), events)


def judge(stage: Stage, workdir: Path, outcome: StageOutcome) -> Manifest:
    """The manifest of a run that ended well.

    Raises:
        StageFailed: with the error of the job.
    """
    if outcome.lost:
        raise StageFailed("STAGE_LOST", f"Stage {stage.name} has no result: {outcome.lost}.", LOST_REMEDY)
    if outcome.timed_out:
        raise _timeout(stage)
    try:
        if outcome.violation:
            raise ProtocolError(f"it sent {outcome.violation}")
        if outcome.returncode == 0:
            return read_finished(stage, workdir / "out")
        error = read_error(workdir)
    except ProtocolError as violation:
        remove_tree(workdir / "out")
        raise StageFailed(
            "STAGE_PROTOCOL", f"The stage's process broke the stage contract: {violation}.", REPORT_REMEDY
        ) from violation
    if error is None:
        raise _crash(stage, outcome)
    if error["code"] == "INTERNAL":
        error_id = secrets.token_hex(8)
        log.error("stage failed", extra={"error_id": error_id, "stage": stage.name, "tail": outcome.stderr_tail})
        error["details"] |= {"error_id": error_id}
    if error["code"] == "STAGE_MEMORY" and stage.name == INTAKE.name:
        error["code"] = "MODEL_MEMORY"
    raise StageFailed(**error)


def _prepare(workdir: Path, inputs: Mapping[str, Any]) -> None:
    workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("inputs.json", "error.json", "stderr.log", "tmp", "out"):
        remove_tree(workdir / name)  # an earlier run may have left anything there
    write_json(workdir / "inputs.json", inputs)


def _timeout(stage: Stage) -> StageFailed:
    code = "MODEL_TIMEOUT" if stage.name == INTAKE.name else "STAGE_TIMEOUT"
    message = f"Stage {stage.name} did not end within its limit of {stage.minutes} minutes."
    details = {"stage": stage.name, "limit_minutes": str(stage.minutes)}
    return StageFailed(code, message, "Use a smaller model or fewer steps.", details)


def _crash(stage: Stage, outcome: StageOutcome) -> StageFailed:
    """A process that died: of memory where the kernel or an allocator says so."""
    number = -outcome.returncode
    killed = outcome.returncode < 0 and number == signal.SIGKILL  # we did not: it is the kernel's out-of-memory killer
    memory = killed or any(mark in outcome.stderr_tail for mark in OUT_OF_MEMORY_MARKS)
    log.error("stage died", extra={"stage": stage.name, "status": outcome.returncode, "tail": outcome.stderr_tail})
    if any(mark in outcome.stderr_tail for mark in FULL_DISK_MARKS):  # it had no place for its own account
        message = f"Stage {stage.name} found the data folder's disk full."
        return StageFailed("DISK_FULL", message, "Free space on it, then send the job again.", {"stage": stage.name})
    how = f"signal {signal.Signals(number).name}" if outcome.returncode < 0 else f"exit status {outcome.returncode}"
    whose = "MODEL" if stage.name == INTAKE.name else "STAGE"
    if memory:
        message = f"Stage {stage.name} ran out of memory ({how})."
        return StageFailed(f"{whose}_MEMORY", message, MEMORY_REMEDY, {"stage": stage.name})
    remedy = "Export the model again, or simplify it." if stage.name == INTAKE.name else REPORT_REMEDY
    return StageFailed(f"{whose}_CRASHED", f"Stage {stage.name} died with {how}.", remedy, {"stage": stage.name})
