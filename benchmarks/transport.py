"""How much of the sink does the wire keep? `python -m benchmarks.transport --out F.json [--mib 1024]`.

The sink is what storing a file costs without any server: sha256, CRC32C, write, fsync, of the same bytes in the same
process. Sink, upload and download are interleaved, and the median of the pairs' ratios counts: a shared disk's speed
drifts. Beside it: the front's memory, the latency of small calls under 200 watchers and an upload, lost events.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import google_crc32c
import grpc
from PIL import Image

from benchmarks.server_process import ServerProcess, resident_mib
from benchmarks.wire import MIB, numbered_file, time_sink, upload_messages
from punnet.connection import OPTIONS
from punnet.large_buffers import keep_large_buffers
from punnet.transfer import CHUNK_BYTES
from punnet.v1 import (
    blob_pb2,
    blob_pb2_grpc,
    compression_pb2,
    compression_pb2_grpc,
    job_pb2,
    pool_pb2,
    pool_pb2_grpc,
)

SEED = 20261122
WATCHERS = 200
CALLS_PER_SECOND = 100
CALL_SECONDS = 10.0
POOL_IMAGES, IMAGE_SIDE = 6000, 1024  # their ingest must outlast the calls
FINAL_STATES = (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED)
BARS = (
    ("upload_share", 0.45, "least"),
    ("download_share", 0.6, "least"),
    ("front_rss_mib", 200.0, "most"),
    ("unary_p99_ms", 100.0, "most"),
    ("startup_s", 3.0, "most"),
    ("events_lost", 0.0, "most"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One interleaved round, MiB a second."""

    sink: float
    upload: float
    download: float


def time_upload(stub: blob_pb2_grpc.BlobServiceStub, source: Path, sha256: str) -> float:
    """Seconds to upload the file."""
    started = time.monotonic()
    stub.UploadBlob(upload_messages(source, sha256))
    return time.monotonic() - started


def time_download(stub: blob_pb2_grpc.BlobServiceStub, sha256: str, target: Path) -> float:
    """Seconds to download the file, checked and stored; receiving and storing overlap, as in the client."""
    started = time.monotonic()
    known = hashlib.sha256()

    def store(answer: blob_pb2.DownloadBlobResponse) -> None:
        data = answer.data  # every reading of the field copies it
        if google_crc32c.value(data) != answer.crc32c:
            raise RuntimeError("a chunk differs from its CRC32C")
        known.update(data)
        file.write(data)

    with target.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as thread:
        stored = None
        for answer in stub.DownloadBlob(blob_pb2.DownloadBlobRequest(sha256=sha256)):
            if stored is not None:
                stored.result()
            stored = thread.submit(store, answer)
        if stored is not None:
            stored.result()
        os.fsync(file.fileno())
    seconds = time.monotonic() - started
    target.unlink()
    if known.hexdigest() != sha256:
        raise RuntimeError("the download differs from what was uploaded")
    return seconds


def touch_memory(target: Path, mib: int) -> None:
    """Leave as much touched free memory as a step writes.

    A virtual machine's host hands memory out at its first touch: a step that writes into fresh pages took three times
    as long as the same step a second later, and the order of the steps would decide the result.
    """
    block = bytes(MIB)
    with target.open("wb", buffering=0) as file:
        for _ in range(mib):
            file.write(block)
    target.unlink()


def run_pairs(folder: Path, channel: grpc.Channel, mib: int, pairs: int) -> list[Pair]:
    """Interleaved rounds, each with a file of its own content: a blob that is there is not sent again."""
    stub = blob_pb2_grpc.BlobServiceStub(channel)
    source, target = folder / "source", folder / "target"
    rows = []
    for index in range(pairs):
        sha256 = numbered_file(source, mib, SEED + index)
        steps = {
            "sink": partial(time_sink, source, target),
            "upload": partial(time_upload, stub, source, sha256),
            "download": partial(time_download, stub, sha256, target),
        }
        seconds = {}
        for name, step in steps.items():
            touch_memory(target, mib)
            seconds[name] = step()
        rows.append(Pair(**{name: mib / value for name, value in seconds.items()}))
        next((folder / "data" / "blobs" / "local").glob(f"*/{sha256}-*")).unlink()
    source.unlink()
    return rows


