"""What an operator watches: metrics in Prometheus' form, and a log with the ids of jobs and stages."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from punnet.cli import app
from punnet.errors import ServerUnavailable
from punnet.v1 import compression_pb2
from tests.service.running_server import RunningServer, image_tar


@pytest.fixture
def watched(folder: Path) -> Iterator[RunningServer]:
    server = RunningServer(folder, options=("--metrics", "127.0.0.1:0")).start()
    yield server
    server.close()


def metrics(server: RunningServer) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    address = json.loads((server.data / "server.json").read_text())["metrics"]
    with urllib.request.urlopen(address, timeout=20) as answer:
        text = answer.read().decode()
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def value(found: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def test_metrics_say_what_ran_and_what_waits(watched: RunningServer, slow_tar: bytes) -> None:
    sha256 = watched.upload(image_tar(3))
    watched.ended(watched.ingest("web", sha256).id)
    running = watched.ingest("slow", watched.upload(slow_tar))
    watched.pause_stages()
    watched.ingest("waits", sha256)
    with pytest.raises(grpc.RpcError):
        watched.compression.GetJob(compression_pb2.GetJobRequest(id="0" * 32))
    found = metrics(watched)
    assert value(found, "punnet_jobs", kind="ingest", state="SUCCEEDED") == 1
    assert value(found, "punnet_jobs", kind="ingest", state="RUNNING") == 1
    assert value(found, "punnet_queue_length") == 1
    assert value(found, "punnet_queue_oldest_seconds") > 0
    assert value(found, "punnet_jobs_ended_total", state="SUCCEEDED") == 1
    assert value(found, "punnet_stage_seconds_count", stage="ingest") == 1
    assert value(found, "punnet_stage_ends_total", stage="ingest", state="SUCCEEDED") == 1
    assert value(found, "punnet_stored_bytes", what="blobs") >= len(slow_tar)
    assert value(found, "punnet_stored_bytes", what="pools") > 0
    create = "/punnet.v1.PoolService/CreatePool"
    assert value(found, "punnet_rpc_seconds_count", method=create, code="OK") == 3
    get = "/punnet.v1.CompressionService/GetJob"
    assert value(found, "punnet_rpc_seconds_count", method=get, code="NOT_FOUND") == 1
    assert value(found, "punnet_free_disk_bytes") > 0
    watched.resume_stages()
    watched.compression.CancelJob(compression_pb2.CancelJobRequest(id=running.id))


def test_metrics_hold_no_names_and_nothing_else_is_served_there(watched: RunningServer) -> None:
    watched.ended(watched.ingest("my-secret-name", watched.upload(image_tar(2))).id)
    address = json.loads((watched.data / "server.json").read_text())["metrics"]
    with urllib.request.urlopen(address, timeout=20) as answer:
        text = answer.read().decode()
    assert "my-secret-name" not in text
    assert "local" not in text
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(address.replace("/metrics", "/"), timeout=20)


def test_every_line_of_a_jobs_log_carries_its_id_and_its_stages(watched: RunningServer) -> None:
    job = watched.ingest("web", watched.upload(image_tar(3)))
    watched.ended(job.id)
    watched.end()
    lines = [json.loads(line) for line in (watched.data / "server.log").read_text().splitlines()]
    stages = [line for line in lines if line["message"] == "stage"]
    assert [(line["job"], line["stage"], line["state"]) for line in stages] == [
        (job.id, "ingest", "RUNNING"),
        (job.id, "ingest", "SUCCEEDED"),
    ]
    (ended,) = [line for line in lines if line["message"] == "job ended"]
    assert (ended["job"], ended["state"]) == (job.id, "SUCCEEDED")


def test_health_is_an_exit_status(watched: RunningServer) -> None:
    address = f"unix:{watched.folder / 's'}"
    assert CliRunner().invoke(app, ["health", "--data", str(watched.data)]).output == f"{address} serves.\n"
    assert CliRunner().invoke(app, ["health", "--server", address]).exit_code == 0
    watched.end()
    for arguments in (["--data", str(watched.data)], ["--server", address]):
        refused = CliRunner().invoke(app, ["health", *arguments])
        assert isinstance(refused.exception, ServerUnavailable)


def test_the_environment_sets_a_server_and_a_bad_value_ends_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUNNET_CPU_SLOTS", "0")
    server = RunningServer(folder)
    with pytest.raises(AssertionError, match="--cpu-slots must be at least 1"):
        server.start()
    server.end()
    monkeypatch.setenv("PUNNET_CPU_SLOTS", "many")
    with pytest.raises(AssertionError, match="PUNNET_CPU_SLOTS is 'many', no int"):
        server.start()
    server.end()
