"""Builds on devices: bundles go out to agents, engines come back and are kept as bytes that nobody here opens."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from punnet.errors import PunnetError, make_error
from punnet.v1 import job_pb2
from server import build_table, job_table
from server.blobs import BlobStore, Digest
from server.build_table import Lease
from server.folders import DataFolder, fsync_folder, remove_tree
from server.job_table import BUILD_KIND, BUILD_STAGE, ArtifactRow, Event, JobRow
from server.jobs import JobEngine
from server.store import Store
from server.watch import Watch

log = logging.getLogger(__name__)

LEASE_SECONDS = 30.0
SWEEPS_A_LEASE = 10
REPORT = "device-report.json"


class BuildQueue:
    """Offers builds to agents, and takes what they bring."""

    def __init__(
        self,
        *,
        engine: JobEngine,
        store: Store,
        data: DataFolder,
        blobs: BlobStore,
        watch: Watch,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._engine = engine
        self._store = store
        self._data = data
        self._blobs = blobs
        self._watch = watch
        self.lease_seconds = lease_seconds
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Give every lease its whole time anew, then begin to end those that are not renewed."""
        await self._store.write(build_table.renew_all, self.lease_seconds)
        self._sweeper = asyncio.create_task(self._sweep(), name="lease sweeper")

    async def stop(self) -> None:
        """End the sweeping; leases are kept."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait({self._sweeper})

    async def create(self, tenant: str, *, source: str, target: str, agent: str, request_id: str) -> JobRow:
        """A build of a finished compression's bundle.

        Raises:
            PunnetError: JOB_NOT_FOUND, JOB_NOT_FINISHED, BUNDLE_MISSING, and what `JobEngine.submit` raises.
        """
        job = await self._engine.get(tenant, source)
        if job.state != "SUCCEEDED":
            raise make_error("JOB_NOT_FINISHED", f"Job {source} is {job.state}.", "Wait for it.", {"state": job.state})
        name = f"bundle-{target}.zip"
        bundle = next((a for a in job.artifacts if a.path == name), None)
        if bundle is None:
            made = ", ".join(a.path for a in job.artifacts if a.path.startswith("bundle-")) or "none"
            raise make_error(
                "BUNDLE_MISSING",
                f"Job {source} made no {name}; its bundles: {made}.",
                f"Send the compression again with --target {target}.",
                {"target": target},
            )
        content = await asyncio.to_thread((self._data.root / bundle.folder / bundle.path).read_bytes)
        await asyncio.to_thread(self._blobs.put_all, tenant, [content])
        spec = {
            "bundle": {"sha256": bundle.sha256},
            "bundle_size": bundle.size,
            "source": source,
            "target": target,
            "agent": agent,
        }
        return await self._engine.submit(tenant, BUILD_KIND, spec, request_id)

    async def lease(self, tenant: str, agent: str, targets: Sequence[str]) -> tuple[JobRow, Lease] | None:
        """The oldest build for this agent, from now on its own while it renews the lease."""
        found = await self._store.write(build_table.lease_oldest, tenant, agent, targets, self.lease_seconds)
        if found is None:
            return None
        job, lease, events = found
        await self._watch.publish((tenant, job.id), events)
        log.info("build leased", extra={"job": job.id, "agent": agent})
        return job, lease

    async def renew(self, tenant: str, job_id: str, lease: int, progress: job_pb2.Progress) -> bool:
        """Prolong a lease and show its progress; whether the build is to stop.

        Raises:
            PunnetError: BUILD_LEASE_LOST.
        """
        job = await self._store.write(build_table.renew, tenant, job_id, lease, self.lease_seconds)
        status = job_pb2.StageStatus(
            name=BUILD_STAGE, state=job_pb2.STAGE_STATE_RUNNING, attempt=len(job.runs), progress=progress
        )
        if job.state == "RUNNING":
            await self._watch.show((tenant, job_id), status)
        return job.state != "RUNNING"

    async def succeed(self, tenant: str, job_id: str, lease: int, files: Sequence[tuple[str, Digest]]) -> None:
        """Keep an agent's files as the job's artifacts.

        Raises:
            PunnetError: BUILD_LEASE_LOST, BLOB_MISSING.
        """
        job = await self._store.read(build_table.leased, tenant, job_id, lease)
        if job is None:
            return
        folder = self._data.build(tenant, job_id) / str(lease)
        artifacts = await self._blobs.in_thread(self._keep, tenant, folder, files)
        try:
            events = await self._store.write(build_table.end, tenant, job_id, lease, artifacts=artifacts)
        except PunnetError:
            await asyncio.to_thread(remove_tree, folder)
            raise
        # The folder has them now; a blob that no job names would be collected a day later.
        await asyncio.to_thread(self._blobs.forget, tenant, [digest.sha256 for _, digest in files])
        await self._ended(tenant, job_id, events)

    async def fail(self, tenant: str, job_id: str, lease: int, error: dict[str, Any]) -> None:
        """The device could not build.

        Raises:
            PunnetError: BUILD_LEASE_LOST.
        """
        events = await self._store.write(build_table.end, tenant, job_id, lease, error={"stage": BUILD_STAGE, **error})
        await self._ended(tenant, job_id, events)

    async def give_back(self, tenant: str, job_id: str, lease: int) -> None:
        """The agent stops: another may take the build, unless it was cancelled.

        Raises:
            PunnetError: BUILD_LEASE_LOST.
        """
        await self._ended(tenant, job_id, await self._store.write(build_table.give_back, tenant, job_id, lease))

    def _keep(self, tenant: str, folder: Path, files: Sequence[tuple[str, Digest]]) -> list[ArtifactRow]:
        """Link the blobs below a folder of this lease's own."""
        found = self._blobs.require_all(tenant, {digest.sha256 for _, digest in files})
        remove_tree(folder)  # what a crash of this server left
        folder.mkdir(mode=0o700, parents=True)
        for name, digest in files:
            os.link(found[digest.sha256][0], folder / name)
        fsync_folder(folder)
        return [
            ArtifactRow(
                path=name,
                sha256=digest.sha256,
                size=found[digest.sha256][1],
                reproducible=False,
                folder=self._data.relative(folder),
            )
            for name, digest in files
        ]

    async def _ended(self, tenant: str, job_id: str, events: list[Event]) -> None:
        if any(event.kind == "state" and event.body["state"] in job_table.FINAL for event in events):
            await asyncio.to_thread(remove_tree, self._data.job(tenant, job_id))
        await self._watch.publish((tenant, job_id), events)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self.lease_seconds / SWEEPS_A_LEASE)
            try:
                for job, events in await self._store.write(build_table.expire):
                    log.warning("an agent was lost", extra={"job": job.id, "state": events[-1].body})
                    await self._ended(job.tenant, job.id, events)
            except Exception:
                log.exception("leases can't be swept")
