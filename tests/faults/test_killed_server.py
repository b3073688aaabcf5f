"""A server killed with -9 in mid-job: the restarted one ends it with the digests of an undisturbed run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from punnet.client import Client
from punnet.v1 import job_pb2

STEPS = 400
READY_SECONDS = 60.0
JOB_SECONDS = 300.0


class SmallJob(Protocol):
    teacher: Path
    images: Path
    pool_tar: Path


@contextmanager
def running_server(data: Path, socket: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server process on a Unix socket, ended on the way out."""
    command = [sys.executable, "-I", "-m", "server", "--data", str(data), "--socket", str(socket), "--threads", "1"]
    with (data.parent / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not (data / "server.json").exists() or str(process.pid) not in (data / "server.json").read_text():
            assert process.poll() is None, (data.parent / "server.log").read_text()
            assert time.monotonic() < deadline, "the server did not get ready"
            time.sleep(0.05)
        yield process, f"unix:{socket}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def start_job(client: Client, small_job: SmallJob) -> str:
    client.create_pool("stripes", [small_job.pool_tar], request_id="pool").wait()
    job = client.compress(
        teacher=small_job.teacher,
        images=small_job.images,
        pool="stripes",
        student="cifar_resnet8",
        steps=STEPS,
        batch_size=32,
        targets=["cpu"],
        seed=5,
        request_id="the-job",
    )
    return job.id


def wait_until_inside(client: Client, job_id: str, stage: str) -> None:
    """Returns while `stage` runs and has done something, but not all."""
    deadline = time.monotonic() + JOB_SECONDS
    while time.monotonic() < deadline:
        job = client.job(job_id)
        assert job.state in (job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING), job
        for status in job.stages:
            if status.name == stage and status.state == job_pb2.STAGE_STATE_RUNNING and status.progress.done > 0:
                return
        time.sleep(0.02)
    raise AssertionError(f"{stage} was never seen running")


def processes_naming(folder: Path) -> list[int]:
    """Ids of the processes whose command line names the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(folder).encode() in command:
                found.append(int(entry.name))
    return found


def reproducible_digests(job: job_pb2.Job) -> dict[str, str]:
    return {artifact.path: artifact.sha256 for artifact in job.artifacts if artifact.reproducible}


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """A short path: 107 bytes is the limit of a socket's."""
    with tempfile.TemporaryDirectory(prefix="pn") as folder:
        yield Path(folder)


def test_a_job_survives_two_kills_with_the_same_digests(
    tmp_path: Path, small_job: SmallJob, socket_folder: Path
) -> None:
    calm, stormy = tmp_path / "calm" / "data", tmp_path / "stormy" / "data"
    for folder in (calm, stormy):
        folder.mkdir(parents=True)
    with running_server(calm, socket_folder / "calm") as (_, address), Client(address) as client:
        undisturbed = client.wait(start_job(client, small_job))

    job_id = ""
    for stage in ("scoring", "distillation"):
        with running_server(stormy, socket_folder / "stormy") as (process, address), Client(address) as client:
            job_id = job_id or start_job(client, small_job)
            wait_until_inside(client, job_id, stage)
            os.kill(process.pid, signal.SIGKILL)
            process.wait(timeout=10)
        deadline = time.monotonic() + 10
        while processes_naming(stormy) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert processes_naming(stormy) == []
    with running_server(stormy, socket_folder / "stormy") as (_, address), Client(address) as client:
        survived = client.wait(job_id)

    assert {"student.onnx", "student.safetensors", "selection.parquet"} <= set(reproducible_digests(undisturbed))
    assert reproducible_digests(survived) == reproducible_digests(undisturbed)
    attempts = {status.name: status.attempt for status in survived.stages}
    assert (attempts["scoring"], attempts["distillation"]) == (2, 2)
