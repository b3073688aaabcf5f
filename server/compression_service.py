# ruff: noqa: N802 - the contract names the methods
"""Compressions and jobs of all kinds, on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc

from punnet.v1 import compression_pb2, compression_pb2_grpc, job_pb2
from server import job_table
from server.callers import tenant
from server.capabilities import capabilities
from server.folders import DataFolder
from server.intake_requests import IntakeRequests
from server.job_message import job_message
from server.job_spec import compression_spec
from server.job_table import JobRow
from server.jobs import JobEngine
from server.page_token import parse_token, to_token
from server.plan_estimates import PLAN_FILE, plan_estimates
from server.pool_table import SharedPools, pool_reference
from server.request_check import check_compression, page_size
from server.rerun import fill_material, merge_options, not_found
from server.store import Store
from server.students import StudentCatalogue
from server.watch import Watch

Context = grpc.aio.ServicerContext[Any, Any]
PAGE_SIZE, PAGE_LIMIT = 50, 200


class CompressionService(compression_pb2_grpc.CompressionServiceServicer):
    """Checks requests and hands them to the job engine."""

    def __init__(
        self,
        *,
        engine: JobEngine,
        store: Store,
        data: DataFolder,
        watch: Watch,
        students: StudentCatalogue,
        intake: IntakeRequests,
        confinement: Mapping[str, bool],
        shared_pools: SharedPools,
    ) -> None:
        self._engine = engine
        self._store = store
        self._data = data
        self._watch = watch
        self._students = students
        self._intake = intake
        self._confinement = confinement
        self._shared_pools = shared_pools

    async def Compress(
        self, request: compression_pb2.CompressRequest, context: Context
    ) -> compression_pb2.CompressResponse:
        """Accept a compression, or a validation."""
        kind = "validate" if request.validate_only else "compress"
        return compression_pb2.CompressResponse(job=await self._accept(kind, request))

    async def PlanCompression(
        self, request: compression_pb2.PlanCompressionRequest, context: Context
    ) -> compression_pb2.PlanCompressionResponse:
        """Accept a plan."""
        return compression_pb2.PlanCompressionResponse(job=await self._accept("plan", request.compression))

    async def GetJob(self, request: compression_pb2.GetJobRequest, context: Context) -> compression_pb2.GetJobResponse:
        """One job."""
        job = await self._engine.get(tenant(), request.id)
        return compression_pb2.GetJobResponse(job=self._message(job))

    async def ListJobs(
        self, request: compression_pb2.ListJobsRequest, context: Context
    ) -> compression_pb2.ListJobsResponse:
        """A page of jobs."""
        size = page_size(request.page_size, default=PAGE_SIZE, limit=PAGE_LIMIT)
        before = parse_token(request.page_token, (int, str)) if request.page_token else None
        rows = await self._store.read(job_table.jobs_before, tenant(), before, size + 1)
        page, more = rows[:size], rows[size:]
        token = to_token(page[-1].created, page[-1].id) if more else ""
        return compression_pb2.ListJobsResponse(jobs=[job_message(job) for job in page], next_page_token=token)

    async def WatchJob(
        self, request: compression_pb2.WatchJobRequest, context: Context
    ) -> AsyncIterator[compression_pb2.WatchJobResponse]:
        """Follow a job to its end."""
        async for message in self._watch.watch(tenant(), request.id, max(0, request.after_seq)):
            yield message

    async def CancelJob(
        self, request: compression_pb2.CancelJobRequest, context: Context
    ) -> compression_pb2.CancelJobResponse:
        """Ask a job to stop."""
        job = await self._engine.cancel(tenant(), request.id)
        return compression_pb2.CancelJobResponse(job=self._message(job))

    async def DeleteJob(
        self, request: compression_pb2.DeleteJobRequest, context: Context
    ) -> compression_pb2.DeleteJobResponse:
        """Remove a finished job."""
        await self._engine.delete(tenant(), request.id)
        return compression_pb2.DeleteJobResponse()

    async def GetCapabilities(
        self, request: compression_pb2.GetCapabilitiesRequest, context: Context
    ) -> compression_pb2.GetCapabilitiesResponse:
        """What this appliance is and can do."""
        return capabilities(self._data.root, self._confinement)

    async def _accept(self, kind: str, request: compression_pb2.CompressRequest) -> job_pb2.Job:
        earlier: Mapping[str, Any] = {}
        if request.from_job:
            earlier = await self._store.read(job_table.spec_of, tenant(), request.from_job)
            if not earlier:
                raise not_found(request.from_job)
            fill_material(request, earlier)
        check_compression(request, pool_needed=kind != "validate")
        pool = None
        if request.pool:
            pool = await self._store.read(
                pool_reference, tenant(), request.pool, request.request_id, self._shared_pools()
            )
        await self._students.check(request.student.name)
        spec = merge_options(compression_spec(request, pool), earlier)
        if request.from_job and kind == "compress":
            spec |= await self._foretold(request.from_job)
        await self._intake.prepare(tenant(), request, spec)
        job = await self._engine.submit(tenant(), kind, spec, request.request_id)
        return self._message(job)

    async def _foretold(self, job_id: str) -> Mapping[str, Any]:
        """The estimates of a plan that the compression is made from, for its report."""
        job = await self._store.read(job_table.job_by_id, tenant(), job_id)
        row = next((a for a in job.artifacts if a.path == PLAN_FILE), None) if job else None
        found = await asyncio.to_thread(plan_estimates, self._data.root / row.folder / row.path) if row else None
        return {} if found is None else {"plan": found}

    def _message(self, job: JobRow) -> job_pb2.Job:
        return job_message(job, self._watch.tick((job.tenant, job.id)))
