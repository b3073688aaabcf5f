from __future__ import annotations

from punnet.v1 import compression_pb2, job_pb2
from tests.service.running_server import RunningServer, image_tar, stage_children, until


def cancel(server: RunningServer, job_id: str) -> job_pb2.Job:
    return server.compression.CancelJob(compression_pb2.CancelJobRequest(id=job_id)).job


def test_cancel_of_a_running_job_ends_its_process(server: RunningServer, slow_tar: bytes) -> None:
    job = server.ingest("slow", server.upload(slow_tar))
    until(lambda: stage_children(server))
    assert cancel(server, job.id).state in (job_pb2.JOB_STATE_CANCELLING, job_pb2.JOB_STATE_CANCELLED)
    ended = server.ended(job.id)
    assert ended.state == job_pb2.JOB_STATE_CANCELLED
    assert stage_children(server) == []
    assert ended.stages[0].state == job_pb2.STAGE_STATE_CANCELLED
    assert ended.HasField("end_time")
    assert not ended.HasField("error")


def test_cancel_frees_the_slot_only_after_the_child_is_gone(server: RunningServer, slow_tar: bytes) -> None:
    first = server.ingest("first", server.upload(slow_tar))
    second = server.ingest("second", server.upload(image_tar(5)))
    until(lambda: stage_children(server))
    server.pause_stages()  # a stopped process does not obey SIGTERM: it takes the SIGKILL
    cancel(server, first.id)
    assert server.job(first.id).state == job_pb2.JOB_STATE_CANCELLING
    assert server.job(second.id).state == job_pb2.JOB_STATE_QUEUED
    first, second = server.ended(first.id), server.ended(second.id)
    assert (first.state, second.state) == (job_pb2.JOB_STATE_CANCELLED, job_pb2.JOB_STATE_SUCCEEDED)
    assert first.end_time.ToNanoseconds() <= second.start_time.ToNanoseconds()


def test_cancel_of_a_queued_job_is_immediate(server: RunningServer, slow_tar: bytes) -> None:
    first = server.ingest("first", server.upload(slow_tar))
    second = server.ingest("second", server.upload(image_tar(5)))
    until(lambda: server.job(first.id).state == job_pb2.JOB_STATE_RUNNING)
    assert cancel(server, second.id).state == job_pb2.JOB_STATE_CANCELLED
    cancel(server, first.id)
    server.ended(first.id)
    assert [stage.state for stage in server.job(second.id).stages] == [job_pb2.STAGE_STATE_PENDING]


def test_cancel_of_an_ended_job_changes_nothing(shared_server: RunningServer) -> None:
    job = shared_server.ingest("done", shared_server.upload(image_tar(6)))
    assert shared_server.ended(job.id).state == job_pb2.JOB_STATE_SUCCEEDED
    assert cancel(shared_server, job.id).state == job_pb2.JOB_STATE_SUCCEEDED


def test_name_of_a_cancelled_pool_is_free_again(server: RunningServer, slow_tar: bytes) -> None:
    job = server.ingest("again", server.upload(slow_tar))
    until(lambda: stage_children(server))
    cancel(server, job.id)
    server.ended(job.id)
    again = server.ingest("again", server.upload(image_tar(5)))
    assert server.ended(again.id).state == job_pb2.JOB_STATE_SUCCEEDED
