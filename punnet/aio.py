"""The client for asyncio; `punnet.client.Client` runs the same one for code that blocks."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, cast

from grpc.aio import AioRpcError

from punnet import private_server
from punnet.access import access
from punnet.archive import LabelledSource
from punnet.blobs import TransferProgress, download, upload_missing
from punnet.connection import FIRST_PAUSE_SECONDS, RETRY_SECONDS, Connection, Patience
from punnet.errors import make_error
from punnet.errors_from_rpc import error_from_job
from punnet.material import Teacher, gather_material, more_blobs
from punnet.options import (
    CompressOptions,
    InspectOptions,
    append_pool_request,
    compress_request,
    create_pool_request,
    fresh_request_id,
    inspect_request,
    shrink_of,
)
from punnet.pool_sources import pool_tars
from punnet.transfer import blob_of
from punnet.v1 import build_pb2, catalogue_pb2, compression_pb2, job_pb2, operator_pb2, pool_pb2

if TYPE_CHECKING:  # Unpack came with Python 3.11; the client runs on 3.10
    from typing import Unpack

PAGE_JOBS = 200
PAGE_STUDENTS = 2000
FINAL_STATES = frozenset({job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED})

StageProgress = Callable[[job_pb2.StageStatus], None]


class AsyncClient:
    """A client of one appliance; use it as `async with AsyncClient() as client:`.

    Args:
        server: `https://host:port`, or without TLS `host:port` or `unix:/path`. Without it PUNNET_SERVER counts, and
            without that a private server on this machine, which is started where none runs.
        data: the private server's data folder; without it PUNNET_DATA, else ~/.local/share/punnet.
        token, token_file: of a server with accounts, or a file that holds it; else PUNNET_TOKEN, PUNNET_TOKEN_FILE.
        ca: PEM file of the authority that signed the server's certificate; else PUNNET_CA, else the system's.
        certificate, key: PEM files, where the server wants a certificate; else PUNNET_CERTIFICATE, PUNNET_KEY.
        patience_seconds: how long a server may be away before a call that it interrupted fails.

    Raises:
        InvalidRequest: credentials that can't be read.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        data: Path | str | None = None,
        token: str | None = None,
        token_file: Path | str | None = None,
        ca: Path | str | None = None,
        certificate: Path | str | None = None,
        key: Path | str | None = None,
        patience_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._access = access(token, token_file=token_file, ca=ca, certificate=certificate, key=key)
        self._server = server or os.environ.get("PUNNET_SERVER") or None
        self._data = private_server.data_folder(data)
        self._patience_seconds = patience_seconds
        self._opened: Connection | None = None

    async def __aenter__(self) -> AsyncClient:
        if self._server is None:
            address = await asyncio.to_thread(private_server.ensure, self._data)
            revive, known = self._revive, address
        else:
            revive, known = None, self._server
        self._opened = Connection(known, access=self._access, revive=revive, patience_seconds=self._patience_seconds)
        try:
            await self._opened.check()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection. A private server goes on with its jobs, and ends some minutes after the last."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    @property
    def connection(self) -> Connection:
        """The open connection, for what has no method here."""
        return self._connection

    @property
    def address(self) -> str:
        """Where the server listens."""
        return self._connection.address

    async def compress(
        self,
        teacher: Teacher,
        images: LabelledSource,
        pool: str,
        *,
        external_data: Mapping[str, Path | bytes] | None = None,
        progress: TransferProgress | None = None,
        **options: Unpack[CompressOptions],
    ) -> job_pb2.Job:
        """Uploads what is missing and starts a compression.

        Args:
            teacher: path or bytes of an ONNX model.
            images: a folder with a folder for each label, a mapping from label to images, or pairs of both.
            pool: name of a pool.
            external_data: location -> file, where the model is given as bytes.
            progress: called with the bytes uploaded.
            options: see `punnet.options.CompressOptions`.

        Raises:
            PunnetError: by the error table.
        """
        request = compress_request(pool, options)
        await self._upload(request, teacher, images, options, external_data=external_data, progress=progress)
        return (await self._connection.call(self._connection.compression.Compress, request)).job

    async def compress_again(self, job_id: str, *, pool: str = "", **options: Unpack[CompressOptions]) -> job_pb2.Job:
        """Starts a compression with the teacher, images, pool and options of an earlier job, but for what is stated.

        Raises:
            PunnetError: by the error table; BLOB_MISSING where the earlier job's files are gone.
        """
        request = compress_request(pool, options)
        request.from_job = job_id
        request.teacher.class_names.extend(options.get("class_names", ()))
        request.teacher.taps.extend(options.get("taps", ()))
        with tempfile.TemporaryDirectory(prefix="punnet-") as scratch:
            blobs = await asyncio.to_thread(more_blobs, request, options, Path(scratch))
            if blobs:
                await upload_missing(self._connection, blobs, None)
        return (await self._connection.call(self._connection.compression.Compress, request)).job

    async def plan(
        self,
        teacher: Teacher,
        images: LabelledSource,
        pool: str,
        *,
        external_data: Mapping[str, Path | bytes] | None = None,
        progress: TransferProgress | None = None,
        **options: Unpack[CompressOptions],
    ) -> job_pb2.Job:
        """Starts an estimate of what a compression would take; its artifact is `plan.json`. Arguments as `compress`."""
        compression = compress_request(pool, options)
        await self._upload(compression, teacher, images, options, external_data=external_data, progress=progress)
        request = compression_pb2.PlanCompressionRequest(compression=compression)
        return (await self._connection.call(self._connection.compression.PlanCompression, request)).job

    async def inspect(
        self,
        teacher: Teacher,
        images: LabelledSource,
        *,
        external_data: Mapping[str, Path | bytes] | None = None,
        progress: TransferProgress | None = None,
        **options: Unpack[InspectOptions],
    ) -> job_pb2.Job:
        """Starts the intake of a teacher alone; its artifact is `inspection.json`. Arguments as `compress`."""
        request = inspect_request(options)
        await self._upload(request, teacher, images, options, external_data=external_data, progress=progress)
        return (await self._connection.call(self._connection.catalogue.InspectTeacher, request)).job

    async def create_pool(
        self,
        name: str,
        sources: Sequence[Path | str],
        *,
        short_side: int | None = None,
        quality: int | None = None,
        progress: TransferProgress | None = None,
        request_id: str = "",
    ) -> job_pb2.Job:
        """Packs and uploads unlabelled images and starts their ingest.

        Args:
            name: the new pool's.
            sources: folders of JPEG and PNG files, plain tars or Parquet files of them, folders of such files, or URLs
                of fsspec; Parquet and URLs are read here, not by the server.
            short_side: images with a longer short side are stored with this one, in pixels, as JPEG.
            quality: of that JPEG.
            progress: called with the bytes uploaded of the current tar.
            request_id: the same request with the same id gives the same job.

        Raises:
            PunnetError: by the error table.
        """
        shrink = shrink_of(short_side, quality)
        request = create_pool_request(name, await self._upload_tars(sources, progress), request_id, shrink=shrink)
        return (await self._connection.call(self._connection.pools.CreatePool, request)).job

    async def append_pool(
        self,
        name: str,
        sources: Sequence[Path | str],
        *,
        progress: TransferProgress | None = None,
        request_id: str = "",
    ) -> job_pb2.Job:
        """Uploads more images and starts their ingest into new shards of a pool. Arguments as `create_pool`."""
        await self.pool(name)  # nothing is uploaded for a pool that is not there
        request = append_pool_request(name, await self._upload_tars(sources, progress), request_id)
        return (await self._connection.call(self._connection.pools.AppendPool, request)).job

    async def verify_pool(self, name: str, *, request_id: str = "") -> job_pb2.Job:
        """Starts to read a whole pool again; the job fails with POOL_DAMAGED where a byte has changed."""
        request = pool_pb2.VerifyPoolRequest(name=name, request_id=request_id or fresh_request_id())
        return (await self._connection.call(self._connection.pools.VerifyPool, request)).job

    async def describe_pool(self, name: str, *, request_id: str = "") -> job_pb2.Job:
        """Starts to make a page that shows a pool; its artifacts are `pool.html` and `pool-summary.json`."""
        request = pool_pb2.DescribePoolRequest(name=name, request_id=request_id or fresh_request_id())
        return (await self._connection.call(self._connection.pools.DescribePool, request)).job

    async def delete_pool(self, name: str) -> None:
        """Removes a pool.

        Raises:
            InvalidPool: POOL_IN_USE while a job that has not ended uses it.
        """
        await self._connection.call(self._connection.pools.DeletePool, pool_pb2.DeletePoolRequest(name=name))

    async def watch(self, job_id: str, *, after_seq: int = 0) -> AsyncGenerator[compression_pb2.WatchJobResponse, None]:
        """Snapshots, durable events after `after_seq` without gaps or repeats, and ticks, to the job's end.

        A broken stream is opened again where it broke; each opening brings a snapshot. Heartbeats are not passed on.

        Raises:
            PunnetError: by the error table.
        """
        patience = Patience(self._connection)
        seq, ended = after_seq, False
        while not ended:
            request = compression_pb2.WatchJobRequest(id=job_id, after_seq=seq)
            call = self._connection.compression.WatchJob(request, metadata=self._connection.metadata)
            try:
                async for message in call:
                    patience.progressed()
                    kind = message.WhichOneof("update")
                    if kind == "event":
                        if message.event.seq <= seq:
                            continue
                        if message.event.seq > seq + 1:
                            break  # one was lost on the way: ask for it again
                        seq = message.event.seq
                        ended = ended or message.event.state in FINAL_STATES
                    if kind != "heartbeat":
                        yield message
                else:
                    # A clean end of the stream after a final snapshot: all events were known before.
                    ended = ended or (await self.job(job_id)).state in FINAL_STATES
            except AioRpcError as error:
                if not ended:
                    await patience.wait(error)
            finally:
                call.cancel()
            if not ended:
                await asyncio.sleep(FIRST_PAUSE_SECONDS)

    async def wait(self, job_id: str, progress: StageProgress | None = None) -> job_pb2.Job:
        """The job once it SUCCEEDED.

        Raises:
            JobCancelled: it was cancelled.
            PunnetError: it failed; the type and code are those of its error, `stage` is among the details.
        """
        async for message in self.watch(job_id):
            if progress is not None and message.WhichOneof("update") == "tick":
                progress(message.tick)
            elif progress is not None and message.event.HasField("stage"):
                progress(message.event.stage)
        job = await self.job(job_id)
        if job.state != job_pb2.JOB_STATE_SUCCEEDED:
            raise error_from_job(job)
        return job

    async def download(self, job_id: str, folder: Path | str, progress: TransferProgress | None = None) -> list[Path]:
        """Fetches every artifact of a finished job below a folder, each verified by its sha256.

        Raises:
            InvalidRequest: JOB_NOT_FINISHED.
            IntegrityError: ARTIFACT_CORRUPT; that file does not appear.
        """
        job = await self.job(job_id)
        if job.state not in FINAL_STATES:
            raise make_error(
                "JOB_NOT_FINISHED",
                f"The job {job.id} is still {state_name(job)}.",
                f"Wait for it: punnet watch {job.id}",
                {"job": job.id},
            )
        return await download(self._connection, job.artifacts, Path(folder), progress)

    async def build(self, job_id: str, target: str, *, agent: str = "", request_id: str = "") -> job_pb2.Job:
        """Starts a build of a finished compression's engines on a device; it waits for an agent there.

        Args:
            target: one that the compression made a bundle for.
            agent: the only one that may take it, by its name; empty means any that serves the target.

        Raises:
            NotFound: JOB_NOT_FOUND, BUNDLE_MISSING.
            InvalidRequest: JOB_NOT_FINISHED.
        """
        request = build_pb2.CreateBuildRequest(
            request_id=request_id or fresh_request_id(), job_id=job_id, target=target, agent=agent
        )
        return (await self._connection.call(self._connection.builds.CreateBuild, request)).job

    async def job(self, job_id: str) -> job_pb2.Job:
        """A job as it is now."""
        request = compression_pb2.GetJobRequest(id=job_id)
        return (await self._connection.call(self._connection.compression.GetJob, request)).job

    async def jobs(self, limit: int = 50) -> list[job_pb2.Job]:
        """The newest jobs, newest first."""
        found: list[job_pb2.Job] = []
        token = ""
        while True:
            size = min(limit - len(found), PAGE_JOBS)
            request = compression_pb2.ListJobsRequest(page_size=size, page_token=token)
            page = await self._connection.call(self._connection.compression.ListJobs, request)
            found += page.jobs
            token = page.next_page_token
            if not token or len(found) >= limit:
                return found[:limit]

    async def cancel(self, job_id: str) -> job_pb2.Job:
        """Asks a job to stop; it is CANCELLED once its processes are gone."""
        request = compression_pb2.CancelJobRequest(id=job_id)
        return (await self._connection.call(self._connection.compression.CancelJob, request)).job

    async def delete(self, job_id: str) -> None:
        """Removes a finished job and what only it used."""
        await self._connection.call(self._connection.compression.DeleteJob, compression_pb2.DeleteJobRequest(id=job_id))

    async def pool(self, name: str) -> pool_pb2.Pool:
        """One pool."""
        return (await self._connection.call(self._connection.pools.GetPool, pool_pb2.GetPoolRequest(name=name))).pool

    async def pools(self) -> list[pool_pb2.Pool]:
        """Every pool, by name."""
        found: list[pool_pb2.Pool] = []
        token = ""
        while True:
            request = pool_pb2.ListPoolsRequest(page_size=PAGE_JOBS, page_token=token)
            page = await self._connection.call(self._connection.pools.ListPools, request)
            found += page.pools
            token = page.next_page_token
            if not token:
                return found

    async def students(self, name_contains: str = "") -> list[catalogue_pb2.Student]:
        """Networks that can be trained, by name; those that Punnet recommends where no part of a name is given."""
        found: list[catalogue_pb2.Student] = []
        token = ""
        while True:
            request = catalogue_pb2.ListStudentsRequest(
                name_contains=name_contains, page_size=PAGE_STUDENTS, page_token=token
            )
            page = await self._connection.call(self._connection.catalogue.ListStudents, request)
            found += page.students
            token = page.next_page_token
            if not token:
                return found

    async def timed_student(self, name: str, size: int = 0) -> catalogue_pb2.Student:
        """One network by its exact name, timed on the appliance's CPU unless it was before.

        Args:
            size: input side in pixels; 0: the one that it was designed for.
        """
        request = catalogue_pb2.ListStudentsRequest(measure=name, measure_size=size)
        answer = await self._connection.call(self._connection.catalogue.ListStudents, request)
        return answer.students[0]

    async def capabilities(self) -> compression_pb2.GetCapabilitiesResponse:
        """Versions, limits, devices and confinement of the appliance."""
        request = compression_pb2.GetCapabilitiesRequest()
        return await self._connection.call(self._connection.compression.GetCapabilities, request)

    async def collect_garbage(
        self,
        *,
        apply: bool = False,
        job_days: float | None = None,
        result_days: float | None = None,
        quota_bytes: int | None = None,
    ) -> operator_pb2.CollectGarbageResponse:
        """Says what nobody needs any more, and with `apply` removes it; a bound that is left out is the server's own.

        Args:
            job_days: jobs go that ended so many days ago.
            result_days: results of stages go whose jobs all ended so many days ago.
            quota_bytes: results, then blobs of ended jobs go, the oldest first, until no more is stored.
        """
        request = operator_pb2.CollectGarbageRequest(
            apply=apply, job_days=job_days, result_days=result_days, quota_bytes=quota_bytes
        )
        return await self._connection.call(self._connection.operator.CollectGarbage, request)

    @property
    def _connection(self) -> Connection:
        if self._opened is None:
            raise RuntimeError("the client is not open: use it in a `with` block")
        return self._opened

    async def _revive(self) -> None:
        await asyncio.to_thread(private_server.ensure, self._data)

    async def _upload_tars(self, sources: Sequence[Path | str], progress: TransferProgress | None) -> list[str]:
        """Uploads what the server lacks of a pool's images; the tars' sha256 in order."""
        digests = []
        with tempfile.TemporaryDirectory(prefix="punnet-") as scratch:
            tars = pool_tars(sources, Path(scratch))
            while (tar := await asyncio.to_thread(next, tars, None)) is not None:
                blob = await asyncio.to_thread(blob_of, tar)
                await upload_missing(self._connection, [blob], progress)
                digests.append(blob.sha256)
                if tar.parent == Path(scratch):
                    tar.unlink()  # a second copy of a large pool may not fit on the disk
        return digests

    async def _upload(
        self,
        request: compression_pb2.CompressRequest | catalogue_pb2.InspectTeacherRequest,
        teacher: Teacher,
        images: LabelledSource,
        options: InspectOptions,
        *,
        external_data: Mapping[str, Path | bytes] | None,
        progress: TransferProgress | None,
    ) -> None:
        """Names teacher, images and whatever else is a file in the request, and uploads what the server lacks."""
        with tempfile.TemporaryDirectory(prefix="punnet-") as scratch:
            material = await asyncio.to_thread(
                gather_material,
                teacher,
                images,
                scratch=Path(scratch),
                class_names=tuple(options.get("class_names", ())),
                taps=tuple(options.get("taps", ())),
                external_data=external_data,
            )
            request.teacher.CopyFrom(material.teacher)
            request.images.CopyFrom(material.images)
            blobs = [*material.blobs]
            if isinstance(request, compression_pb2.CompressRequest):
                blobs += await asyncio.to_thread(more_blobs, request, cast(CompressOptions, options), Path(scratch))
            await upload_missing(self._connection, blobs, progress)


def state_name(job: job_pb2.Job) -> str:
    """For instance `RUNNING`."""
    return job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_")
