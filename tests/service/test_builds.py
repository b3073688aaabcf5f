"""Builds on devices: real agents in processes of their own, and what becomes of the builds of those that die."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from punnet.v1 import blob_pb2, build_pb2, build_pb2_grpc, compression_pb2, job_pb2
from server import job_table
from server.backup import back_up
from server.folders import DataFolder
from server.job_table import ArtifactRow, NewJob
from server.store import LOCAL_TENANT, Store
from tests.service.running_server import RunningServer, image_tar, reason, until

try:
    import tensorrt_rtx

    RTX = tensorrt_rtx.__version__
except ImportError:
    RTX = ""

needs_rtx = pytest.mark.skipif(not RTX, reason="tensorrt_rtx is not installed")
SOURCE = "0" * 31 + "1"
LEASE_SECONDS = 2.0
PATIENCE_SECONDS = 60.0


@dataclass
class Agents:
    """Agents of a test; they are killed at its end."""

    server: RunningServer
    running: list[subprocess.Popen[bytes]]

    def start(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        command = [
            *(sys.executable, "-I", "-c", "from punnet.cli import main; main()", "agent", "--name", name),
            *("--target", "rtx-ada", "--poll", "0.1", "--work", str(self.server.folder / "agents")),
            *("--server", f"unix:{self.server.folder / 's'}", *options),
        ]
        agent = subprocess.Popen(command, stderr=subprocess.PIPE)
        self.running.append(agent)
        return agent


def bundle(folder: Path, layers: int = 1) -> bytes:
    """A bundle for rtx-ada of a network with so many layers."""
    from exporters.bundle import write_bundle
    from tests.unit.exporters import test_bundle
    from tests.unit.exporters.small_onnx import write_model

    made = test_bundle.content(folder, "rtx-ada")
    write_model(made.variants[0].path, layers=layers)
    write_bundle(made, folder / "bundle-rtx-ada.zip")
    return (folder / "bundle-rtx-ada.zip").read_bytes()


def add_finished_compression(data: Path, content: bytes) -> None:
    """A compression that SUCCEEDED with one bundle, as the engine leaves it; no server may own the folder."""
    data.mkdir(mode=0o700)
    folders = DataFolder(data)
    stage = folders.stage(LOCAL_TENANT, "a" * 64) / "out"
    stage.mkdir(parents=True)
    (stage / "bundle-rtx-ada.zip").write_bytes(content)
    row = ArtifactRow(
        path="bundle-rtx-ada.zip", sha256=hashlib.sha256(content).hexdigest(), size=len(content), reproducible=True,
        folder=folders.relative(stage),
    )  # fmt: skip
    store = Store(folders.database)

    def insert(db: Any) -> None:
        job_table.insert_job(db, NewJob(tenant=LOCAL_TENANT, id=SOURCE, kind="compress", spec={}))
        claimed = job_table.claim(db, ("compress",))
        assert claimed is not None
        job_table.finish(db, claimed[0], "SUCCEEDED", None, [row])

    asyncio.run(store.write(insert))
    store.close()


@pytest.fixture
def building(folder: Path, request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    """A server with a finished compression, whose leases are short."""
    layers = getattr(request, "param", 1)
    add_finished_compression(folder / "data", bundle(folder / "made", layers))
    running = RunningServer(folder, options=("--lease-seconds", str(LEASE_SECONDS))).start()
    yield running
    running.close()


@pytest.fixture
def agents(building: RunningServer) -> Iterator[Agents]:
    started = Agents(server=building, running=[])
    yield started
    for agent in started.running:
        agent.kill()
        agent.communicate()


def stub(server: RunningServer) -> build_pb2_grpc.BuildServiceStub:
    return build_pb2_grpc.BuildServiceStub(server.channel())


def create(server: RunningServer, **values: Any) -> job_pb2.Job:
    request = build_pb2.CreateBuildRequest(**{"job_id": SOURCE, "target": "rtx-ada", **values})
    return stub(server).CreateBuild(request).job


def lease(server: RunningServer, agent: str = "ada-1", target: str = "rtx-ada") -> build_pb2.Build | None:
    answer = stub(server).LeaseBuild(build_pb2.LeaseBuildRequest(agent=agent, targets=[target]))
    return answer.build if answer.HasField("build") else None


def leased(server: RunningServer, agent: str = "ada-1") -> build_pb2.Build:
    build = lease(server, agent)
    assert build is not None
    return build


def finish(server: RunningServer, build: build_pb2.Build, **outcome: Any) -> None:
    stub(server).FinishBuild(build_pb2.FinishBuildRequest(job_id=build.job_id, lease=build.lease, **outcome))


def built(server: RunningServer, *names: str) -> build_pb2.BuiltFiles:
    files = []
    for name in names:
        sha256 = server.upload(name.encode())
        digest = blob_pb2.BlobDigest(sha256=sha256, size=len(name))
        files.append(build_pb2.BuiltFile(name=name, digest=digest))
    return build_pb2.BuiltFiles(files=files)


def state(server: RunningServer, job: job_pb2.Job) -> int:
    return int(server.job(job.id).state)


@needs_rtx
def test_an_agent_builds_and_its_engine_is_the_jobs_artifact(building: RunningServer, agents: Agents) -> None:
    job = create(building)
    assert job.kind == job_pb2.JOB_KIND_BUILD
    agent = agents.start("ada-1", "--once")
    ended = building.ended(job.id, PATIENCE_SECONDS)
    assert ended.state == job_pb2.JOB_STATE_SUCCEEDED
    assert agent.wait(PATIENCE_SECONDS) == 0
    paths = {a.path.rpartition(".")[2]: a for a in ended.artifacts}
    report = json.loads(downloaded(building, paths["json"].sha256))
    (row,) = report["variants"]
    engine = downloaded(building, paths["engine"].sha256)
    assert (row["path"], row["engine"]["size"]) == (paths["engine"].path, len(engine))
    assert [(s.name, s.state, s.attempt) for s in ended.stages] == [("building", job_pb2.STAGE_STATE_SUCCEEDED, 1)]
    assert list((building.folder / "agents" / "ada-1").iterdir()) == []


def downloaded(server: RunningServer, sha256: str) -> bytes:
    answer = server.blobs.DownloadBlob(blob_pb2.DownloadBlobRequest(sha256=sha256))
    return b"".join(message.data for message in answer)


@needs_rtx
@pytest.mark.parametrize("building", [80], indirect=True)
def test_a_second_agent_completes_what_a_killed_one_began(building: RunningServer, agents: Agents) -> None:
    job = create(building)
    first = agents.start("ada-1")
    until(lambda: builders_below(first.pid), PATIENCE_SECONDS)
    children = builders_below(first.pid)
    first.send_signal(signal.SIGKILL)
    agents.start("ada-2", "--once")
    ended = building.ended(job.id, PATIENCE_SECONDS)
    assert ended.state == job_pb2.JOB_STATE_SUCCEEDED
    assert ended.stages[0].attempt == 2
    assert {a.path.rpartition(".")[2] for a in ended.artifacts} == {"engine", "json"}
    assert not any(running(pid) for pid in children)
    states = [e.event.state for e in events(building, job) if e.event.state]
    queued, ran = job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING
    assert states == [queued, ran, queued, ran, job_pb2.JOB_STATE_SUCCEEDED]


@needs_rtx
@pytest.mark.parametrize("building", [80], indirect=True)
def test_a_cancelled_build_stops_on_the_device(building: RunningServer, agents: Agents) -> None:
    job = create(building)
    agent = agents.start("ada-1")
    until(lambda: builders_below(agent.pid), PATIENCE_SECONDS)
    building.compression.CancelJob(compression_pb2.CancelJobRequest(id=job.id))
    assert building.ended(job.id, PATIENCE_SECONDS).state == job_pb2.JOB_STATE_CANCELLED
    until(lambda: not builders_below(agent.pid))
    assert agent.poll() is None
    building.compression.DeleteJob(compression_pb2.DeleteJobRequest(id=job.id))


@needs_rtx
@pytest.mark.parametrize("building", [80], indirect=True)
def test_a_build_goes_on_while_the_server_restarts(building: RunningServer, agents: Agents) -> None:
    job = create(building)
    agent = agents.start("ada-1", "--once")
    until(lambda: builders_below(agent.pid), PATIENCE_SECONDS)
    building.end(signal.SIGKILL)
    building.options = ("--lease-seconds", "30")  # longer than a client's longest pause between two tries
    building.start()
    ended = building.ended(job.id, PATIENCE_SECONDS)
    assert ended.state == job_pb2.JOB_STATE_SUCCEEDED
    assert ended.stages[0].attempt == 1  # however long the restart took


@needs_rtx
@pytest.mark.parametrize("building", [80], indirect=True)
def test_an_agent_that_is_told_to_end_gives_its_build_back_at_once(building: RunningServer, agents: Agents) -> None:
    job = create(building)
    agent = agents.start("ada-1")
    until(lambda: builders_below(agent.pid), PATIENCE_SECONDS)
    agent.terminate()
    assert agent.wait(PATIENCE_SECONDS) == 0
    assert state(building, job) == job_pb2.JOB_STATE_QUEUED


def builders_below(agent: int) -> list[int]:
    """The program that an agent started, and the child of that which builds."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if b"exporters." in (entry / "cmdline").read_bytes():
                    status = (entry / "stat").read_text().rpartition(")")[2].split()
                    parents[int(entry.name)] = int(status[1])
            except OSError:
                continue
    programs = [pid for pid, parent in parents.items() if parent == agent]
    children = [pid for pid, parent in parents.items() if parent in programs]
    return [*programs, *children] if children else []


