from __future__ import annotations

import signal

from punnet.v1 import compression_pb2, job_pb2, pool_pb2
from tests.service.running_server import SLOW_IMAGES, RunningServer, image_tar, stage_children, until


def running_ingest(server: RunningServer, name: str, tar: bytes) -> str:
    job = server.ingest(name, server.upload(tar))
    until(lambda: stage_children(server))
    until(lambda: server.job(job.id).stages[0].state == job_pb2.STAGE_STATE_RUNNING)
    return job.id


def test_kill_of_the_server_leaves_no_orphan_and_a_restart_continues(server: RunningServer, slow_tar: bytes) -> None:
    job_id = running_ingest(server, "killed", slow_tar)
    server.end(signal.SIGKILL)
    until(lambda: not stage_children(server), 5)
    server.start()
    job = server.ended(job_id)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED
    assert job.stages[0].attempt == 2
    assert server.pools.GetPool(pool_pb2.GetPoolRequest(name="killed")).pool.images == SLOW_IMAGES


def test_sigterm_keeps_the_running_job_for_the_next_start(server: RunningServer, slow_tar: bytes) -> None:
    job_id = running_ingest(server, "kept", slow_tar)
    server.end(signal.SIGTERM)
    assert stage_children(server) == []
    server.start()
    assert server.ended(job_id).state == job_pb2.JOB_STATE_SUCCEEDED


def test_events_have_no_gap_over_a_restart(server: RunningServer, slow_tar: bytes) -> None:
    job_id = running_ingest(server, "events", slow_tar)
    server.end(signal.SIGKILL)
    server.start()
    server.ended(job_id)
    stream = server.compression.WatchJob(compression_pb2.WatchJobRequest(id=job_id))
    events = [message.event for message in stream if message.WhichOneof("update") == "event"]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    states = [job_pb2.JobState.Name(e.state) for e in events if e.WhichOneof("event") == "state"]
    assert states == [
        "JOB_STATE_QUEUED",
        "JOB_STATE_RUNNING",
        "JOB_STATE_QUEUED",
        "JOB_STATE_RUNNING",
        "JOB_STATE_SUCCEEDED",
    ]


def test_cancelling_job_is_cancelled_after_kill_of_the_server(server: RunningServer, slow_tar: bytes) -> None:
    job_id = running_ingest(server, "both", slow_tar)
    server.pause_stages()
    server.compression.CancelJob(compression_pb2.CancelJobRequest(id=job_id))
    server.end(signal.SIGKILL)
    server.start()
    assert server.job(job_id).state == job_pb2.JOB_STATE_CANCELLED
    assert stage_children(server) == []


def test_queued_jobs_run_after_a_restart(server: RunningServer, slow_tar: bytes) -> None:
    running_ingest(server, "first", slow_tar)
    queued = server.ingest("second", server.upload(image_tar(5)))
    server.end(signal.SIGKILL)
    server.start()
    assert server.ended(queued.id).state == job_pb2.JOB_STATE_SUCCEEDED


def test_finished_pools_and_jobs_are_there_after_kill_of_the_server(server: RunningServer) -> None:
    job = server.ingest("stays", server.upload(image_tar(7)))
    before = server.ended(job.id)
    server.end(signal.SIGKILL)
    server.start()
    assert server.job(job.id) == before
    assert [pool.name for pool in server.pools.ListPools(pool_pb2.ListPoolsRequest()).pools] == ["stays"]


def test_pool_that_was_moved_before_the_kill_is_announced_after_it(server: RunningServer) -> None:
    import sqlite3

    job = server.ingest("moved", server.upload(image_tar(8)))
    server.ended(job.id)
    server.end(signal.SIGKILL)
    # As a kill between the folder's rename and the job's last note leaves it.
    with sqlite3.connect(server.data / "punnet.sqlite3") as db:
        db.execute("UPDATE job SET state='RUNNING', ended=NULL")
        db.execute("UPDATE pool SET ready=0")
        db.execute("DELETE FROM artifact")
        db.execute("DELETE FROM event WHERE kind='state' AND seq=(SELECT max(seq) FROM event)")
    db.close()
    server.start()
    again = server.ended(job.id)
    assert again.state == job_pb2.JOB_STATE_SUCCEEDED
    assert [artifact.path for artifact in again.artifacts] == ["pool.json"]
    assert server.pools.GetPool(pool_pb2.GetPoolRequest(name="moved")).pool.images == 8
