"""The life of a pool on a real server: appended to, verified, shown, deleted."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from punnet.v1 import blob_pb2, job_pb2, pool_pb2
from tests.service.running_server import RunningServer, image_tar, reason, stage_children, until


def version(server: RunningServer, name: str) -> Path:
    pool = server.pools.GetPool(pool_pb2.GetPoolRequest(name=name)).pool
    return server.data / "pools" / "local" / name / pool.sha256


def made(server: RunningServer, name: str, images: int = 20) -> Path:
    assert server.ended(server.ingest(name, server.upload(image_tar(images))).id).state == job_pb2.JOB_STATE_SUCCEEDED
    return version(server, name)


def append(server: RunningServer, name: str, images: int, request_id: str = "") -> job_pb2.Job:
    tars = [server.upload(image_tar(images))]
    request = pool_pb2.AppendPoolRequest(name=name, tar_sha256=tars, request_id=request_id)
    return server.pools.AppendPool(request).job


def verified(server: RunningServer, name: str) -> job_pb2.Job:
    return server.ended(server.pools.VerifyPool(pool_pb2.VerifyPoolRequest(name=name)).job.id)


def shard_identities(folder: Path) -> list[tuple[str, str, int]]:
    shards = json.loads((folder / "pool.json").read_text())["shards"]
    return [(shard["name"], shard["sha256"], (folder / f"{shard['name']}.tar").stat().st_ino) for shard in shards]


def test_appended_pool_keeps_its_shards(server: RunningServer) -> None:
    before = shard_identities(made(server, "grows", 20))
    created = server.pools.GetPool(pool_pb2.GetPoolRequest(name="grows")).pool.create_time
    job = append(server, "grows", 30, request_id="again")
    ended = server.ended(job.id)
    assert (ended.state, ended.kind) == (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_KIND_INGEST)
    pool = server.pools.GetPool(pool_pb2.GetPoolRequest(name="grows")).pool
    assert (pool.images, pool.shards, pool.duplicates) == (50, 2, 20)
    assert pool.create_time == created
    assert shard_identities(version(server, "grows"))[:1] == before
    assert [p.name for p in (server.data / "pools" / "local" / "grows").iterdir()] == [pool.sha256]
    assert verified(server, "grows").state == job_pb2.JOB_STATE_SUCCEEDED
    assert append(server, "grows", 30, request_id="again").id == job.id


def test_running_job_keeps_the_version_that_it_began_with(server: RunningServer) -> None:
    old = made(server, "held", 20)
    verifying = server.pools.VerifyPool(pool_pb2.VerifyPoolRequest(name="held")).job
    server.pause_stages()
    appending = append(server, "held", 25)  # waits behind it: one short job at a time
    for request, code in (
        (lambda: append(server, "held", 25), "POOL_IN_USE"),
        (lambda: server.pools.DeletePool(pool_pb2.DeletePoolRequest(name="held")), "POOL_IN_USE"),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            request()
        assert reason(refused.value)[0] == code
        assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    server.resume_stages()
    assert server.ended(verifying.id).state == job_pb2.JOB_STATE_SUCCEEDED
    assert server.ended(appending.id).state == job_pb2.JOB_STATE_SUCCEEDED
    until(lambda: not old.exists())


def test_flipped_bit_fails_the_verification_every_time(server: RunningServer) -> None:
    folder = made(server, "rots", 20)
    assert verified(server, "rots").state == job_pb2.JOB_STATE_SUCCEEDED
    shard = folder / "shard-00000.tar"
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    for _ in range(2):
        job = verified(server, "rots")
        assert job.kind == job_pb2.JOB_KIND_VERIFY_POOL
        assert job.error.reason == "POOL_DAMAGED"
        assert "image '00000' in shard-00000.tar" in job.error.message


def test_described_pool_has_a_page(shared_server: RunningServer) -> None:
    made(shared_server, "shown", 12)
    job = shared_server.pools.DescribePool(pool_pb2.DescribePoolRequest(name="shown")).job
    ended = shared_server.ended(job.id)
    assert ended.kind == job_pb2.JOB_KIND_DESCRIBE_POOL
    files = {a.path: a.sha256 for a in ended.artifacts}
    assert set(files) == {"pool.html", "pool-summary.json"}
    stream = shared_server.blobs.DownloadBlob(blob_pb2.DownloadBlobRequest(sha256=files["pool.html"]))
    assert b"".join(part.data for part in stream).count(b"<img") == 12


def test_deleted_pool_is_gone_and_its_name_is_free(server: RunningServer) -> None:
    folder = made(server, "gone", 10)
    server.pools.DeletePool(pool_pb2.DeletePoolRequest(name="gone"))
    assert not folder.parent.exists()
    for request in (
        lambda: server.pools.GetPool(pool_pb2.GetPoolRequest(name="gone")),
        lambda: server.pools.DeletePool(pool_pb2.DeletePoolRequest(name="gone")),
        lambda: server.pools.VerifyPool(pool_pb2.VerifyPoolRequest(name="gone")),
        lambda: append(server, "gone", 10),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            request()
        assert reason(refused.value)[0] == "POOL_NOT_FOUND"
    made(server, "gone", 10)


def test_kill_of_the_server_while_appending_goes_on_after_it(server: RunningServer, slow_tar: bytes) -> None:
    import signal

    before = shard_identities(made(server, "killed", 10))
    request = pool_pb2.AppendPoolRequest(name="killed", tar_sha256=[server.upload(slow_tar)])
    job = server.pools.AppendPool(request).job
    until(lambda: stage_children(server))
    server.end(signal.SIGKILL)
    server.start()
    assert server.pools.GetPool(pool_pb2.GetPoolRequest(name="killed")).pool.images == 10
    assert server.ended(job.id).state == job_pb2.JOB_STATE_SUCCEEDED
    assert shard_identities(version(server, "killed"))[:1] == before
    assert verified(server, "killed").state == job_pb2.JOB_STATE_SUCCEEDED


def test_appended_pool_that_was_moved_before_the_kill_is_announced_after_it(server: RunningServer) -> None:
    import signal
    import sqlite3

    made(server, "moved", 10)
    job = append(server, "moved", 15)
    server.ended(job.id)
    new = version(server, "moved")
    server.end(signal.SIGKILL)
    # As a kill between the folder's rename and the note of it leaves it.
    with sqlite3.connect(server.data / "punnet.sqlite3") as db:
        db.execute("UPDATE job SET state='RUNNING', ended=NULL WHERE id=?", (job.id,))
        db.execute("UPDATE pool SET ready=0")
        db.execute("DELETE FROM artifact WHERE job_id=?", (job.id,))
    db.close()
    server.start()
    assert server.ended(job.id).state == job_pb2.JOB_STATE_SUCCEEDED
    assert version(server, "moved") == new


def test_shrink_is_recorded_and_its_range_is_checked(shared_server: RunningServer) -> None:
    tars = [shared_server.upload(image_tar(6, side=40))]
    for side, quality, field in ((7, 0, "short_side"), (16, 101, "quality")):
        shrink = pool_pb2.Shrink(short_side=side, quality=quality)
        with pytest.raises(grpc.RpcError) as refused:
            shared_server.pools.CreatePool(pool_pb2.CreatePoolRequest(name="small", tar_sha256=tars, shrink=shrink))
        assert field in str(refused.value)
    shrink = pool_pb2.Shrink(short_side=16)
    job = shared_server.pools.CreatePool(pool_pb2.CreatePoolRequest(name="small", tar_sha256=tars, shrink=shrink)).job
    shared_server.ended(job.id)
    pool = shared_server.pools.GetPool(pool_pb2.GetPoolRequest(name="small")).pool
    assert (pool.shrink.short_side, pool.shrink.quality) == (16, 90)
