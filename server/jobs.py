"""The job engine: a queue, slots, and the stages of each job in order.

A worker is a slot: it takes one job, holds it until the job's processes are gone, and takes the next. Compressions
have one slot; short jobs (inspecting, planning, ingest) have slots of their own. What a crash interrupts is queued
again by `recover` and goes on with the stages that are not finished.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pu_engine.pipeline import KINDS, Stage, stage_inputs
from punnet.errors import PunnetError, make_error
from server import job_table, pool_table, publishing
from server.blobs import BlobStore
from server.collection import Removal, remove_file
from server.disk_space import storage_failure
from server.folders import DataFolder, remove_tree
from server.job_spec import digests_of, located, readable_paths
from server.job_table import BUILD_KIND, FINAL, ArtifactRow, Event, JobRow, NewJob
from server.logs import about
from server.processes import kill_marked, kill_orphan
from server.quotas import Quotas, over_quota
from server.removal import remove_unpinned_blobs, sweep_job_folders, sweep_pools
from server.stage_execution import Finished, JobContext, StageExecution, StageFailed, StageStopped
from server.storage_quota import StorageQuota
from server.store import Store
from server.stored_damage import check_stored
from server.uninterrupted import all_ended, uninterrupted
from server.watch import Watch

log = logging.getLogger(__name__)

COMPRESSION_KINDS = ("compress",)
SHORT_KINDS = tuple(kind for kind in KINDS if kind not in COMPRESSION_KINDS)
JOB_ID_BYTES = 16
RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """How much runs at once."""

    compressions: int = 1
    short: int = 1
    threads: int = 1  # of each stage


@dataclass(slots=True)
class _Running:
    stop: asyncio.Event
    cancelled: bool = False


class JobEngine:
    """Accepts, runs, cancels and removes jobs."""

    def __init__(
        self,
        *,
        store: Store,
        data: DataFolder,
        blobs: BlobStore,
        execution: StageExecution,
        watch: Watch,
        slots: Slots,
        quotas: Quotas,
        storage: StorageQuota,
    ) -> None:
        self._store = store
        self._data = data
        self._blobs = blobs
        self._execution = execution
        self._watch = watch
        self._slots = slots
        self._quotas = quotas
        self._storage = storage
        self._running: dict[tuple[str, str], _Running] = {}
        self._queued = asyncio.Condition()
        self._workers: list[asyncio.Task[None]] = []
        self._cancelling: set[tuple[str, str]] = set()  # claimed, and cancelled before its worker could note it
        self._pinning = asyncio.Lock()  # a blob is not removed while a job begins to need it
        self._publishing = asyncio.Lock()  # a version of a pool is not swept while its folder gets its name
        self._submissions = 0
        self._stopping = False

    async def recover(self) -> None:
        """Before the port opens: end what an earlier server left running, queue its jobs again."""
        killed = await asyncio.to_thread(kill_marked, "PUNNET_RUN_ID", self._data.id)
        for job in await self._store.read(job_table.jobs_in_state, ("RUNNING", "CANCELLING")):
            if job.kind == BUILD_KIND:  # a device goes on with it, and brings it here
                continue
            for run in job.runs:
                if run.state == job_table.ALIVE_RUN and run.pid and run.pid_start:
                    killed += [run.pid] if kill_orphan(run.pid, run.pid_start) else []
            events = await self._store.write(job_table.requeue, job)
            log.info("job recovered", extra={"job": job.id, "state": events[-1].body if events else None})
        active = await self._store.read(job_table.active_ids)
        await asyncio.to_thread(sweep_job_folders, self._data, active)
        await self._sweep_pools()
        if killed:
            log.warning("orphans killed", extra={"pids": killed})

    def start(self) -> None:
        """Start the slots' workers."""
        kinds = [COMPRESSION_KINDS] * self._slots.compressions + [SHORT_KINDS] * self._slots.short
        self._workers = [asyncio.create_task(self._work(k), name=f"slot {i} {k[0]}") for i, k in enumerate(kinds)]

    def idle(self) -> bool:
        """Whether no job runs; queued ones are taken at once where a slot is free."""
        return not self._running

    async def submit(self, tenant: str, kind: str, spec: Mapping[str, Any], request_id: str) -> JobRow:
        """Accept a job, or return the one that the same request made before.

        Raises:
            PunnetError: REQUEST_ID_REUSED, QUOTA, UNAVAILABLE, POOL_EXISTS, POOL_IN_USE, POOL_NOT_FOUND.
        """
        if self._stopping:
            raise make_error("UNAVAILABLE", "The server goes down.", "Send the request again in a moment.")
        content = json.dumps([kind, spec], sort_keys=True, separators=(",", ":"))
        request_hash = hashlib.sha256(content.encode()).hexdigest()
        job_id = secrets.token_hex(JOB_ID_BYTES)
        new = NewJob(tenant=tenant, id=job_id, kind=kind, spec=spec, request_id=request_id, request_hash=request_hash)
        return await uninterrupted(self._submit(new))

    async def _submit(self, new: NewJob) -> JobRow:
        folder = self._data.job(new.tenant, new.id)
        kept = False
        lack = await self._storage.lack(new.tenant)
        try:
            async with self._pinning:
                await asyncio.to_thread(self._blobs.pin, new.tenant, new.spec, folder)
            job, events = await self._store.write(_accept, new, self._quotas.queued_jobs, lack)
            kept = job.id == new.id
        finally:
            if not kept:
                await asyncio.to_thread(remove_tree, folder)
        await self._watch.publish((job.tenant, job.id), events)
        await self._wake()
        return job

    async def get(self, tenant: str, job_id: str) -> JobRow:
        """A job as it is now; raises PunnetError JOB_NOT_FOUND."""
        job = await self._store.read(job_table.job_by_id, tenant, job_id)
        if job is None:
            raise make_error("JOB_NOT_FOUND", f"There is no job {job_id[:64]!r}.", "`punnet jobs` lists the jobs.")
        return job

    async def cancel(self, tenant: str, job_id: str) -> JobRow:
        """Ask a job to stop; it is CANCELLED once its processes are gone."""
        job = await self.get(tenant, job_id)
        await uninterrupted(self._cancel(tenant, job_id, job.kind))
        return await self.get(tenant, job_id)

    async def _cancel(self, tenant: str, job_id: str, kind: str) -> None:
        events = await self._store.write(job_table.request_cancel, tenant, job_id)
        running = self._running.get((tenant, job_id))
        if running:
            running.cancelled = True
            running.stop.set()
        elif events and events[-1].body["state"] == "CANCELLING":
            if kind != BUILD_KIND:  # the agent learns of it when it renews its lease
                self._cancelling.add((tenant, job_id))
        elif events:
            await asyncio.to_thread(remove_tree, self._data.job(tenant, job_id))
        await self._watch.publish((tenant, job_id), events)

    async def delete(self, tenant: str, job_id: str) -> None:
        """Remove a final job and what only it used.

        Raises:
            PunnetError: JOB_NOT_FOUND, JOB_NOT_FINISHED.
        """
        job = await self.get(tenant, job_id)
        if job.state not in FINAL or (tenant, job_id) in self._running:
            raise make_error(
                "JOB_NOT_FINISHED", f"Job {job_id} is {job.state}.", "Cancel it first.", {"state": job.state}
            )
        await uninterrupted(self._delete(job))

    async def _delete(self, job: JobRow) -> None:
        tenant, job_id = job.tenant, job.id
        spec = await self._store.read(job_table.spec_of, tenant, job_id)
        for key in await self._store.write(job_table.delete_job, tenant, job_id):
            await self._execution.discard(tenant, key)
        async with self._pinning:
            await asyncio.to_thread(remove_tree, self._data.job(tenant, job_id))
            # What another job names is that job's too: it may be run again from its own spec.
            named = await self._store.read(job_table.digests_named, tenant)
            await asyncio.to_thread(remove_tree, self._data.build(tenant, job_id))
            digests = digests_of(spec) | {artifact.sha256 for artifact in job.artifacts}
            await asyncio.to_thread(remove_unpinned_blobs, self._blobs, tenant, digests - named)

    async def remove_unneeded(self, removals: Sequence[Removal]) -> list[Removal]:
        """Remove what a plan of `collection` lists, unless somebody has come to need it; what went."""
        return await uninterrupted(self._remove_unneeded(removals))

    async def _remove_unneeded(self, removals: Sequence[Removal]) -> list[Removal]:
        gone = []
        for removal in removals:
            if removal.path is None:
                continue
            if removal.kind == "result":
                removed = await self._execution.forget(removal.tenant, removal.name)
            else:
                async with self._pinning:
                    removed = await asyncio.to_thread(remove_file, removal.path)
            gone += [removal] if removed else []
        return gone

    async def delete_pool(self, tenant: str, name: str) -> None:
        """Remove a pool.

        Raises:
            PunnetError: POOL_NOT_FOUND, POOL_IN_USE.
        """
        await self._store.write(pool_table.delete_pool, tenant, name)
        await uninterrupted(self._sweep_pools())

    async def _sweep_pools(self) -> None:
        """Remove folders of pools that were deleted, and earlier versions of pools that no job reads any more."""
        async with self._publishing:
            try:
                needed = await self._store.read(pool_table.versions_needed)
                swept = await asyncio.to_thread(sweep_pools, self._data, needed)
            except (OSError, sqlite3.Error):  # the next sweep tries again
                log.exception("a pool's folder can't be removed")
                return
        if swept:
            log.info("pools swept", extra={"folders": [self._data.relative(folder) for folder in swept]})

    async def shutdown(self) -> None:
        """End the running stages; their jobs go on after the next start."""
        self._stopping = True
        for running in self._running.values():
            running.stop.set()
        await self._wake()
        await all_ended()
        await asyncio.gather(*self._workers)

    async def _wake(self) -> None:
        self._submissions += 1
        async with self._queued:
            self._queued.notify_all()

    async def _work(self, kinds: Sequence[str]) -> None:
        while not self._stopping:
            seen = self._submissions
            try:
                claimed = await self._store.write(job_table.claim, kinds, self._quotas.running_jobs)
            except sqlite3.Error:
                log.exception("no job can be claimed", extra={"kinds": list(kinds)})
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if claimed is None:
                async with self._queued:
                    await self._queued.wait_for(lambda: self._submissions != seen)  # noqa: B023
                continue
            job, events = claimed
            key = job.tenant, job.id
            running = self._running[key] = _Running(stop=asyncio.Event(), cancelled=key in self._cancelling)
            self._cancelling.discard(key)
            if self._stopping or running.cancelled:
                running.stop.set()
            try:
                with about(job=job.id, tenant=job.tenant):
                    await self._watch.publish(key, events)
                    await self._finish(job, running)
            finally:
                del self._running[key]

    async def _finish(self, job: JobRow, running: _Running) -> None:
        """Run a claimed job to a final state; a job that the server's end interrupts stays as it is."""
        context = JobContext(job=job, stop=running.stop, cancelled=lambda: running.cancelled)
        state = "SUCCEEDED"
        error: Mapping[str, Any] | None = None
        artifacts: Sequence[ArtifactRow] = ()
        try:
            artifacts = await self._run_stages(context)
        except StageStopped:
            if not running.cancelled:
                return
            state = "CANCELLED"
        except StageFailed as failure:
            state, error = "FAILED", {"stage": "", **failure.error}
        except Exception as defect:  # noqa: BLE001 - a defect in one job must not take its slot away from all others
            state, error = "FAILED", _unexpected(job, defect)
        events = await self._note_end(job, state, error, artifacts)
        try:
            await asyncio.to_thread(remove_tree, self._data.job(job.tenant, job.id))
        except OSError:  # the next start sweeps it
            log.exception("a job's folder can't be removed", extra={"job": job.id})
        if "pool" in job.spec:  # it may have been the last to read an earlier version
            await self._sweep_pools()
        await self._watch.publish((job.tenant, job.id), events)
        log.info("job ended", extra={"job": job.id, "state": state, "code": error["code"] if error else None})

    async def _note_end(
        self, job: JobRow, state: str, error: Mapping[str, Any] | None, artifacts: Sequence[ArtifactRow]
    ) -> list[Event]:
        """Write the final state; on a full disk again and again, for nobody else would."""
        while True:
            try:
                return await self._store.write(job_table.finish, job, state, error, artifacts)
            except sqlite3.Error:
                log.exception("a job's end can't be written", extra={"job": job.id})
                if self._stopping:
                    return []
                await asyncio.sleep(RETRY_SECONDS)

    async def _check_stored(self, job: JobRow, used: Sequence[tuple[Stage, Finished]]) -> None:
        await check_stored(self._data, self._blobs, (job.tenant, job.id), used)

    async def _run_stages(self, context: JobContext) -> Sequence[ArtifactRow]:
        job = context.job
        if job.kind == "ingest" and (made := await publishing.republish(self._store, self._data, job)):
            return made
        owner = job.spec.get("pool", {}).get("owner", job.tenant)
        spec = located(job.spec, self._data.job(job.tenant, job.id), self._data.pools(owner))
        folders: dict[str, dict[str, str]] = {}
        used: list[tuple[Stage, Finished]] = []
        for stage in KINDS[job.kind]:
            inputs = stage_inputs(stage, spec, folders) | {"threads": self._slots.threads}
            read = readable_paths(inputs, self._data.job(job.tenant, job.id))
            try:
                finished = await self._execution.finish(context, stage, inputs, read)
            except StageFailed as failure:
                failure.error["stage"] = stage.name
                await self._check_stored(job, used)  # damage would explain the failure
                raise
            used.append((stage, finished))
            folders[stage.name] = {"path": str(finished.folder.resolve()), "sha256": finished.manifest.digest}
        await self._check_stored(job, used)
        if job.kind == "ingest":
            async with self._publishing:
                return await publishing.publish_pool(self._store, self._data, job, finished)
        return publishing.artifacts_of(self._data, finished)


