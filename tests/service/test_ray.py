"""Stages as tasks of a real Ray cluster of this machine."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pu_engine.pipeline import COMPRESS
from punnet import Client
from punnet.v1 import job_pb2, pool_pb2
from server.folders import DataFolder
from tests.conftest import SmallJob
from tests.service.running_server import RunningServer, image_tar, stage_children, until

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = pytest.mark.slow

START_SECONDS = 300.0
CHILD_SECONDS = 120.0
JOB_SECONDS = 300.0
THREADS = "1"


@pytest.fixture(scope="module")
def on_ray() -> Iterator[RunningServer]:
    folder = Path(tempfile.mkdtemp(prefix="pn-", dir="/tmp"))
    running = RunningServer(folder, options=("--runner", "ray", "--threads", THREADS), start_seconds=START_SECONDS)
    try:
        yield running.start()
    finally:
        running.close()
        shutil.rmtree(folder)


@pytest.fixture
def here(folder: Path) -> Iterator[RunningServer]:
    running = RunningServer(folder, options=("--threads", THREADS)).start()
    yield running
    running.close()


def compressed(server: RunningServer, job: SmallJob) -> Mapping[str, str]:
    """The digest of each stage's result in a small job."""
    with Client(server.address) as client:
        client.create_pool("stripes", [job.pool_tar]).wait()
        done = client.compress(
            job.teacher, job.images, "stripes", student="cifar_resnet8", steps=40, batch_size=32, picks=400,
            targets=["cpu"],
        )  # fmt: skip
        done.wait()
        state = client.job(done.id)
    assert state.state == job_pb2.JOB_STATE_SUCCEEDED
    manifests = [json.loads(p.read_text()) for p in (server.data / "stages").glob("*/*/out/manifest.json")]
    return {m["stage"]: m["digest"] for m in manifests}


@pytest.mark.timeout(3600)
def test_a_job_has_the_digests_of_the_local_runner(
    on_ray: RunningServer, here: RunningServer, small_job: SmallJob
) -> None:
    found, expected = compressed(on_ray, small_job), compressed(here, small_job)
    # The report tells times.
    names = {stage.name for stage in COMPRESS} - {"report", "budget"}
    assert {name: found.get(name) for name in names} == {name: expected.get(name) for name in names}
    scoring = next(p for p in (on_ray.data / "stages").glob("*/*") if (p / "out" / "shard-00001.logits.npy").exists())
    assert json.loads((scoring / "out" / "manifest.json").read_text())["result"]["taken_over"] == small_job.pool_images
    assert not (scoring / "parts").exists()


def test_cancelled_job_ends_once_its_task_has_gone(on_ray: RunningServer, slow_tar: bytes) -> None:
    job = on_ray.ingest("cancelled", on_ray.upload(slow_tar))
    until(lambda: confined(on_ray), CHILD_SECONDS)
    with Client(on_ray.address) as client:
        client.cancel(job.id)
    assert on_ray.ended(job.id, JOB_SECONDS).state == job_pb2.JOB_STATE_CANCELLED
    assert confined(on_ray) == []


def test_task_whose_worker_was_killed_runs_again(on_ray: RunningServer, slow_tar: bytes) -> None:
    job = on_ray.ingest("killed", on_ray.upload(slow_tar))
    (child,) = until(lambda: confined(on_ray), CHILD_SECONDS)
    os.kill(parent_of(child), signal.SIGKILL)
    done = on_ray.ended(job.id, JOB_SECONDS)
    assert (done.state, done.stages[0].attempt) == (job_pb2.JOB_STATE_SUCCEEDED, 1)


def test_killed_driver_is_replaced(on_ray: RunningServer, slow_tar: bytes) -> None:
    job = on_ray.ingest("driver", on_ray.upload(slow_tar))
    until(lambda: confined(on_ray), CHILD_SECONDS)
    os.kill(driver_of(on_ray), signal.SIGKILL)
    assert on_ray.ended(job.id, JOB_SECONDS).state == job_pb2.JOB_STATE_SUCCEEDED


def test_killed_server_leaves_no_process_and_its_job_goes_on(on_ray: RunningServer, slow_tar: bytes) -> None:
    job = on_ray.ingest("front", on_ray.upload(slow_tar))
    until(lambda: confined(on_ray), CHILD_SECONDS)
    on_ray.end(signal.SIGKILL)
    on_ray.start()
    assert on_ray.ended(job.id, JOB_SECONDS).state == job_pb2.JOB_STATE_SUCCEEDED
    assert driver_of(on_ray)


def test_server_that_ends_takes_its_cluster_with_it(folder: Path) -> None:
    server = RunningServer(folder, options=("--runner", "ray"), start_seconds=START_SECONDS).start()
    assert marked(server)
    server.close()
    until(lambda: not marked(server), CHILD_SECONDS)


def test_stage_goes_by_way_of_a_store_and_leaves_nothing_there(folder: Path) -> None:
    (folder / "store").mkdir()
    options = ("--runner", "ray", "--store", f"file://{folder / 'store'}")
    server = RunningServer(folder, options=options, start_seconds=START_SECONDS).start()
    try:
        good = server.ended(server.ingest("good", server.upload(image_tar(20))).id, JOB_SECONDS)
        bad = server.ended(server.ingest("bad", server.upload(b"no tar at all")).id, JOB_SECONDS)
        assert good.state == job_pb2.JOB_STATE_SUCCEEDED
        assert server.pools.GetPool(pool_pb2.GetPoolRequest(name="good")).pool.images == 20
        assert bad.error.reason in ("ARCHIVE_REJECTED", "POOL_INVALID")
        assert [path for path in (folder / "store").rglob("*") if path.is_file()] == []
    finally:
        server.close()


def test_cluster_elsewhere_is_reached_by_its_client_port(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ports = [f"--port={free_port()}", f"--ray-client-server-port={(client := free_port())}"]
    head = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", *ports, "--num-cpus=2"]
    with subprocess.Popen([*head, "--include-dashboard=false", f"--temp-dir={folder / 'r'}"]) as ray_head:
        server = RunningServer(
            folder, options=("--runner", f"ray://127.0.0.1:{client}", "--threads", "2"), start_seconds=START_SECONDS
        )
        try:
            until(lambda: listens(client), START_SECONDS)
            server.start()
            job = server.ended(server.ingest("far", server.upload(image_tar(20))).id, JOB_SECONDS)
            assert job.state == job_pb2.JOB_STATE_SUCCEEDED
            server.close()
        finally:
            ray_head.terminate()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def confined(server: RunningServer) -> list[int]:
    return stage_children(server)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def marked(server: RunningServer) -> list[int]:
    """Processes of the server's cluster."""
    mark = f"PUNNET_RAY_OF={DataFolder(server.data).id}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def driver_of(server: RunningServer) -> int:
    (driver,) = [
        pid for pid in marked(server) if b"server.runners.ray_driver" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return driver
