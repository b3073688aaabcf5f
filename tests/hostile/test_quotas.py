"""One tenant can't use up what others need, and a refusal says how long to wait."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from punnet import Client
from punnet.errors import CapacityExhausted
from punnet.v1 import blob_pb2, compression_pb2, job_pb2, pool_pb2
from tests.service.accounts import AccountsServer, Tenant
from tests.service.running_server import chunks, image_tar, reason, until

LIST = compression_pb2.ListJobsRequest()
MEBIBYTE = 1 << 20


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[AccountsServer]:
    server = AccountsServer(folder, options=("--require-tokens", *options))
    server.start()
    try:
        yield server
    finally:
        server.close()


def over_quota(work: Callable[[], Any]) -> tuple[str, float]:
    """Which quota refused, and after how many seconds to try again."""
    with pytest.raises(grpc.RpcError) as refused:
        work()
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    code, details = reason(refused.value)
    assert code == "QUOTA"
    status = rpc_status.from_call(refused.value)
    assert status is not None
    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    return details["quota"], retry.retry_delay.ToTimedelta().total_seconds()


def ingest(tenant: Tenant, name: str, sha256: str) -> job_pb2.Job:
    return tenant.pools.CreatePool(pool_pb2.CreatePoolRequest(name=name, tar_sha256=[sha256])).job


def state(tenant: Tenant, job: job_pb2.Job) -> int:
    return int(tenant.compression.GetJob(compression_pb2.GetJobRequest(id=job.id)).job.state)


def test_calls_beyond_the_rate_are_refused_for_this_tenant_alone(folder: Path) -> None:
    with serving(folder, "--calls-a-minute", "6") as server:
        greedy, other = server.tenant("greedy"), server.tenant("other")
        for _ in range(6):
            greedy.compression.ListJobs(LIST)
        quota, wait = over_quota(lambda: greedy.compression.ListJobs(LIST))
        assert quota == "calls_a_minute"
        assert 5 < wait <= 10
        other.compression.ListJobs(LIST)
        second = server.tenant("greedy")  # another token of the tenant is no other tenant
        over_quota(lambda: second.compression.ListJobs(LIST))


def test_client_waits_as_long_as_it_is_told_and_goes_on(folder: Path) -> None:
    with serving(folder, "--calls-a-minute", "120") as server:
        token = server.token("busy", "read")
        with Client(server.address, token=token) as client:
            for _ in range(123):
                client.jobs()
        with Client(server.address, token=token, patience_seconds=0.0) as hasty:

            def several() -> None:
                for _ in range(5):
                    hasty.jobs()

            with pytest.raises(CapacityExhausted):
                several()


def test_uploads_at_once_get_no_more_room_than_there_is(folder: Path) -> None:
    with serving(folder, "--tenant-storage-gib", str(5 / 1024)) as server:
        tenant, other = server.tenant("full"), server.tenant("other")
        files = [os.urandom(2 * MEBIBYTE) for _ in range(4)]

        def upload(data: bytes) -> str:
            try:
                tenant.blobs.UploadBlob(chunks(data))
            except grpc.RpcError as error:
                return reason(error)[0]
            return "OK"

        with ThreadPoolExecutor(4) as threads:
            ended = list(threads.map(upload, files))
        assert sorted(ended) == ["OK", "OK", "QUOTA", "QUOTA"]
        quota, wait = over_quota(lambda: tenant.blobs.UploadBlob(chunks(files[ended.index("QUOTA")])))
        assert (quota, wait) == ("storage_bytes", 600.0)
        stored = files[ended.index("OK")]
        assert tenant.blobs.UploadBlob(chunks(stored)).committed_size == len(stored)  # it is there already
        assert other.blobs.UploadBlob(chunks(files[0])).committed_size == len(files[0])


def test_announced_size_is_reserved_before_a_byte_comes(folder: Path) -> None:
    with serving(folder, "--tenant-storage-gib", str(1 / 1024)) as server:
        tenant = server.tenant("big")
        digest = blob_pb2.BlobDigest(sha256="0" * 64, size=8 << 30)
        first = [blob_pb2.UploadBlobRequest(digest=digest)]
        assert over_quota(lambda: tenant.blobs.UploadBlob(iter(first)))[0] == "storage_bytes"


def test_tenant_at_its_storage_limit_starts_no_job_but_keeps_its_answers(folder: Path) -> None:
    tar = image_tar(4)
    with serving(folder, "--tenant-storage-gib", str(1 / 1024), "--calls-a-minute", "10000") as server:
        tenant = server.tenant("full")
        tenant.blobs.UploadBlob(chunks(tar))
        sha256 = hashlib.sha256(tar).hexdigest()
        request = pool_pb2.CreatePoolRequest(name="web", tar_sha256=[sha256], request_id="r")
        job = tenant.pools.CreatePool(request).job
        until(lambda: state(tenant, job) == job_pb2.JOB_STATE_SUCCEEDED, 60)
        (server.data / "stages" / "full" / "ballast").write_bytes(bytes(2 * MEBIBYTE))
        server.end()
        server.start()
        again = tenant.pools.CreatePool(request).job
        assert again.id == job.id
        assert over_quota(lambda: ingest(tenant, "more", sha256))[0] == "storage_bytes"


def test_one_tenants_jobs_wait_for_each_other_and_not_for_anothers(folder: Path, slow_tar: bytes) -> None:
    with serving(folder, "--cpu-slots", "3", "--queued-jobs", "2", "--calls-a-minute", "10000") as server:
        busy, other = server.tenant("busy"), server.tenant("other")
        sha256 = hashlib.sha256(slow_tar).hexdigest()
        for tenant in (busy, other):
            tenant.blobs.UploadBlob(chunks(slow_tar))
        first = ingest(busy, "a", sha256)
        until(lambda: state(busy, first) == job_pb2.JOB_STATE_RUNNING)
        server.pause_stages()
        waiting = [ingest(busy, name, sha256) for name in ("b", "c")]
        quota, _ = over_quota(lambda: ingest(busy, "d", sha256))
        assert quota == "queued_jobs"
        theirs = ingest(other, "a", sha256)
        until(lambda: state(other, theirs) == job_pb2.JOB_STATE_RUNNING)
        assert [state(busy, job) for job in waiting] == [job_pb2.JOB_STATE_QUEUED] * 2
        for job in (first, *waiting):
            busy.compression.CancelJob(compression_pb2.CancelJobRequest(id=job.id))


def test_open_streams_of_one_tenant_leave_room_for_another(folder: Path, slow_tar: bytes) -> None:
    with serving(folder, "--open-calls", "3") as server:
        greedy, other = server.tenant("greedy"), server.tenant("other")
        for tenant in (greedy, other):
            tenant.blobs.UploadBlob(chunks(slow_tar))
        job = ingest(greedy, "a", hashlib.sha256(slow_tar).hexdigest())
        server.pause_stages()
        watches = [greedy.compression.WatchJob(compression_pb2.WatchJobRequest(id=job.id)) for _ in range(3)]
        for watch in watches:
            next(watch)
        assert over_quota(lambda: greedy.compression.ListJobs(LIST))[0] == "open_calls"
        other.compression.ListJobs(LIST)
        watches[0].cancel()

        def admitted_again() -> bool:
            try:
                greedy.compression.ListJobs(LIST)
            except grpc.RpcError:
                return False
            return True

        until(admitted_again)


def test_slow_uploads_of_one_tenant_leave_room_for_another(folder: Path) -> None:
    with serving(folder) as server:
        slow, other = server.tenant("slow"), server.tenant("other")
        ended, begun = threading.Event(), threading.Semaphore(0)

        def drip(data: bytes) -> Iterator[blob_pb2.UploadBlobRequest]:
            (message,) = chunks(data)
            message.finish = False
            yield message
            begun.release()
            ended.wait(30)

        calls = [slow.blobs.UploadBlob.future(drip(os.urandom(9))) for _ in range(4)]
        for _ in calls:
            assert begun.acquire(timeout=10)
        until(lambda: len(list((server.data / "blobs" / "slow" / "partial").glob("*"))) == 4)
        assert over_quota(lambda: slow.blobs.UploadBlob(chunks(b"a fifth")))[0] == "uploads"
        assert other.blobs.UploadBlob(chunks(b"of another")).committed_size == 10
        ended.set()


def test_audit_log_names_calls_tenants_and_outcomes(folder: Path) -> None:
    with serving(folder) as server:
        tenant = server.tenant("acme")
        tenant.compression.ListJobs(LIST)
        with pytest.raises(grpc.RpcError):
            tenant.compression.GetJob(compression_pb2.GetJobRequest(id="0" * 32))
        with pytest.raises(grpc.RpcError):
            server.compression.ListJobs(LIST)
        tenant.blobs.UploadBlob(chunks(b"bytes of a user"))
    lines = [json.loads(line) for line in (server.data / "audit.jsonl").read_text().splitlines()]
    method = "/punnet.v1.CompressionService/"
    assert [(line["tenant"], line["method"], line["resource"], line["outcome"]) for line in lines] == [
        ("acme", f"{method}ListJobs", "", "OK"),
        ("acme", f"{method}GetJob", "0" * 32, "JOB_NOT_FOUND"),
        ("", f"{method}ListJobs", "", "TOKEN_INVALID"),
        ("acme", "/punnet.v1.BlobService/UploadBlob", hashlib.sha256(b"bytes of a user").hexdigest(), "OK"),
    ]
    assert {line["token"] for line in lines} == {tenant.token.split("_")[1], ""}
