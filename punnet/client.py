"""The client for code that blocks: the asyncio client on an event loop of its own thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from punnet.aio import AsyncClient, StageProgress
from punnet.archive import LabelledSource
from punnet.blobs import TransferProgress
from punnet.connection import RETRY_SECONDS
from punnet.job import Job
from punnet.material import Teacher
from punnet.options import CompressOptions, InspectOptions
from punnet.v1 import catalogue_pb2, compression_pb2, job_pb2, operator_pb2, pool_pb2

if TYPE_CHECKING:  # Unpack came with Python 3.11; the client runs on 3.10
    from typing import Unpack

_T = TypeVar("_T")


class Client:
    """A client of one appliance. `with Client() as client:`, or close it when done.

    Arguments and methods are those of `punnet.aio.AsyncClient`; progress callbacks run on the client's thread.
    Without `with` it connects at once.
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
        self._client = AsyncClient(
            server,
            data=data,
            token=token,
            token_file=token_file,
            ca=ca,
            certificate=certificate,
            key=key,
            patience_seconds=patience_seconds,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="punnet-client", daemon=True)
        self._thread.start()
        try:
            self._run(self._client.__aenter__())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and the thread. A private server goes on with its jobs."""
        if self._loop.is_closed():
            return
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    @property
    def address(self) -> str:
        """Where the server listens."""
        return self._client.address

    def compress(
        self,
        teacher: Teacher,
        images: LabelledSource,
        pool: str,
        *,
        external_data: Mapping[str, Path | bytes] | None = None,
        progress: TransferProgress | None = None,
        **options: Unpack[CompressOptions],
    ) -> Job:
        """Uploads what is missing and starts a compression."""
        started = self._client.compress(
            teacher, images, pool, external_data=external_data, progress=progress, **options
        )
        return Job(self, self._run(started).id)

    def compress_again(self, job_id: str, *, pool: str = "", **options: Unpack[CompressOptions]) -> Job:
        """Starts a compression with the request of an earlier job, but for what is stated."""
        return Job(self, self._run(self._client.compress_again(job_id, pool=pool, **options)).id)

    def plan(
        self,
        teacher: Teacher,
        images: LabelledSource,
        pool: str,
        *,
        external_data: Mapping[str, Path | bytes] | None = None,
        progress: TransferProgress | None = None,
        **options: Unpack[CompressOptions],
    ) -> Job:
        """Starts an estimate of what a compression would take; its artifact is `plan.json`."""
        started = self._client.plan(teacher, images, pool, external_data=external_data, progress=progress, **options)
        return Job(self, self._run(started).id)

    def inspect(
        self,
        teacher: Teacher,
        images: LabelledSource,
        *,
        external_data: Mapping[str, Path | bytes] | None = None,
        progress: TransferProgress | None = None,
        **options: Unpack[InspectOptions],
    ) -> Job:
        """Starts the intake of a teacher alone; its artifact is `inspection.json`."""
        started = self._client.inspect(teacher, images, external_data=external_data, progress=progress, **options)
        return Job(self, self._run(started).id)

    def create_pool(
        self,
        name: str,
        sources: Sequence[Path | str],
        *,
        short_side: int | None = None,
        quality: int | None = None,
        progress: TransferProgress | None = None,
        request_id: str = "",
    ) -> Job:
        """Packs and uploads unlabelled images and starts their ingest."""
        started = self._client.create_pool(
            name, sources, short_side=short_side, quality=quality, progress=progress, request_id=request_id
        )
        return Job(self, self._run(started).id)

    def append_pool(
        self,
        name: str,
        sources: Sequence[Path | str],
        *,
        progress: TransferProgress | None = None,
        request_id: str = "",
    ) -> Job:
        """Uploads more images and starts their ingest into new shards of a pool."""
        started = self._client.append_pool(name, sources, progress=progress, request_id=request_id)
        return Job(self, self._run(started).id)

    def verify_pool(self, name: str, *, request_id: str = "") -> Job:
        """Starts to read a whole pool again; the job fails with POOL_DAMAGED where a byte has changed."""
        return Job(self, self._run(self._client.verify_pool(name, request_id=request_id)).id)

    def describe_pool(self, name: str, *, request_id: str = "") -> Job:
        """Starts to make a page that shows a pool; its artifacts are `pool.html` and `pool-summary.json`."""
        return Job(self, self._run(self._client.describe_pool(name, request_id=request_id)).id)

    def delete_pool(self, name: str) -> None:
        """Removes a pool that no job uses."""
        self._run(self._client.delete_pool(name))

    def watch(self, job_id: str, *, after_seq: int = 0) -> Iterator[compression_pb2.WatchJobResponse]:
        """Snapshots, durable events without gaps, and ticks, to the job's end."""
        updates = self._client.watch(job_id, after_seq=after_seq)
        steps: set[asyncio.Task[Any]] = set()

        async def following() -> compression_pb2.WatchJobResponse | None:
            step = asyncio.current_task()
            if step is not None:
                steps.add(step)
                step.add_done_callback(steps.discard)
            return await anext(updates, None)

        async def end() -> None:
            # Ctrl-C may come between the start of a step and the wait for it: then nobody has cancelled it.
            for step in steps.copy():
                step.cancel()
                await asyncio.wait({step})
            await updates.aclose()

        try:
            while (update := self._run(following())) is not None:
                yield update
        finally:
            self._run(end())

    def wait(self, job_id: str, progress: StageProgress | None = None) -> job_pb2.Job:
        """The job once it SUCCEEDED; raises what it failed with."""
        return self._run(self._client.wait(job_id, progress))

    def download(self, job_id: str, folder: Path | str, progress: TransferProgress | None = None) -> list[Path]:
        """Fetches every artifact of a finished job below a folder, each verified by its sha256."""
        return self._run(self._client.download(job_id, folder, progress))

    def build(self, job_id: str, target: str, *, agent: str = "", request_id: str = "") -> Job:
        """Starts a build of a finished compression's engines on a device; it waits for an agent there."""
        return Job(self, self._run(self._client.build(job_id, target, agent=agent, request_id=request_id)).id)

    def job(self, job_id: str) -> job_pb2.Job:
        """A job as it is now."""
        return self._run(self._client.job(job_id))

    def jobs(self, limit: int = 50) -> list[job_pb2.Job]:
        """The newest jobs, newest first."""
        return self._run(self._client.jobs(limit))

    def cancel(self, job_id: str) -> job_pb2.Job:
        """Asks a job to stop."""
        return self._run(self._client.cancel(job_id))

    def delete(self, job_id: str) -> None:
        """Removes a finished job and what only it used."""
        self._run(self._client.delete(job_id))

    def pool(self, name: str) -> pool_pb2.Pool:
        """One pool."""
        return self._run(self._client.pool(name))

    def pools(self) -> list[pool_pb2.Pool]:
        """Every pool, by name."""
        return self._run(self._client.pools())

    def students(self, name_contains: str = "") -> list[catalogue_pb2.Student]:
        """Networks that can be trained, by name."""
        return self._run(self._client.students(name_contains))

    def timed_student(self, name: str, size: int = 0) -> catalogue_pb2.Student:
        """One network by its exact name, timed on the appliance's CPU unless it was before; size 0: its own."""
        return self._run(self._client.timed_student(name, size))

    def capabilities(self) -> compression_pb2.GetCapabilitiesResponse:
        """Versions, limits, devices and confinement of the appliance."""
        return self._run(self._client.capabilities())

    def collect_garbage(
        self,
        *,
        apply: bool = False,
        job_days: float | None = None,
        result_days: float | None = None,
        quota_bytes: int | None = None,
    ) -> operator_pb2.CollectGarbageResponse:
        """Says what nobody needs any more, and with `apply` removes it; a bound left out is the server's own."""
        return self._run(
            self._client.collect_garbage(
                apply=apply, job_days=job_days, result_days=result_days, quota_bytes=quota_bytes
            )
        )

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C here must end the work there too; nothing where it has ended
            raise