def image_tar() -> bytes:
    """Images that are small to send and slow to decode: their ingest keeps a job going while calls are timed."""
    encoded = BytesIO()
    Image.new("RGB", (IMAGE_SIDE, IMAGE_SIDE), "teal").save(encoded, "PNG")
    target = BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for index in range(POOL_IMAGES):
            member = tarfile.TarInfo(f"{index:06d}.png")
            member.size = encoded.tell()
            tar.addfile(member, BytesIO(encoded.getvalue()))
    return target.getvalue()


async def watch(channel: grpc.aio.Channel, job_id: str, connected: asyncio.Semaphore) -> int:
    """Follow a job to its end; the events that were missing in between."""
    stub = compression_pb2_grpc.CompressionServiceStub(channel)
    last = lost = 0
    async for message in stub.WatchJob(compression_pb2.WatchJobRequest(id=job_id)):
        if message.WhichOneof("update") == "snapshot":
            connected.release()
        if message.WhichOneof("update") == "event":
            lost += message.event.seq - last - 1
            last = message.event.seq
            if message.event.state in FINAL_STATES:
                return lost
    raise RuntimeError("a watch ended before its job")


async def time_calls(channel: grpc.aio.Channel, job_id: str) -> list[float]:
    """Milliseconds of GetJob calls at a fixed rate, measured from when each was due."""
    stub = compression_pb2_grpc.CompressionServiceStub(channel)

    async def call(due: float) -> float:
        await stub.GetJob(compression_pb2.GetJobRequest(id=job_id))
        return (time.monotonic() - due) * 1000

    first = time.monotonic()
    calls = []
    for index in range(int(CALLS_PER_SECOND * CALL_SECONDS)):
        due = first + index / CALLS_PER_SECOND
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        calls.append(asyncio.create_task(call(due)))
    return list(await asyncio.gather(*calls))


async def endless_upload(channel: grpc.aio.Channel, stop: asyncio.Event) -> None:
    """An upload that goes on until it is told to end; it is never finished."""
    digest = blob_pb2.BlobDigest(sha256="e" * 64, size=8 << 30)
    data = random.Random(SEED).randbytes(CHUNK_BYTES)
    crc32c = google_crc32c.value(data)

    async def messages() -> AsyncIterator[blob_pb2.UploadBlobRequest]:
        offset = 0
        while not stop.is_set():
            first = digest if offset == 0 else None
            yield blob_pb2.UploadBlobRequest(digest=first, offset=offset, data=data, crc32c=crc32c)
            offset += len(data)

    try:
        await blob_pb2_grpc.BlobServiceStub(channel).UploadBlob(messages())
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.FAILED_PRECONDITION:  # it ended without `finish`, as it should
            raise


async def make_load(address: str, job_id: str) -> int:
    """Watch the job from 200 streams and upload until it ends; the events that the watchers lost.

    Prints a line once every watcher has its snapshot and the upload runs.
    """
    async with grpc.aio.insecure_channel(address) as small, grpc.aio.insecure_channel(address) as large:
        stop, connected = asyncio.Event(), asyncio.Semaphore(0)
        upload = asyncio.create_task(endless_upload(large, stop))
        watchers = [asyncio.create_task(watch(small, job_id, connected)) for _ in range(WATCHERS)]
        for _ in watchers:
            await connected.acquire()
        print("loaded", flush=True)
        lost = await asyncio.gather(*watchers)
        stop.set()
        await upload
        return sum(lost)


def create_pool(address: str) -> str:
    """A job that goes on while calls are timed; its id."""
    tar = image_tar()
    sha256 = hashlib.sha256(tar).hexdigest()
    with tempfile.NamedTemporaryFile() as file, grpc.insecure_channel(address) as channel:
        file.write(tar)
        file.flush()
        blob_pb2_grpc.BlobServiceStub(channel).UploadBlob(upload_messages(Path(file.name), sha256))
        request = pool_pb2.CreatePoolRequest(name="bench", tar_sha256=[sha256])
        return str(pool_pb2_grpc.PoolServiceStub(channel).CreatePool(request).job.id)


