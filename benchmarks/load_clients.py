"""The clients of `benchmarks.load`, each kind a process of its own: `python -m benchmarks.load_clients KIND JSON`.

KIND is `watchers` or `uploads`, JSON the fields of `Load`. A client prints a line once its load is there, goes on until
its standard input ends, and prints what it counted as one JSON line.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from benchmarks.wire import MIB, numbered_file, upload_messages
from punnet.connection import OPTIONS
from punnet.large_buffers import keep_large_buffers
from punnet.v1 import (
    blob_pb2,
    blob_pb2_grpc,
    catalogue_pb2,
    catalogue_pb2_grpc,
    compression_pb2,
    compression_pb2_grpc,
    job_pb2,
    pool_pb2,
    pool_pb2_grpc,
)

FINAL_STATES = (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED)
REFUSED = "RESOURCE_EXHAUSTED with RetryInfo"
CALL_SECONDS = 60.0
PAUSE_SECONDS = 0.5  # after a call that failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the clients are told."""

    address: str
    token: str
    data: str  # the server's data folder, from which finished uploads are removed
    tar_sha256: str  # of the pool that each job makes
    watchers: int
    jobs: int
    uploads: int
    upload_mib: int

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),)


def outcome(error: grpc.RpcError) -> str:
    """How a call failed: the status, and whether a refusal says when to come again."""
    status = rpc_status.from_call(error)
    retry = error_details_pb2.RetryInfo.DESCRIPTOR
    told = status is not None and any(detail.Is(retry) for detail in status.details)
    name = str(error.code().name)
    return REFUSED if name == "RESOURCE_EXHAUSTED" and told else name