def _unexpected(job: JobRow, defect: Exception) -> dict[str, Any]:
    """The job's error for what no stage said: the data folder's disk, or a defect whose text stays in the log."""
    failure = storage_failure(defect)
    if failure is not None:
        log.error("job failed with the data folder", exc_info=defect, extra={"job": job.id})
        text, remedy = failure.message, "Send the job again once the disk is well: its finished stages are kept."
        return {"code": failure.code, "message": text, "remedy": remedy, "stage": "", "details": failure.details}
    error_id = secrets.token_hex(8)
    log.error("job failed unexpectedly", exc_info=defect, extra={"error_id": error_id, "job": job.id})
    remedy = f"Report it with the server's log; the error id is {error_id}."
    details = {"error_id": error_id}
    text = "The server failed unexpectedly."
    return {"code": "INTERNAL", "message": text, "remedy": remedy, "stage": "", "details": details}


def _accept(db: sqlite3.Connection, new: NewJob, limit: int, lack: PunnetError | None) -> tuple[JobRow, list[Event]]:
    """Insert the job unless its request was sent before; every check that others could race is in here.

    `lack` is why the tenant's disk space allows no new one.
    """
    earlier = job_table.job_by_request(db, new.tenant, new.request_id) if new.request_id else None
    if earlier:
        if earlier.request_hash != new.request_hash:
            text = f"Field request_id: {new.request_id!r} was sent before with another request."
            raise make_error("REQUEST_ID_REUSED", text, "Choose a new request_id.", {"job": earlier.id})
        return earlier, []
    pool_table.check_pool(db, new.tenant, new.kind, new.spec)
    if lack is not None:
        raise lack
    queued = job_table.count_in_state(db, new.tenant, ("QUEUED",), on_devices=new.kind == BUILD_KIND)
    if queued >= limit:
        text = f"{queued} jobs wait; the limit is {limit}."
        raise over_quota("queued_jobs", text, "Wait for one to end.", limit=limit, retry_seconds=RETRY_SECONDS)
    events = job_table.insert_job(db, new)
    job = job_table.job_by_id(db, new.tenant, new.id)
    if job is None:
        raise RuntimeError("the job that was just written is not there")
    return job, events