async def time_small_calls(address: str, job_id: str) -> list[float]:
    """`time_calls` on a channel of its own."""
    async with grpc.aio.insecure_channel(address) as channel:
        return await time_calls(channel, job_id)


def run_latency(address: str) -> tuple[list[float], int]:
    """Milliseconds of small calls while 200 watch a job and one uploads; events lost by the watchers.

    The load comes from a process of its own: the calls' latency is to be the server's, not that of a busy client.
    """
    job_id = create_pool(address)
    command = [sys.executable, "-m", "benchmarks.transport", "--out", os.devnull, "--load", address, job_id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as load:
        if load.stdout is None or load.stdout.readline().strip() != "loaded":
            raise RuntimeError("the load did not start")
        milliseconds = asyncio.run(time_small_calls(address, job_id))
        if load.poll() is not None:
            raise RuntimeError("the load ended before the calls: the ingest needs more images")
        with grpc.insecure_channel(address) as channel:
            stub = compression_pb2_grpc.CompressionServiceStub(channel)
            stub.CancelJob(compression_pb2.CancelJobRequest(id=job_id))
        output, _ = load.communicate(timeout=300)
    return milliseconds, int(output)


def report(rows: list[Pair], milliseconds: list[float], *, lost: int, rss: float, startup: float) -> dict[str, Any]:
    """The figures, and which bars they hold."""
    figures = {
        "upload_mib_s": statistics.median(row.upload for row in rows),
        "download_mib_s": statistics.median(row.download for row in rows),
        "sink_mib_s": statistics.median(row.sink for row in rows),
        "upload_share": statistics.median(row.upload / row.sink for row in rows),
        "download_share": statistics.median(row.download / row.sink for row in rows),
        "front_rss_mib": rss,
        "unary_p50_ms": statistics.median(milliseconds),
        "unary_p99_ms": statistics.quantiles(milliseconds, n=100)[98],
        "events_lost": lost,
        "startup_s": startup,
    }
    bars = [
        {
            "name": name,
            "value": figures[name],
            "bar": bar,
            "holds": figures[name] >= bar if side == "least" else figures[name] <= bar,
        }
        for name, bar, side in BARS
    ]
    return {**figures, "bars": bars}


def conditions(mib: int, pairs: int) -> dict[str, Any]:
    """What the figures depend on."""
    packages = ("grpcio", "protobuf", "google-crc32c")
    return {
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "device": "cpu",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "seed": SEED,
        "mib": mib,
        "pairs": pairs,
        "watchers": WATCHERS,
        "calls_per_second": CALLS_PER_SECOND,
    }


def main() -> int:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transport", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--load", nargs=2, metavar=("ADDRESS", "JOB"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(asyncio.run(make_load(*options.load)))
        return 0
    keep_large_buffers()  # as the command line does
    folder = Path(tempfile.mkdtemp(prefix="pn-", dir="/tmp"))
    state = conditions(options.mib, options.pairs)
    server = ServerProcess(folder=folder, data=folder / "data")
    startup = server.start()
    try:
        with grpc.insecure_channel(server.address, options=OPTIONS) as channel:
            rows = run_pairs(folder, channel, options.mib, options.pairs)
        milliseconds, lost = run_latency(server.address)
        rss = resident_mib(server.pid, "VmHWM")
    finally:
        server.stop()
        shutil.rmtree(folder)
    figures = report(rows, milliseconds, lost=lost, rss=rss, startup=startup)
    for bar in figures["bars"]:
        print(
            f"{bar['name']:16} {bar['value']:10.3f}   bar {bar['bar']:8.3f}   {'holds' if bar['holds'] else 'MISSED'}"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps({"conditions": state, "rows": [asdict(row) for row in rows], **figures}, indent=1)
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