@dataclass
class Calls:
    """Unary calls at a fixed rate, each timed from when it was due."""

    load: Load
    outcomes: Counter[str] = field(default_factory=Counter)
    milliseconds: list[float] = field(default_factory=list)  # of those that succeeded

    async def make(self, a_second: int, seconds: float) -> None:
        """Returns when the last one was answered."""
        async with grpc.aio.insecure_channel(self.load.address, options=OPTIONS) as channel:
            first, calls = time.monotonic(), []
            each = self._requests(channel)
            for index in range(int(a_second * seconds)):
                due = first + index / a_second
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                calls.append(asyncio.create_task(self._call(next(each), due)))
            await asyncio.gather(*calls)

    async def _call(self, request: tuple[Any, Any], due: float) -> None:
        method, message = request
        try:
            await method(message, metadata=self.load.metadata, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            self.outcomes[outcome(error)] += 1
            return
        self.outcomes["OK"] += 1
        self.milliseconds.append((time.monotonic() - due) * 1000)

    def _requests(self, channel: grpc.aio.Channel) -> Iterator[tuple[Any, Any]]:
        """What a page, a script and a client ask for, in turn."""
        compression = compression_pb2_grpc.CompressionServiceStub(channel)
        blobs = blob_pb2_grpc.BlobServiceStub(channel)
        pools = pool_pb2_grpc.PoolServiceStub(channel)
        catalogue = catalogue_pb2_grpc.CatalogueServiceStub(channel)
        digests = [blob_pb2.BlobDigest(sha256=self.load.tar_sha256, size=1)]
        while True:
            for _ in range(6):
                yield compression.ListJobs, compression_pb2.ListJobsRequest(page_size=10)
            yield blobs.FindMissingBlobs, blob_pb2.FindMissingBlobsRequest(digests=digests)
            yield pools.ListPools, pool_pb2.ListPoolsRequest(page_size=10)
            yield compression.GetCapabilities, compression_pb2.GetCapabilitiesRequest()
            yield catalogue.ListStudents, catalogue_pb2.ListStudentsRequest(page_size=10)


@dataclass
class Watchers:
    """Streams that follow jobs to their ends, and a queue that is kept full."""

    load: Load
    outcomes: Counter[str] = field(default_factory=Counter)
    events: int = 0
    lost: int = 0  # numbers that were missing, and ends that were never told
    ended: int = 0  # jobs
    waiting: list[str] = field(default_factory=list)  # jobs that have not ended
    made: int = 0

    async def run(self, stop: asyncio.Event) -> dict[str, Any]:
        """Fill the queue, watch until told to stop; what was counted."""
        options = (*OPTIONS, ("grpc.use_local_subchannel_pool", 1))
        async with grpc.aio.insecure_channel(self.load.address, options=options) as channel:
            for _ in range(self.load.jobs):
                await self._submit(channel)
            seen = asyncio.Semaphore(0)
            tasks = [asyncio.create_task(self._watch_all(channel, n, seen)) for n in range(self.load.watchers)]
            for _ in tasks:
                await seen.acquire()
            print("loaded", flush=True)
            await stop.wait()
            for task in tasks:
                task.cancel()
            failed = [e for e in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(e, Exception)]
        if failed:
            raise failed[0]
        names = ("outcomes", "events", "lost", "ended", "made")
        return {name: getattr(self, name) for name in names}

    async def _watch_all(self, channel: grpc.aio.Channel, number: int, seen: asyncio.Semaphore) -> None:
        """Follow one job after another; the first stream's snapshot is told to `seen`."""
        generator = random.Random(number)
        first = True
        while True:
            job_id = generator.choice(self.waiting)
            try:
                async for message in self._follow(channel, job_id):
                    if first and message.WhichOneof("update") == "snapshot":
                        first = False
                        seen.release()
                self.outcomes["OK"] += 1
            except grpc.aio.AioRpcError as error:
                self.outcomes[outcome(error)] += 1
                await asyncio.sleep(PAUSE_SECONDS)
            if job_id in self.waiting:
                self.waiting.remove(job_id)
                self.ended += 1
                await self._submit(channel)

    async def _follow(self, channel: grpc.aio.Channel, job_id: str) -> AsyncIterator[compression_pb2.WatchJobResponse]:
        stub = compression_pb2_grpc.CompressionServiceStub(channel)
        last, told = 0, False
        request = compression_pb2.WatchJobRequest(id=job_id)
        async for message in stub.WatchJob(request, metadata=self.load.metadata):
            if message.WhichOneof("update") == "event":
                self.events += 1
                self.lost += message.event.seq - last - 1
                last, told = message.event.seq, message.event.state in FINAL_STATES
            yield message
        self.lost += not told

    async def _submit(self, channel: grpc.aio.Channel) -> None:
        """One more job; tried until it is taken."""
        stub = pool_pb2_grpc.PoolServiceStub(channel)
        self.made += 1
        request = pool_pb2.CreatePoolRequest(name=f"load-{self.made}", tar_sha256=[self.load.tar_sha256])
        while True:
            try:
                answer = await stub.CreatePool(request, metadata=self.load.metadata, timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                self.outcomes[outcome(error)] += 1
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            self.outcomes["OK"] += 1
            self.waiting.append(answer.job.id)
            return


@dataclass
class Uploads:
    """Uploads at once, each of bytes that the server does not have; what came is removed when it is whole."""

    load: Load
    outcomes: Counter[str] = field(default_factory=Counter)
    bytes: int = 0  # of whole uploads
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, stop: threading.Event) -> dict[str, Any]:
        """Upload until told to stop; what was counted."""
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="pn-load-") as scratch:
            threads = [
                threading.Thread(target=self._upload_all, args=(Path(scratch) / str(number), number, stop))
                for number in range(self.load.uploads)
            ]
            for thread in threads:
                thread.start()
            print("loaded", flush=True)
            for thread in threads:
                thread.join()
        return {"outcomes": self.outcomes, "bytes": self.bytes, "seconds": time.monotonic() - started}

    def _upload_all(self, source: Path, number: int, stop: threading.Event) -> None:
        turn = 0
        options = (*OPTIONS, ("grpc.use_local_subchannel_pool", 1))
        with grpc.insecure_channel(self.load.address, options=options) as channel:
            stub = blob_pb2_grpc.BlobServiceStub(channel)
            while not stop.is_set():
                turn += 1
                sha256 = numbered_file(source, self.load.upload_mib, number * 1000 + turn)
                try:
                    stub.UploadBlob(upload_messages(source, sha256), metadata=self.load.metadata)
                except grpc.RpcError as error:
                    with self.lock:
                        self.outcomes[outcome(error)] += 1
                    time.sleep(PAUSE_SECONDS)
                    continue
                with self.lock:
                    self.outcomes["OK"] += 1
                    self.bytes += source.stat().st_size
                next(Path(self.load.data).glob(f"blobs/*/*/{sha256}-{self.load.upload_mib * MIB}")).unlink()


async def _watchers(load: Load) -> dict[str, Any]:
    stop = asyncio.Event()
    running = asyncio.create_task(Watchers(load).run(stop))
    await asyncio.to_thread(sys.stdin.read)
    stop.set()
    return await running


def _uploads(load: Load) -> dict[str, Any]:
    stop = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    return Uploads(load).run(stop)


def main() -> int:
    """Be the clients that the command line names."""
    os.umask(0o077)
    keep_large_buffers()  # as the command line does
    kind, load = sys.argv[1], Load(**json.loads(sys.argv[2]))
    print(json.dumps(asyncio.run(_watchers(load)) if kind == "watchers" else _uploads(load)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
