from __future__ import annotations

import hashlib
import json

import grpc
import pytest

from punnet.v1 import blob_pb2, catalogue_pb2, compression_pb2, job_pb2, options_pb2, pool_pb2
from tests.service.running_server import RunningServer, image_tar, reason, stage_children, until


def inspect_request(server: RunningServer, model: bytes, seed: int = 0) -> catalogue_pb2.InspectTeacherRequest:
    image = server.upload(image_tar(1))
    rows = [options_pb2.ImageBlob(label=label, sha256=image) for label in ("cat", "dog")]
    return catalogue_pb2.InspectTeacherRequest(
        teacher=options_pb2.Teacher(sha256=server.upload(model), display_name="bad.onnx"),
        images=options_pb2.LabelledImages(blobs=options_pb2.ImageBlobs(images=rows)),
        seed=seed,
    )


def test_ingest_makes_a_pool_and_its_artifact(shared_server: RunningServer) -> None:
    job = shared_server.ingest("artifact", shared_server.upload(image_tar(40)))
    assert (job.state, job.kind) == (job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_KIND_INGEST)
    ended = shared_server.ended(job.id)
    assert ended.state == job_pb2.JOB_STATE_SUCCEEDED
    assert ended.stages[0].state == job_pb2.STAGE_STATE_SUCCEEDED
    assert ended.stages[0].peak_memory_bytes > 1 << 20
    assert ended.create_time.ToNanoseconds() <= ended.start_time.ToNanoseconds() < ended.end_time.ToNanoseconds()
    (artifact,) = ended.artifacts
    stream = shared_server.blobs.DownloadBlob(blob_pb2.DownloadBlobRequest(sha256=artifact.sha256))
    content = b"".join(answer.data for answer in stream)
    assert hashlib.sha256(content).hexdigest() == artifact.sha256
    pool = shared_server.pools.GetPool(pool_pb2.GetPoolRequest(name="artifact")).pool
    assert (pool.images, pool.sha256) == (40, artifact.sha256)
    assert json.loads(content)["images"] == 40


def test_same_request_id_gives_the_same_job(shared_server: RunningServer) -> None:
    sha256 = shared_server.upload(image_tar(9))
    first = shared_server.ingest("idempotent", sha256, request_id="r-1")
    assert shared_server.ingest("idempotent", sha256, request_id="r-1").id == first.id
    shared_server.ended(first.id)
    assert shared_server.ingest("idempotent", sha256, request_id="r-1").state == job_pb2.JOB_STATE_SUCCEEDED


def test_same_request_id_with_another_request_is_refused(shared_server: RunningServer) -> None:
    sha256 = shared_server.upload(image_tar(9))
    shared_server.ingest("reused", sha256, request_id="r-2")
    with pytest.raises(grpc.RpcError) as refused:
        shared_server.ingest("reused-2", sha256, request_id="r-2")
    assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS
    assert reason(refused.value)[0] == "REQUEST_ID_REUSED"


def test_name_of_a_pool_is_taken_while_it_is_made_and_after(shared_server: RunningServer) -> None:
    sha256 = shared_server.upload(image_tar(9))
    job = shared_server.ingest("taken", sha256)
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as refused:
            shared_server.ingest("taken", sha256)
        assert reason(refused.value)[0] == "POOL_EXISTS"
        shared_server.ended(job.id)


