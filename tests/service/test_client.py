"""The client against a real server process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, NoReturn

import onnx
import pytest

from punnet import AsyncClient, Client, PunnetError
from punnet.blobs import Transfer
from punnet.errors import InvalidRequest, JobCancelled, NotFound
from punnet.v1 import job_pb2
from tests.conftest import SmallJob
from tests.service.running_server import RunningServer, image_tar, until


def address(server: RunningServer) -> str:
    return f"unix:{server.folder / 's'}"


@pytest.fixture
def client(shared_server: RunningServer) -> Iterator[Client]:
    with Client(address(shared_server)) as opened:
        yield opened


@pytest.fixture(scope="module")
def pool(shared_server: RunningServer) -> str:
    tar = shared_server.folder / "pool.tar"
    tar.write_bytes(image_tar(40))
    with Client(address(shared_server)) as opened:
        opened.create_pool("tiny", [tar]).wait()
    return "tiny"


def test_pool_is_uploaded_ingested_and_listed(client: Client, pool: str) -> None:
    assert client.pool(pool).images == 40
    assert pool in {p.name for p in client.pools()}


def test_upload_is_shown_and_done_once(client: Client, folder: Path) -> None:
    tar = folder / "again.tar"
    tar.write_bytes(image_tar(50))
    seen: list[Transfer] = []
    client.create_pool("again", [tar], progress=seen.append).wait()
    assert seen[-1] == Transfer(done=tar.stat().st_size, total=tar.stat().st_size)
    seen.clear()
    client.create_pool("once-more", [tar], progress=seen.append).cancel()
    assert seen == []


def test_inspection_finds_the_convention_and_is_downloaded(client: Client, small_job: SmallJob, folder: Path) -> None:
    job = client.inspect(small_job.teacher, small_job.images)
    stages: list[str] = []
    result = job.wait(lambda stage: stages.append(stage.name))
    assert job.state == "SUCCEEDED"
    assert job.error is None
    assert "intake" in stages
    paths = job.download(folder / "out")
    assert {a.path for a in result.artifacts} == {str(p.relative_to(folder / "out")) for p in paths}
    found = json.loads((folder / "out" / "inspection.json").read_text())
    assert (found["layout"], found["channels"]) == ("NCHW", "RGB")


def test_external_data_beside_the_teacher_is_sent_along(client: Client, small_job: SmallJob, folder: Path) -> None:
    model = onnx.load(small_job.teacher)
    onnx.save(
        model, folder / "teacher.onnx", save_as_external_data=True, location="teacher.onnx.data", size_threshold=0
    )
    assert (folder / "teacher.onnx.data").stat().st_size > 1000
    client.inspect(folder / "teacher.onnx", small_job.images).wait()


def test_validation_takes_bytes_and_a_mapping(client: Client, small_job: SmallJob, pool: str) -> None:
    images = {label.name: sorted(label.iterdir()) for label in small_job.images.iterdir()}
    job = client.compress(small_job.teacher.read_bytes(), images, pool, validate_only=True, layout="nchw")
    assert "inspection.json" in {a.path for a in job.wait().artifacts}


def test_same_request_id_gives_the_same_job(client: Client, small_job: SmallJob, pool: str) -> None:
    first, second = (
        client.compress(small_job.teacher, small_job.images, pool, validate_only=True, request_id="one")
        for _ in range(2)
    )
    assert first.id == second.id
    with pytest.raises(InvalidRequest) as caught:
        client.compress(small_job.teacher, small_job.images, pool, validate_only=True, request_id="one", seed=5)
    assert caught.value.code == "REQUEST_ID_REUSED"


def test_unknown_things_are_not_found(client: Client, small_job: SmallJob) -> None:
    with pytest.raises(NotFound) as caught:
        client.compress(small_job.teacher, small_job.images, "no-such-pool")
    assert caught.value.code == "POOL_NOT_FOUND"
    assert caught.value.remedy
    with pytest.raises(NotFound):
        client.job("0" * 32)


def test_failed_job_raises_what_its_stage_said(client: Client, small_job: SmallJob) -> None:
    job = client.inspect(b"\x08\x08no model", small_job.images)
    with pytest.raises(PunnetError) as caught:
        job.wait()
    assert caught.value.code.startswith("MODEL_")
    assert caught.value.details["stage"] == "intake"
    assert type(job.error) is type(caught.value)
    assert job.state == "FAILED"


def test_watch_numbers_events_without_gaps_from_any_point(client: Client, small_job: SmallJob) -> None:
    job = client.inspect(small_job.teacher, small_job.images, seed=1)
    events = [u.event for u in job.watch() if u.WhichOneof("update") == "event"]
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert events[-1].state == job_pb2.JOB_STATE_SUCCEEDED
    later = [u.event.seq for u in job.watch(after_seq=2) if u.WhichOneof("update") == "event"]
    assert later == list(range(3, len(events) + 1))


def test_watch_that_is_left_early_ends_its_stream(client: Client, small_job: SmallJob) -> None:
    updates = client.inspect(small_job.teacher, small_job.images, seed=2).watch()
    assert next(iter(updates)).WhichOneof("update") == "snapshot"
    updates.close()  # type: ignore[attr-defined]
    assert client.jobs(1)


def test_cancelled_job_raises_job_cancelled(client: Client, folder: Path, slow_tar: bytes) -> None:
    tar = folder / "slow.tar"
    tar.write_bytes(slow_tar)
    job = client.create_pool("slow", [tar])
    job.cancel()
    with pytest.raises(JobCancelled):
        job.wait()
    assert job.state == "CANCELLED"
    assert isinstance(job.error, JobCancelled)


def test_deleted_job_is_gone(client: Client, small_job: SmallJob) -> None:
    job = client.inspect(small_job.teacher, small_job.images, seed=3)
    job.wait()
    client.delete(job.id)
    with pytest.raises(NotFound):
        client.job(job.id)
    assert job.id not in {j.id for j in client.jobs()}


def test_unfinished_job_has_nothing_to_download(client: Client, folder: Path, slow_tar: bytes) -> None:
    tar = folder / "slow.tar"
    tar.write_bytes(slow_tar)
    job = client.create_pool("slower", [tar])
    try:
        with pytest.raises(InvalidRequest) as caught:
            job.download(folder / "out")
        assert caught.value.code == "JOB_NOT_FINISHED"
    finally:
        job.cancel()


def test_jobs_are_paged_newest_first(client: Client, small_job: SmallJob) -> None:
    ids = [client.inspect(small_job.teacher, small_job.images, seed=seed).id for seed in (10, 11)]
    assert [job.id for job in client.jobs(2)] == ids[::-1]


def test_capabilities_say_version_and_devices(client: Client) -> None:
    found = client.capabilities()
    assert found.version
    assert "cpu" in found.devices


def test_async_client_watches_several_jobs_at_once(shared_server: RunningServer, small_job: SmallJob) -> None:
    async def work() -> list[job_pb2.Job]:
        async with AsyncClient(address(shared_server)) as opened:
            jobs = [await opened.inspect(small_job.teacher, small_job.images, seed=20 + n) for n in range(3)]
            return await asyncio.gather(*(opened.wait(job.id) for job in jobs))

    assert [job.state for job in asyncio.run(work())] == [job_pb2.JOB_STATE_SUCCEEDED] * 3


def test_wait_outlives_a_server_that_is_killed_and_comes_back(server: RunningServer, slow_tar: bytes) -> None:
    tar = server.folder / "slow.tar"
    tar.write_bytes(slow_tar)
    with Client(address(server)) as opened:
        job = opened.create_pool("kept", [tar])
        seqs: list[int] = []

        def watch() -> None:
            seqs.extend(u.event.seq for u in job.watch() if u.WhichOneof("update") == "event")

        watcher = threading.Thread(target=watch)
        watcher.start()
        until(lambda: job.state == "RUNNING")
        server.end(signal.SIGKILL)
        time.sleep(0.5)
        server.start()
        watcher.join(120)
        assert job.wait().id == job.id
    assert seqs == list(range(1, len(seqs) + 1))


def test_two_clients_at_once_start_one_private_server(folder: Path) -> None:
    clients = [_start_client(folder) for _ in range(2)]
    said = {started.communicate(timeout=60)[0] for started in clients}
    record = json.loads((folder / "data" / "server.json").read_text())
    try:
        assert [started.returncode for started in clients] == [0, 0]
        assert said == {f"{record['address']} 0\n"}
        assert record["address"].startswith(f"unix:{folder}/punnet-")
    finally:
        _end_private_server(folder)


def test_private_server_of_other_code_makes_way_for_one_of_this(folder: Path) -> None:
    place = folder / "data" / "server.json"
    try:
        _start_client(folder).communicate(timeout=60)
        first = json.loads(place.read_text())
        place.write_text(json.dumps(first | {"installation": "of yesterday"}))
        said, _ = _start_client(folder).communicate(timeout=60)
        second = json.loads(place.read_text())
        assert said == f"{first['address']} 0\n"
        assert second == first | {"pid": second["pid"]}
        assert second["pid"] != first["pid"]
        assert _start_client(folder).communicate(timeout=60)[0] == said
        assert json.loads(place.read_text()) == second
    finally:
        _end_private_server(folder)


def _start_client(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "PUNNET_DATA": str(folder / "data")}
    environment.pop("PUNNET_SERVER", None)
    code = "from punnet import Client\nwith Client() as c: print(c.address, len(c.jobs()))"
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)


def _end_private_server(folder: Path) -> None:
    record = json.loads((folder / "data" / "server.json").read_text())
    os.kill(record["pid"], signal.SIGTERM)
    until(lambda: not (folder / "data" / "server.json").exists())
    until(lambda: not Path(f"/proc/{record['pid']}").exists() or _is_zombie(record["pid"]))


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_interrupt_between_start_and_wait_of_a_step_ends_the_watch(
    server: RunningServer, slow_tar: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = asyncio.run_coroutine_threadsafe

    def interrupted(work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> NoReturn:
        monkeypatch.undo()
        started(work, loop)
        raise KeyboardInterrupt

    job = server.ingest("slow", server.upload(slow_tar)).id
    with Client(address(server)) as client:
        until(lambda: client.job(job).state == job_pb2.JOB_STATE_RUNNING)
        server.pause_stages()
        updates = client.watch(job)
        while next(updates).event.stage.state != job_pb2.STAGE_STATE_RUNNING:
            pass  # after the event of the stage's start nothing follows while it is stopped
        monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(updates)
        server.resume_stages()
        client.cancel(job)
