"""A copy that is made while the server works gives a server with the same jobs, pools and artifacts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from punnet import Client
from punnet.v1 import compression_pb2, pool_pb2
from server.backup import Refused, back_up, restore
from server.schema import SchemaMismatch
from tests.service.running_server import RunningServer, image_tar


def listed(server: RunningServer) -> list[tuple[str, int]]:
    answer = server.compression.ListJobs(compression_pb2.ListJobsRequest())
    return [(job.id, job.state) for job in answer.jobs]


def punnet(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", "from punnet.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, check=False)


@pytest.fixture
def backup(server: RunningServer) -> Path:
    """Of a running server with one finished ingest."""
    job = server.ingest("web", server.upload(image_tar(5)))
    server.ended(job.id)
    back_up(server.data, server.folder / "backup")
    return server.folder / "backup"


def test_a_restored_server_lists_the_jobs_and_serves_the_artifacts(server: RunningServer, backup: Path) -> None:
    before = listed(server)
    restored = RunningServer(server.folder / "2")
    ran = punnet("restore", str(backup), "--data", str(restored.data), "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["jobs"] == 1
    restored.start()
    try:
        assert listed(restored) == before
        with Client(f"unix:{restored.folder / 's'}") as client:
            (pool,) = client.pools()
            assert pool.images == 5
            files = client.download(before[0][0], server.folder / "out")
            assert [file.name for file in files] == ["pool.json"]
            client.verify_pool("web").wait()
    finally:
        restored.close()


def test_a_backup_beside_ingests_and_deletions_is_whole(server: RunningServer, slow_tar: bytes) -> None:
    for number in range(4):
        server.ended(server.ingest(f"web-{number}", server.upload(image_tar(40 + number))).id)
    waiting = server.ingest("slow", server.upload(slow_tar))

    def delete() -> None:
        for number in range(4):
            server.pools.DeletePool(pool_pb2.DeletePoolRequest(name=f"web-{number}"))

    deleting = threading.Thread(target=delete)
    deleting.start()
    back_up(server.data, server.folder / "backup")
    deleting.join()
    restored = RunningServer(server.folder / "2")
    restore(server.folder / "backup", restored.data)
    restored.start()
    try:
        assert restored.ended(waiting.id, 120.0).state == server.ended(waiting.id, 120.0).state
        for pool in restored.pools.ListPools(pool_pb2.ListPoolsRequest()).pools:
            job = restored.pools.VerifyPool(pool_pb2.VerifyPoolRequest(name=pool.name)).job
            assert restored.ended(job.id).error.reason == ""
    finally:
        restored.close()


def test_a_byte_that_has_changed_is_found_and_nothing_is_restored(server: RunningServer, backup: Path) -> None:
    shard = next(backup.rglob("*.tar"))
    with shard.open("r+b") as file:
        file.write(b"\xff")
    with pytest.raises(Refused, match="differs from its digest"):
        restore(backup, server.folder / "3" / "data")
    assert not (server.folder / "3" / "data").exists()


def test_nothing_is_written_over(server: RunningServer, backup: Path) -> None:
    with pytest.raises(Refused, match="is not empty"):
        back_up(server.data, backup)
    with pytest.raises(Refused, match="is not empty"):
        restore(backup, server.data)
    ran = punnet("restore", str(backup), "--data", str(server.data))
    assert ran.returncode == 2
    assert b"is not empty" in ran.stderr


def test_what_is_no_backup_or_of_a_newer_schema_is_refused(server: RunningServer, backup: Path) -> None:
    with pytest.raises(Refused, match="no finished backup"):
        restore(server.folder / "nothing", server.folder / "3")
    document = json.loads((backup / "backup.json").read_text())
    (backup / "backup.json").write_text(json.dumps(document | {"schema": 99}))
    with pytest.raises(SchemaMismatch, match="has schema 99"):
        restore(backup, server.folder / "3")
    escaping = document | {"pins": [{"path": "../out", "blob": "a"}]}
    (backup / "backup.json").write_text(json.dumps(escaping))
    with pytest.raises(Refused, match="leaves the data folder"):
        restore(backup, server.folder / "3")


def test_a_backup_is_for_its_user_alone(backup: Path) -> None:
    assert [str(p) for p in backup.rglob("*") if p.is_file() and p.stat().st_mode & 0o077] == []
    assert os.stat(backup).st_mode & 0o077 == 0
