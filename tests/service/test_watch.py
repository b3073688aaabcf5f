from __future__ import annotations

import threading

import grpc
import pytest

from punnet.v1 import compression_pb2, job_pb2
from tests.service.running_server import RunningServer, image_tar, reason


def watch(server: RunningServer, job_id: str, after_seq: int = 0) -> list[compression_pb2.WatchJobResponse]:
    return list(server.compression.WatchJob(compression_pb2.WatchJobRequest(id=job_id, after_seq=after_seq)))


def events(messages: list[compression_pb2.WatchJobResponse]) -> list[job_pb2.JobEvent]:
    return [message.event for message in messages if message.WhichOneof("update") == "event"]


def test_watch_brings_snapshot_then_gapless_events_to_the_end(shared_server: RunningServer) -> None:
    job = shared_server.ingest("gapless", shared_server.upload(image_tar(30)))
    messages = watch(shared_server, job.id)
    assert messages[0].WhichOneof("update") == "snapshot"
    found = events(messages)
    assert [event.seq for event in found] == list(range(1, len(found) + 1))
    states = [event.state for event in found if event.WhichOneof("event") == "state"]
    assert states == [job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_SUCCEEDED]
    assert messages[-1].event.state == job_pb2.JOB_STATE_SUCCEEDED


def test_watch_has_no_gaps_across_reconnects(shared_server: RunningServer, slow_tar: bytes) -> None:
    job = shared_server.ingest("reconnect", shared_server.upload(slow_tar))
    seen: list[int] = []
    while True:
        stream = shared_server.compression.WatchJob(
            compression_pb2.WatchJobRequest(id=job.id, after_seq=seen[-1] if seen else 0)
        )
        final = False
        for message in stream:
            if message.WhichOneof("update") == "event":
                seen.append(message.event.seq)
                final = message.event.state == job_pb2.JOB_STATE_SUCCEEDED
                break
        stream.cancel()
        if final:
            break
    assert seen == list(range(1, len(seen) + 1))


def test_all_of_many_watchers_see_every_event(shared_server: RunningServer) -> None:
    job = shared_server.ingest("many", shared_server.upload(image_tar(31)))
    found: list[list[int]] = []

    def follow() -> None:
        found.append([event.seq for event in events(watch(shared_server, job.id))])

    watchers = [threading.Thread(target=follow) for _ in range(30)]
    for watcher in watchers:
        watcher.start()
    for watcher in watchers:
        watcher.join(60)
    whole = [event.seq for event in events(watch(shared_server, job.id))]
    assert whole == list(range(1, len(whole) + 1))
    assert len(whole) >= 5  # QUEUED, RUNNING, the stage's start and end, SUCCEEDED
    assert found == [whole] * 30


def test_watch_of_an_ended_job_replays_and_ends(shared_server: RunningServer) -> None:
    job = shared_server.ingest("replay", shared_server.upload(image_tar(32)))
    whole = events(watch(shared_server, job.id))
    assert events(watch(shared_server, job.id)) == whole
    assert events(watch(shared_server, job.id, after_seq=2)) == whole[2:]
    assert events(watch(shared_server, job.id, after_seq=999)) == []


def test_ticks_show_the_running_stage_going_on(shared_server: RunningServer, slow_tar: bytes) -> None:
    job = shared_server.ingest("ticks", shared_server.upload(slow_tar))
    messages = watch(shared_server, job.id)
    ticks = [message.tick for message in messages if message.WhichOneof("update") == "tick"]
    assert {tick.name for tick in ticks} == {"ingest"}
    done = [tick.progress.done for tick in ticks]
    assert done == sorted(done)
    assert all(0 < tick.progress.done <= tick.progress.total for tick in ticks)


def test_watch_of_an_unknown_job_is_refused(shared_server: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        watch(shared_server, "0" * 32)
    assert reason(refused.value)[0] == "JOB_NOT_FOUND"
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND


def test_silent_stream_has_a_heartbeat_after_ten_seconds(server: RunningServer, slow_tar: bytes) -> None:
    sha256 = server.upload(slow_tar)
    server.ingest("first", sha256)
    waiting = server.ingest("second", sha256)
    server.pause_stages()
    stream = server.compression.WatchJob(compression_pb2.WatchJobRequest(id=waiting.id), timeout=30)
    for message in stream:
        if message.WhichOneof("update") == "heartbeat":
            break
    else:
        pytest.fail("no heartbeat came")
    server.resume_stages()
    stream.cancel()
