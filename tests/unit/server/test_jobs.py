"""The job engine on a real database and real folders; what its stages do is tested by tests/service."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from punnet.errors import PunnetError
from server import job_table
from server.blobs import BlobStore
from server.disk_space import storage_failure
from server.folders import DataFolder
from server.jobs import JobEngine, Slots
from server.quotas import Quotas, unlimited
from server.runners.local import LocalRunner
from server.stage_execution import StageExecution
from server.storage_quota import StorageQuota
from server.store import Store
from server.watch import Watch
from tests.service.running_server import image_tar

TENANT = "local"


class Appliance:
    """The engine and its parts on one data folder."""

    def __init__(self, root: Path, queued: int = 8) -> None:
        self.data = DataFolder(root)
        self.store = Store(self.data.database)
        self.blobs = BlobStore(self.data)
        self.watch = Watch(self.store)
        self.execution = StageExecution(self.store, self.data, LocalRunner(term_seconds=0.2), self.watch)
        self.engine = JobEngine(
            store=self.store,
            data=self.data,
            blobs=self.blobs,
            execution=self.execution,
            watch=self.watch,
            slots=Slots(),
            quotas=unlimited(Quotas(queued_jobs=queued)),
            storage=StorageQuota(self.data, None),
        )

    async def ingest(self, name: str, content: bytes = b"no tar", request_id: str = "") -> job_table.JobRow:
        (sha256,) = self.blobs.put_all(TENANT, [content])
        spec = {"name": name, "tars": [{"sha256": sha256}]}
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


def holding(folder: Path, content: bytes) -> list[Path]:
    """Files below a folder that hold these bytes."""
    return [path for path in folder.rglob("*") if path.is_file() and content in path.read_bytes()]


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


def test_slot_outlives_a_database_that_fails_for_a_while(tmp_path: Path) -> None:
    async def test(appliance: Appliance) -> None:
        job = await appliance.ingest("web")
        await appliance.store.write(lambda db: db.execute("ALTER TABLE job RENAME TO away"))
        appliance.engine.start()
        await asyncio.sleep(0)
        await appliance.store.write(lambda db: db.execute("ALTER TABLE away RENAME TO job"))  # both slots have asked
        assert (await appliance.ended(job.id)).state == "FAILED"

    on_appliance(tmp_path, test)


def test_pools_that_can_not_be_swept_stop_nothing(tmp_path: Path) -> None:
    async def test(appliance: Appliance) -> None:
        await appliance.store.write(lambda db: db.execute("ALTER TABLE pool RENAME TO away"))
        await appliance.engine.recover()  # the sweep of a job's end is the same; its failure took the slot along
        await appliance.store.write(lambda db: db.execute("ALTER TABLE away RENAME TO pool"))

    on_appliance(tmp_path, test)


def test_refused_job_leaves_no_folder(tmp_path: Path) -> None:
    async def test(appliance: Appliance) -> None:
        job = await appliance.ingest("web", request_id="r")
        for code, name, request_id in (("POOL_EXISTS", "web", ""), ("REQUEST_ID_REUSED", "b", "r"), ("QUOTA", "c", "")):
            with pytest.raises(PunnetError) as refused:
                await appliance.ingest(name, request_id=request_id)
            assert refused.value.code == code
        assert (await appliance.ingest("web", request_id="r")).id == job.id
        assert appliance.folders() == [job.id]

    on_appliance(tmp_path, test, queued=1)


def test_job_that_is_cancelled_while_it_waits_leaves_no_folder(tmp_path: Path) -> None:
    async def test(appliance: Appliance) -> None:
        job = await appliance.ingest("web")
        assert (await appliance.engine.cancel(TENANT, job.id)).state == "CANCELLED"
        assert appliance.folders() == []

    on_appliance(tmp_path, test)


def test_start_sweeps_folders_of_jobs_that_will_not_run(tmp_path: Path) -> None:
    async def test(appliance: Appliance) -> None:
        waiting, stopping = await appliance.ingest("a"), await appliance.ingest("b")
        for state, job in (("QUEUED", waiting), ("CANCELLING", stopping)):
            await appliance.store.write(lambda db, *values: db.execute("UPDATE job SET state=? WHERE id=?", values),
                                        state, job.id)  # fmt: skip
        (tmp_path / "jobs" / TENANT / "never-written-down").mkdir()
        await appliance.engine.recover()
        assert appliance.folders() == [waiting.id]

    on_appliance(tmp_path, test)


def test_deleted_job_leaves_no_byte_of_its_files(tmp_path: Path) -> None:
    secret = b"my teacher" * 50

    async def test(appliance: Appliance) -> None:
        job = await appliance.ingest("web", secret)
        appliance.engine.start()
        assert (await appliance.ended(job.id)).state == "FAILED"
        assert holding(tmp_path, secret)
        await holds(appliance.engine.idle)
        await appliance.engine.delete(TENANT, job.id)
        assert holding(tmp_path, secret) == []
        assert list((tmp_path / "stages" / TENANT).iterdir()) == []

    on_appliance(tmp_path, test)


def test_blob_that_a_waiting_job_needs_outlives_the_deletion_of_another(tmp_path: Path) -> None:
    async def test(appliance: Appliance) -> None:
        cancelled, waiting = await appliance.ingest("a"), await appliance.ingest("b")
        await appliance.engine.cancel(TENANT, cancelled.id)
        await appliance.engine.delete(TENANT, cancelled.id)
        assert len(holding(tmp_path / "blobs", b"no tar")) == 1
        await appliance.engine.cancel(TENANT, waiting.id)
        await appliance.engine.delete(TENANT, waiting.id)
        assert holding(tmp_path / "blobs", b"no tar") == []

    on_appliance(tmp_path, test)


def test_stage_that_a_job_has_come_to_use_is_not_discarded(tmp_path: Path) -> None:
    async def test(appliance: Appliance) -> None:
        job = await appliance.ingest("web")
        claimed = await appliance.store.write(job_table.claim, ("ingest",))
        assert claimed is not None
        folder = appliance.data.stage(TENANT, "key")
        folder.mkdir(parents=True)
        run = job_table.StageRun(name="ingest", attempt=1, state="REUSED", key="key")
        await appliance.store.write(job_table.put_run, claimed[0], run)
        await appliance.execution.discard(TENANT, "key")
        assert folder.is_dir()
        assert await appliance.store.write(job_table.delete_job, TENANT, job.id) == ["key"]
        await appliance.execution.discard(TENANT, "key")
        assert not folder.exists()

    on_appliance(tmp_path, test)


def test_a_stage_outlives_a_database_that_is_locked_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.store.BUSY_MILLISECONDS", 10)
    monkeypatch.setattr("server.store.RETRY_SECONDS", 0.05)

    async def test(appliance: Appliance) -> None:
        (sha256,) = appliance.blobs.put_all(TENANT, [image_tar(2)])
        job = await appliance.engine.submit(TENANT, "ingest", {"name": "web", "tars": [{"sha256": sha256}]}, "")
        appliance.engine.start()
        await appliance.stage_process(job.id)
        with contextlib.closing(sqlite3.connect(appliance.data.database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await holds(
                lambda: list(appliance.data.root.glob(f"stages/{TENANT}/*/out/manifest.json"))
            )  # the stage has ended, and can't be noted
            await asyncio.sleep(0.3)
            other.execute("ROLLBACK")
        assert (await appliance.ended(job.id)).state == "SUCCEEDED"

    on_appliance(tmp_path, test)


def test_a_call_is_told_that_the_database_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.store.BUSY_MILLISECONDS", 10)
    data = tmp_path / "data"
    data.mkdir()

    async def test(appliance: Appliance) -> None:
        with contextlib.closing(sqlite3.connect(appliance.data.database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(sqlite3.OperationalError) as refused:
                await appliance.ingest("web")
        failure = storage_failure(refused.value)
        assert failure is not None
        assert failure.code == "DISK_FAILED"
        assert appliance.folders() == []

    on_appliance(data, test)
