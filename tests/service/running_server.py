"""A real server process on a Unix socket, and the generated stubs to talk to it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from PIL import Image

from punnet.v1 import (
    blob_pb2,
    blob_pb2_grpc,
    catalogue_pb2_grpc,
    compression_pb2,
    compression_pb2_grpc,
    job_pb2,
    pool_pb2,
    pool_pb2_grpc,
)

START_SECONDS = 30.0
CHUNK_BYTES = 256 << 10
SLOW_IMAGES = 2000
FINAL = (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED)


@dataclass
class RunningServer:
    """One server process and channels to it."""

    folder: Path
    options: tuple[str, ...] = ()
    port: bool = False  # of the loopback in place of a socket
    launcher: tuple[str, ...] = ()  # arguments of a Python that starts the server's
    start_seconds: float = START_SECONDS
    process: subprocess.Popen[bytes] | None = None
    channels: list[grpc.Channel] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> RunningServer:
        self.process = subprocess.Popen(
            [
                *((sys.executable, *self.launcher) if self.launcher else ()),
                *(sys.executable, "-I", "-m", "server"),
                *("--data", str(self.data)),
                *(("--listen", "127.0.0.1:0") if self.port else ("--socket", str(self.folder / "s"))),
                *self.options,
            ],
            stderr=subprocess.PIPE,
        )
        until(self._ready, self.start_seconds)
        return self

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.process.stderr or io.BytesIO()).read()
        ready = self.data / "server.json"
        return ready.exists() and json.loads(ready.read_text())["pid"] == self.process.pid

    def end(self, number: signal.Signals = signal.SIGTERM, seconds: float = 20.0) -> None:
        """Signal the server and wait for its end."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(seconds)
        if self.process.stderr:
            self.process.stderr.close()

    @property
    def address(self) -> str:
        """Where it listens, as its clients take it."""
        return str(json.loads((self.data / "server.json").read_text())["address"])

    def channel(self) -> grpc.Channel:
        channel = grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.channels.append(channel)
        return channel

    def close(self) -> None:
        for channel in self.channels:
            channel.close()
        self.end()

    @property
    def compression(self) -> compression_pb2_grpc.CompressionServiceStub:
        return compression_pb2_grpc.CompressionServiceStub(self.channel())

    @property
    def blobs(self) -> blob_pb2_grpc.BlobServiceStub:
        return blob_pb2_grpc.BlobServiceStub(self.channel())

    @property
    def pools(self) -> pool_pb2_grpc.PoolServiceStub:
        return pool_pb2_grpc.PoolServiceStub(self.channel())

    @property
    def catalogue(self) -> catalogue_pb2_grpc.CatalogueServiceStub:
        return catalogue_pb2_grpc.CatalogueServiceStub(self.channel())

    def upload(self, data: bytes) -> str:
        messages = list(chunks(data))
        self.blobs.UploadBlob(iter(messages))
        return hashlib.sha256(data).hexdigest()

    def job(self, job_id: str) -> job_pb2.Job:
        return self.compression.GetJob(compression_pb2.GetJobRequest(id=job_id)).job

    def ended(self, job_id: str, seconds: float = 60.0) -> job_pb2.Job:
        until(lambda: self.job(job_id).state in FINAL, seconds)
        return self.job(job_id)

    def signal_stages(self, number: int) -> None:
        """Send a signal to every stage's process."""
        for pid in stage_children(self):
            os.kill(pid, number)

    def pause_stages(self) -> None:
        """Stop the stages' processes; only SIGKILL and `resume_stages` reach them."""
        until(lambda: stage_children(self))
        self.signal_stages(signal.SIGSTOP)

    def resume_stages(self) -> None:
        self.signal_stages(signal.SIGCONT)

    def ingest(self, name: str, sha256: str, request_id: str = "") -> job_pb2.Job:
        request = pool_pb2.CreatePoolRequest(name=name, tar_sha256=[sha256], request_id=request_id)
        return self.pools.CreatePool(request).job


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Poll until a condition holds; its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"it did not come to hold within {seconds} seconds")


def chunks(data: bytes, *, start: int = 0, finish: bool = True) -> Iterator[blob_pb2.UploadBlobRequest]:
    """An upload's messages from an offset on."""
    digest = blob_pb2.BlobDigest(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    for offset in range(start, max(start + 1, len(data)), CHUNK_BYTES):
        part = data[offset : offset + CHUNK_BYTES]
        yield blob_pb2.UploadBlobRequest(
            digest=digest if offset == start else None,
            offset=offset,
            data=part,
            crc32c=google_crc32c.value(part),
            finish=finish and offset + CHUNK_BYTES >= len(data),
        )


def image_tar(images: int, side: int = 24) -> bytes:
    """A plain tar of PNG images; the same number gives the same bytes."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for index in range(images):
            pixels = random.Random(index).randbytes(side * side * 3)
            encoded = io.BytesIO()
            Image.frombytes("RGB", (side, side), pixels).save(encoded, "PNG")
            member = tarfile.TarInfo(f"{index:05d}.png")
            member.size = encoded.tell()
            tar.addfile(member, io.BytesIO(encoded.getvalue()))
    return target.getvalue()


def reason(error: grpc.RpcError) -> tuple[str, dict[str, str]]:
    """The code of the table that a failed call carries, and its details."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "punnet"
    return info.reason, dict(info.metadata)


def stage_children(server: RunningServer) -> list[int]:
    """Processes that run a stage on this server's data folder.

    A child that is about to begin one still has the server's command line. The server waits for it to exec: whoever
    stopped it then would stop the server for good.
    """
    found = []
    own = command_line(str(server.pid))
    for entry in Path("/proc").iterdir():
        command = command_line(entry.name)
        if str(server.data).encode() in command and command != own:
            found.append(int(entry.name))
    return found


def command_line(pid: str) -> bytes:
    """Of a process; empty where it has ended."""
    try:
        return (Path("/proc") / pid / "cmdline").read_bytes()
    except OSError:
        return b""


def environment_of(pid: int) -> set[bytes]:
    """Environment variables of a process."""
    return set((Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0"))


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int((Path("/proc") / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