def test_tar_that_was_not_uploaded_is_missing(shared_server: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        shared_server.ingest("missing", "0" * 64)
    assert reason(refused.value)[0] == "BLOB_MISSING"


def test_bad_tar_fails_the_job_with_code_remedy_and_stage(shared_server: RunningServer) -> None:
    job = shared_server.ended(shared_server.ingest("bad", shared_server.upload(b"no tar at all" * 100)).id)
    assert job.state == job_pb2.JOB_STATE_FAILED
    assert job.error.reason in ("ARCHIVE_REJECTED", "POOL_INVALID")
    assert job.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert job.error.stage == "ingest"
    assert job.error.message
    assert job.error.remedy
    assert job.stages[0].state == job_pb2.STAGE_STATE_FAILED
    assert "bad" not in [pool.name for pool in shared_server.pools.ListPools(pool_pb2.ListPoolsRequest()).pools]


def test_bad_model_fails_the_inspection_in_intake(shared_server: RunningServer) -> None:
    request = inspect_request(shared_server, b"\x00garbage" * 50)
    job = shared_server.ended(shared_server.catalogue.InspectTeacher(request).job.id)
    assert job.state == job_pb2.JOB_STATE_FAILED
    assert job.error.stage == "intake"
    assert job.error.reason.startswith(("MODEL_", "UNSUPPORTED_FORMAT"))
    assert [stage.name for stage in job.stages] == ["intake", "inspection"]
    assert job.stages[1].state == job_pb2.STAGE_STATE_PENDING


def test_crash_of_the_stage_is_tried_again_once_and_named(server: RunningServer, slow_tar: bytes) -> None:
    job = server.ingest("crash", server.upload(slow_tar))
    first = until(lambda: stage_children(server))
    server.signal_stages(11)
    until(lambda: set(stage_children(server)) - set(first))
    until(lambda: server.job(job.id).stages[0].attempt == 2)
    server.signal_stages(11)
    ended = server.ended(job.id)
    assert ended.error.reason == "STAGE_CRASHED"
    assert "SIGSEGV" in ended.error.message
    assert ended.stages[0].attempt == 2


def test_queue_has_a_limit(folder: object, slow_tar: bytes) -> None:
    from pathlib import Path

    running = RunningServer(Path(str(folder)), options=("--queued-jobs", "2")).start()
    sha256 = running.upload(slow_tar)
    running.ingest("runs", sha256)
    until(lambda: stage_children(running))
    running.ingest("waits-1", sha256)
    running.ingest("waits-2", sha256)
    with pytest.raises(grpc.RpcError) as refused:
        running.ingest("waits-3", sha256)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason(refused.value)[0] == "QUOTA"
    running.close()


def test_jobs_are_listed_newest_first_in_pages(server: RunningServer) -> None:
    sha256 = server.upload(image_tar(3))
    ids = [server.ingest(f"page-{index}", sha256).id for index in range(5)]
    found: list[str] = []
    token = ""
    while True:
        answer = server.compression.ListJobs(compression_pb2.ListJobsRequest(page_size=2, page_token=token))
        found += [job.id for job in answer.jobs]
        token = answer.next_page_token
        if not token:
            break
    assert found == ids[::-1]


def test_pools_are_listed_by_name_in_pages(server: RunningServer) -> None:
    sha256 = server.upload(image_tar(3))
    for name in ("c", "a", "b"):
        server.ended(server.ingest(name, sha256).id)
    first = server.pools.ListPools(pool_pb2.ListPoolsRequest(page_size=2))
    second = server.pools.ListPools(pool_pb2.ListPoolsRequest(page_size=2, page_token=first.next_page_token))
    assert [pool.name for pool in (*first.pools, *second.pools)] == ["a", "b", "c"]
    assert second.next_page_token == ""


@pytest.mark.parametrize("token", ["x", "bnVsbA==", "WzEsMl0=", "W10="])
def test_page_token_that_is_none_of_ours_is_refused(shared_server: RunningServer, token: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        shared_server.compression.ListJobs(compression_pb2.ListJobsRequest(page_token=token))
    assert reason(refused.value)[0] == "REQUEST_INVALID"


def test_deleted_job_is_gone_with_its_folders(server: RunningServer) -> None:
    job = server.ended(server.catalogue.InspectTeacher(inspect_request(server, b"bad" * 99)).job.id)
    assert list((server.data / "stages" / "local").iterdir())
    server.compression.DeleteJob(compression_pb2.DeleteJobRequest(id=job.id))
    with pytest.raises(grpc.RpcError) as gone:
        server.job(job.id)
    assert reason(gone.value)[0] == "JOB_NOT_FOUND"
    assert not list((server.data / "stages" / "local").iterdir())
    assert not list((server.data / "jobs" / "local").iterdir())


def test_running_job_is_not_deleted(server: RunningServer, slow_tar: bytes) -> None:
    job = server.ingest("runs", server.upload(slow_tar))
    until(lambda: stage_children(server))
    with pytest.raises(grpc.RpcError) as refused:
        server.compression.DeleteJob(compression_pb2.DeleteJobRequest(id=job.id))
    assert reason(refused.value)[0] == "JOB_NOT_FINISHED"


def test_unknown_job_is_not_found(shared_server: RunningServer) -> None:
    for job_id in ("", "0" * 32, "../../etc/passwd"):
        with pytest.raises(grpc.RpcError) as refused:
            shared_server.job(job_id)
        assert reason(refused.value)[0] == "JOB_NOT_FOUND"


@pytest.mark.slow  # the engine builds each network to count it
def test_students_are_known_by_name(shared_server: RunningServer) -> None:
    answer = shared_server.catalogue.ListStudents(catalogue_pb2.ListStudentsRequest(name_contains="cifar_resnet20"))
    assert [student.name for student in answer.students] == ["cifar_resnet20"]
    assert answer.students[0].parameters > 200_000
