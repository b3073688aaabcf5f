"""The job engine on a real database and real folders; what its stages do is tested by tests/service."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from server import job_table
from server.blobs import BlobStore
from server.folders import DataFolder
from server.jobs import JobEngine, Slots
from server.runners.local import LocalRunner
from server.stage_execution import StageExecution
from server.store import Store
from server.watch import Watch

TENANT = "local"


class Appliance:
    """The engine and its parts on one data folder."""

    def __init__(self, root: Path, queued: int = 8) -> None:
        self.data = DataFolder(root)
        self.store = Store(self.data.database)
        self.blobs = BlobStore(self.data)
        self.watch = Watch(self.store)
        execution = StageExecution(self.store, self.data, LocalRunner(term_seconds=0.2), self.watch)
        self.engine = JobEngine(
            store=self.store,
            data=self.data,
            blobs=self.blobs,
            execution=execution,
            watch=self.watch,
            slots=Slots(queued=queued),
        )

    async def ingest(self, name: str, content: bytes = b"no tar", request_id: str = "") -> job_table.JobRow:
        spec = {"name": name, "tars": [{"sha256": self.blobs.put(TENANT, content)}]}
        return await self.engine.submit(TENANT, "ingest", spec, request_id)

    def folders(self) -> list[str]:
        jobs = self.data.root / "jobs" / TENANT
        return [path.name for path in jobs.iterdir()] if jobs.is_dir() else []

    async def stage_process(self, job_id: str) -> int:
        """The process of the job's stage, once it has started."""
        while True:
            job = await self.engine.get(TENANT, job_id)
            if job.runs and job.runs[-1].pid:
                return job.runs[-1].pid
            await asyncio.sleep(0.01)

    async def ended(self, job_id: str) -> job_table.JobRow:
        stream = self.watch.watch(TENANT, job_id, 0)
        async for _ in stream:
            continue
        return await self.engine.get(TENANT, job_id)


def on_appliance(root: Path, test: Callable[[Appliance], Coroutine[Any, Any, None]], queued: int = 8) -> None:
    async def run() -> None:
        appliance = Appliance(root, queued)
        try:
            await test(appliance)
        finally:
            await appliance.engine.shutdown()
            appliance.blobs.close()
            appliance.store.close()

    asyncio.run(asyncio.wait_for(run(), 30))


@contextlib.asynccontextmanager
async def busy_database(appliance: Appliance) -> AsyncIterator[None]:
    """Inside, no write gets its turn: a client can go away before its change is committed."""
    turn = threading.Event()
    first = asyncio.create_task(appliance.store.write(lambda _: turn.wait()))
    await asyncio.sleep(0)
    try:
        yield
    finally:
        turn.set()
        await first


async def holds(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def client_goes_away(call: asyncio.Task[Any]) -> None:
    call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await call


def test_job_whose_client_went_away_while_it_was_accepted_still_runs(tmp_path: Path) -> None:
    async def test(appliance: Appliance) -> None:
        appliance.engine.start()
        await appliance.store.write(lambda _: None)  # the workers have looked, and wait
        async with busy_database(appliance):
            call = asyncio.create_task(appliance.ingest("web"))
            await holds(appliance.folders)
            await client_goes_away(call)
        (job_id,) = appliance.folders()
        await holds(lambda: appliance.folders() == [])
        assert (await appliance.ended(job_id)).state == "FAILED"  # its stage ran: the tar is none

    on_appliance(tmp_path, test)


def test_running_job_is_told_to_stop_though_its_canceller_went_away(tmp_path: Path) -> None:
    async def test(appliance: Appliance) -> None:
        job = await appliance.ingest("web")
        appliance.engine.start()
        os.kill(await appliance.stage_process(job.id), signal.SIGSTOP)
        async with busy_database(appliance):
            call = asyncio.create_task(appliance.engine.cancel(TENANT, job.id))
            await asyncio.sleep(0.05)
            await client_goes_away(call)
        assert (await appliance.ended(job.id)).state == "CANCELLED"

    on_appliance(tmp_path, test)
