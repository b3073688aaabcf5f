# ruff: noqa: N802 - the contract names the methods
"""Builds on devices, on the wire."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import grpc

from punnet.errors import TABLE
from punnet.v1 import blob_pb2, build_pb2, build_pb2_grpc, job_pb2
from server.blobs import Digest
from server.builds import REPORT, BuildQueue
from server.callers import tenant
from server.child_text import readable
from server.job_message import job_message
from server.request_check import check_digest, check_pool_name, check_request_id, check_target, violation

Context = grpc.aio.ServicerContext[Any, Any]
FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
FILES, TARGETS = 64, 32
FILE_BYTES = 2 << 30
TEXT_CHARACTERS = 4000


class BuildService(build_pb2_grpc.BuildServiceServicer):
    """Checks requests and hands them to the queue of builds."""

    def __init__(self, queue: BuildQueue) -> None:
        self._queue = queue

    async def CreateBuild(
        self, request: build_pb2.CreateBuildRequest, context: Context
    ) -> build_pb2.CreateBuildResponse:
        """Accept a build."""
        check_request_id(request.request_id)
        check_target("target", request.target, engines=True)
        if request.agent:
            check_pool_name("agent", request.agent)
        job = await self._queue.create(
            tenant(),
            source=request.job_id,
            target=request.target,
            agent=request.agent,
            request_id=request.request_id,
        )
        return build_pb2.CreateBuildResponse(job=job_message(job))

    async def LeaseBuild(self, request: build_pb2.LeaseBuildRequest, context: Context) -> build_pb2.LeaseBuildResponse:
        """Work for an agent, or none."""
        check_pool_name("agent", request.agent)
        if not 1 <= len(request.targets) <= TARGETS:
            raise violation("targets", f"1 to {TARGETS} targets", len(request.targets))
        for target in request.targets:
            check_target("targets", target, engines=True)
        found = await self._queue.lease(tenant(), request.agent, request.targets)
        if found is None:
            return build_pb2.LeaseBuildResponse()
        job, lease = found
        build = build_pb2.Build(
            job_id=job.id,
            lease=lease.id,
            lease_seconds=self._queue.lease_seconds,
            target=job.spec["target"],
            bundle=blob_pb2.BlobDigest(sha256=job.spec["bundle"]["sha256"], size=job.spec["bundle_size"]),
        )
        return build_pb2.LeaseBuildResponse(build=build)

    async def RenewBuild(self, request: build_pb2.RenewBuildRequest, context: Context) -> build_pb2.RenewBuildResponse:
        """A sign of life."""
        unit = readable(request.progress.unit[:TEXT_CHARACTERS])
        shown = job_pb2.Progress(done=request.progress.done, total=request.progress.total, unit=unit, eta_seconds=-1.0)
        cancelled = await self._queue.renew(tenant(), request.job_id, request.lease, shown)
        return build_pb2.RenewBuildResponse(cancelled=cancelled)

    async def FinishBuild(
        self, request: build_pb2.FinishBuildRequest, context: Context
    ) -> build_pb2.FinishBuildResponse:
        """Take what an agent made, or why it made nothing."""
        job_id, lease = request.job_id, request.lease
        outcome = request.WhichOneof("outcome")
        if outcome == "built":
            await self._queue.succeed(tenant(), job_id, lease, checked_files(request.built.files))
        elif outcome == "failure":
            await self._queue.fail(tenant(), job_id, lease, checked_failure(request.failure))
        elif outcome == "given_back" and request.given_back:
            await self._queue.give_back(tenant(), job_id, lease)
        else:
            raise violation("outcome", "one of built, failure, given_back", outcome)
        return build_pb2.FinishBuildResponse()


def checked_files(files: Sequence[build_pb2.BuiltFile]) -> list[tuple[str, Digest]]:
    """Names and digests of an agent's files; raises PunnetError for the first that is out of range."""
    names = [file.name for file in files]
    if not 1 <= len(names) <= FILES or len(set(names)) != len(names):
        raise violation("built.files", f"1 to {FILES} files of different names", len(names))
    for file in files:
        if not FILE_NAME.fullmatch(file.name):
            raise violation("built.files.name", '1 to 128 characters of [A-Za-z0-9._-], no "." in front', file.name)
        check_digest("built.files.digest.sha256", file.digest.sha256)
        if not 0 <= file.digest.size <= FILE_BYTES:
            raise violation("built.files.digest.size", f"0 to {FILE_BYTES}", file.digest.size)
    if REPORT not in names:
        raise violation("built.files", f"{REPORT} among them", ", ".join(names)[:TEXT_CHARACTERS])
    return [(file.name, Digest(file.digest.sha256, file.digest.size)) for file in files]


def checked_failure(failure: job_pb2.JobError) -> dict[str, Any]:
    """A device's failure in the terms of the error table, its texts cut and printable."""
    code = failure.reason if failure.reason in TABLE else "EXPORT_FAILED"
    return {
        "code": code,
        "message": readable(failure.message[:TEXT_CHARACTERS]),
        "remedy": readable(failure.remedy[:TEXT_CHARACTERS]),
        "details": {},
    }
