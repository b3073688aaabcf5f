from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from punnet.v1 import compression_pb2, pool_pb2
from tests.service.running_server import RunningServer, image_tar, reason, until


def start_refused(*arguments: str) -> str:
    """Run a server that refuses; what it says."""
    done = subprocess.run(
        [sys.executable, "-I", "-m", "server", *arguments], capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 2, done.stderr
    return done.stderr.decode()


def test_second_server_on_a_data_folder_fails_loudly(server: RunningServer) -> None:
    said = start_refused("--data", str(server.data), "--socket", str(server.folder / "other"))
    assert "another server owns" in said
    assert server.compression.ListJobs(compression_pb2.ListJobsRequest()).jobs == []


@pytest.mark.parametrize("bind", ["0.0.0.0:0", "192.168.1.5:9000", "[::]:0", "example.org:80", "127.0.0.1", ":9"])
def test_address_that_others_could_reach_is_refused(folder: Path, bind: str) -> None:
    start_refused("--data", str(folder / "data"), "--bind", bind)


def test_socket_path_that_is_too_long_is_refused(folder: Path) -> None:
    said = start_refused("--data", str(folder / "data"), "--socket", str(folder / ("s" * 120)))
    assert "107" in said


def test_socket_of_a_live_server_is_not_taken_over(server: RunningServer) -> None:
    said = start_refused("--data", str(server.folder / "mine"), "--socket", str(server.folder / "s"))
    assert "another server listens" in said
    assert server.compression.ListJobs(compression_pb2.ListJobsRequest()).jobs == []


def test_file_in_the_place_of_the_socket_is_kept(folder: Path) -> None:
    (folder / "s").write_text("a letter")
    assert "no socket" in start_refused("--data", str(folder / "data"), "--socket", str(folder / "s"))
    assert (folder / "s").read_text() == "a letter"


def test_socket_of_a_dead_server_is_replaced(server: RunningServer) -> None:
    server.end(signal.SIGKILL)
    assert (server.folder / "s").is_socket()
    server.start()
    assert server.compression.ListJobs(compression_pb2.ListJobsRequest()).jobs == []


@pytest.mark.parametrize("content", [b"no database at all" * 99, b"SQLite format 3\0" + b"\xff" * 4096])
def test_corrupt_database_is_refused_with_a_message(folder: Path, content: bytes) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "punnet.sqlite3").write_bytes(content)
    said = start_refused("--data", str(folder / "data"), "--socket", str(folder / "s"))
    assert "can't be read" in said
    assert "Traceback" not in said


def test_loopback_port_serves_and_is_written_down(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-I", "-m", "server", "--data", str(folder / "data"), "--bind", "127.0.0.1:0"]
    )
    try:
        until((folder / "data" / "server.json").exists)
        address = json.loads((folder / "data" / "server.json").read_text())["address"]
        with grpc.insecure_channel(address) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert not (folder / "data" / "server.json").exists()


def test_two_servers_never_share_a_port(folder: Path) -> None:
    first = subprocess.Popen(
        [sys.executable, "-I", "-m", "server", "--data", str(folder / "a"), "--bind", "127.0.0.1:0"]
    )
    try:
        until((folder / "a" / "server.json").exists)
        address = json.loads((folder / "a" / "server.json").read_text())["address"]
        assert "can't be bound" in start_refused("--data", str(folder / "b"), "--bind", address)
    finally:
        first.send_signal(signal.SIGTERM)
        first.wait(20)


def test_server_maps_no_library_of_the_engine(shared_server: RunningServer) -> None:
    mapped = (Path("/proc") / str(shared_server.pid) / "maps").read_text()
    for heavy in ("numpy", "torch", "onnx", "tensorrt"):
        assert f"/{heavy}/" not in mapped


def test_server_file_says_where_and_who(shared_server: RunningServer) -> None:
    ready = json.loads((shared_server.data / "server.json").read_text())
    assert ready["pid"] == shared_server.pid
    assert ready["address"] == f"unix:{shared_server.folder / 's'}"
    assert (shared_server.folder / "s").stat().st_mode & 0o077 == 0