def running(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def events(server: RunningServer, job: job_pb2.Job) -> list[compression_pb2.WatchJobResponse]:
    return list(server.compression.WatchJob(compression_pb2.WatchJobRequest(id=job.id)))


def test_the_same_request_makes_one_build(building: RunningServer) -> None:
    assert create(building, request_id="twice").id == create(building, request_id="twice").id


def test_a_build_is_offered_to_agents_that_serve_its_target_and_to_none_but_the_one_named(
    building: RunningServer,
) -> None:
    create(building, agent="ada-2")
    assert lease(building, "ada-2", "rtx-ampere") is None
    assert lease(building, "ada-1") is None
    assert lease(building, "ada-2") is not None
    assert lease(building, "ada-2") is None


def test_what_an_agent_brings_is_kept_as_it_came(building: RunningServer) -> None:
    job = create(building)
    build = leased(building)
    files = built(building, "a.engine", "device-report.json")
    finish(building, build, built=files)
    finish(building, build, built=files)  # the answer to the first may have been lost
    ended = building.job(job.id)
    assert {(a.path, a.reproducible) for a in ended.artifacts} == {("a.engine", False), ("device-report.json", False)}
    assert downloaded(building, files.files[0].digest.sha256) == b"a.engine"
    back_up(building.data, building.folder / "copy")
    assert [p.name for p in (building.folder / "copy").glob("builds/**/*.engine")] == ["a.engine"]
    building.compression.DeleteJob(compression_pb2.DeleteJobRequest(id=job.id))
    assert not list((building.data / "builds" / LOCAL_TENANT).iterdir())


def test_a_device_that_can_not_build_fails_the_job_with_its_words(building: RunningServer) -> None:
    job = create(building)
    failure = job_pb2.JobError(reason="EXPORT_FAILED", message="No memory.", remedy="Use a larger device.")
    finish(building, leased(building), failure=failure)
    ended = building.job(job.id)
    assert (ended.state, ended.error.reason, ended.error.message) == (
        job_pb2.JOB_STATE_FAILED, "EXPORT_FAILED", "No memory."
    )  # fmt: skip


def test_a_renewed_lease_holds_and_one_that_is_not_ends(building: RunningServer) -> None:
    job = create(building)
    build = leased(building)
    renewal = build_pb2.RenewBuildRequest(job_id=build.job_id, lease=build.lease, progress=job_pb2.Progress(done=1))
    assert not stub(building).RenewBuild(renewal).cancelled
    until(lambda: state(building, job) == job_pb2.JOB_STATE_QUEUED, PATIENCE_SECONDS)
    with pytest.raises(grpc.RpcError) as caught:
        stub(building).RenewBuild(renewal)
    assert reason(caught.value)[0] == "BUILD_LEASE_LOST"
    other = leased(building, "ada-2")
    with pytest.raises(grpc.RpcError) as caught:
        finish(building, build, built=built(building, "device-report.json"))
    assert reason(caught.value)[0] == "BUILD_LEASE_LOST"
    finish(building, other, given_back=True)
    assert state(building, job) == job_pb2.JOB_STATE_QUEUED


def test_a_cancelled_build_of_a_silent_agent_ends_with_its_lease(building: RunningServer) -> None:
    job = create(building)
    leased(building)
    building.compression.CancelJob(compression_pb2.CancelJobRequest(id=job.id))
    assert state(building, job) == job_pb2.JOB_STATE_CANCELLING
    assert building.ended(job.id, PATIENCE_SECONDS).state == job_pb2.JOB_STATE_CANCELLED


@pytest.mark.parametrize(
    ("names", "field"),
    [(["a.engine"], "device-report.json"), (["../a.engine", "device-report.json"], "name"), ([], "1 to 64")],
)
def test_files_of_a_bad_name_or_without_a_report_are_refused(
    building: RunningServer, names: list[str], field: str
) -> None:
    create(building)
    with pytest.raises(grpc.RpcError, match=field) as caught:
        finish(building, leased(building), built=built(building, *names))
    assert reason(caught.value)[0] == "REQUEST_INVALID"


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"job_id": "f" * 32}, "JOB_NOT_FOUND"),
        ({"target": "rtx"}, "BUNDLE_MISSING"),
        ({"target": "android"}, "REQUEST_INVALID"),
        ({"agent": "No name"}, "REQUEST_INVALID"),
    ],
)
def test_a_build_of_nothing_is_refused(building: RunningServer, values: dict[str, str], code: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        create(building, **values)
    assert reason(caught.value)[0] == code


def test_waiting_builds_leave_room_for_compressions(building: RunningServer) -> None:
    jobs = [create(building) for _ in range(8)]
    with pytest.raises(grpc.RpcError) as caught:
        create(building)
    assert reason(caught.value)[0] == "QUOTA"
    assert all(state(building, job) == job_pb2.JOB_STATE_QUEUED for job in jobs)
    tar = building.upload(image_tar(1))
    assert building.ended(building.ingest("some", tar).id).state == job_pb2.JOB_STATE_SUCCEEDED