def test_health_serves_each_service(shared_server: RunningServer) -> None:
    health = health_pb2_grpc.HealthStub(shared_server.channel())
    for name in ("", "punnet.v1.CompressionService", "punnet.v1.BlobService"):
        status = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status
        assert status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_is_there_only_when_asked(server: RunningServer, shared_server: RunningServer) -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    ask = [reflection_pb2.ServerReflectionRequest(list_services="")]
    answers = reflection_pb2_grpc.ServerReflectionStub(shared_server.channel()).ServerReflectionInfo(iter(ask))
    names = {service.name for service in next(answers).list_services_response.service}
    assert "punnet.v1.CompressionService" in names
    with pytest.raises(grpc.RpcError) as refused:
        next(reflection_pb2_grpc.ServerReflectionStub(server.channel()).ServerReflectionInfo(iter(ask)))
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_uncaught_exception_text_never_reaches_the_client(server: RunningServer) -> None:
    database = server.data / "punnet.sqlite3"
    with sqlite3.connect(database) as connection:
        connection.execute("ALTER TABLE job RENAME TO secret_table_name")
    with pytest.raises(grpc.RpcError) as failed:
        server.compression.ListJobs(compression_pb2.ListJobsRequest())
    assert failed.value.code() == grpc.StatusCode.INTERNAL
    code, details = reason(failed.value)
    assert code == "INTERNAL"
    said = (failed.value.details() or "") + str(details)
    assert "job" not in (failed.value.details() or "")
    assert "sqlite" not in said
    log = (server.data / "server.log").read_text()
    assert details["error_id"] in log
    assert "no such table" in log


def test_message_above_four_mebibytes_is_refused_without_harm(shared_server: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        shared_server.pools.CreatePool(pool_pb2.CreatePoolRequest(name="x" * (5 << 20)))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert shared_server.compression.GetCapabilities(compression_pb2.GetCapabilitiesRequest()).version


def test_capabilities_say_what_confines(shared_server: RunningServer) -> None:
    found = shared_server.compression.GetCapabilities(compression_pb2.GetCapabilitiesRequest())
    assert set(found.confinement) == {"read", "write", "tcp", "udp", "signal", "environ"}
    assert found.max_inline_bytes == 2 << 20
    assert "cpu" in found.targets
    assert found.packages["onnx"]
    assert found.devices[0] == "cpu"


def test_sigterm_sends_open_watchers_away_as_unavailable(server: RunningServer, slow_tar: bytes) -> None:
    job = server.ingest("slow", server.upload(slow_tar))
    codes: list[grpc.StatusCode] = []

    def watch() -> None:
        try:
            for _ in server.compression.WatchJob(compression_pb2.WatchJobRequest(id=job.id)):
                started.release()
        except grpc.RpcError as error:
            codes.append(error.code())

    started = threading.Semaphore(0)
    watchers = [threading.Thread(target=watch) for _ in range(20)]
    for watcher in watchers:
        watcher.start()
    for _ in watchers:
        assert started.acquire(timeout=10)
    server.end(signal.SIGTERM)
    for watcher in watchers:
        watcher.join(10)
    assert set(codes) == {grpc.StatusCode.UNAVAILABLE}
    assert server.process is not None
    assert server.process.returncode == 0


def test_idle_server_ends_by_itself(folder: Path) -> None:
    running = RunningServer(folder, options=("--idle-seconds", "1")).start()
    assert running.process is not None
    assert running.process.wait(15) == 0
    assert not (running.data / "server.json").exists()
    running.close()


def test_idle_exit_waits_for_the_running_job(folder: Path) -> None:
    running = RunningServer(folder, options=("--idle-seconds", "1")).start()
    job = running.ingest("pool", running.upload(image_tar(10)))
    assert running.process is not None
    assert running.process.wait(60) == 0
    again = RunningServer(folder).start()
    assert again.job(job.id).state == 4
    again.close()
    running.close()
