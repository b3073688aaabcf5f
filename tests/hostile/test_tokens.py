"""Who has no token gets nothing, who has one gets what it allows, and nobody finds a token in the data folder."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from punnet.v1 import build_pb2, compression_pb2, pool_pb2
from server.accounts import SCOPES
from server.scopes import SCOPE_OF, allows
from tests.service.accounts import FILES, AccountsServer, call, methods, path_of, refusal
from tests.service.running_server import chunks, image_tar, until

ROOT = Path(__file__).resolve().parents[2]
EVERY_METHOD = pytest.mark.parametrize("method", methods(), ids=path_of)
LIST = compression_pb2.ListJobsRequest()


def test_every_service_of_the_contract_is_walked_here() -> None:
    with_services = {path.name for path in (ROOT / "proto").rglob("*.proto") if "\nservice " in path.read_text()}
    assert with_services == {Path(file.DESCRIPTOR.name).name for file in FILES}


def test_every_method_says_what_it_asks_of_a_token() -> None:
    ours = {path for path in SCOPE_OF if path.startswith("/punnet.")}
    assert ours == {path_of(method) for method in methods()}
    assert set(SCOPE_OF.values()) <= set(SCOPES)


@EVERY_METHOD
def test_every_method_refuses_a_call_without_a_token_before_it_reads_it(
    accounts_server: AccountsServer, method: MethodDescriptor
) -> None:
    for raw in (b"", b"\xff" * 100):
        status, code, _ = refusal(lambda raw=raw: call(accounts_server.channel(), method, [raw]))  # type: ignore[misc]
        assert (status, code) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")


@EVERY_METHOD
def test_every_method_refuses_a_token_of_all_other_scopes(
    accounts_server: AccountsServer, method: MethodDescriptor
) -> None:
    needed = SCOPE_OF[path_of(method)]
    token = accounts_server.token("acme", *(scope for scope in SCOPES if not allows(path_of(method), [scope])))
    status, code, text = refusal(lambda: call(accounts_server.channel(), method, [b""], token))
    assert (status, code) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
    assert f"scope {needed}" in text


def test_an_agents_token_leases_builds_and_moves_blobs_and_does_nothing_else(accounts_server: AccountsServer) -> None:
    token = accounts_server.token("acme", "build")
    allowed = {method.name for method in methods() if allows(path_of(method), ["build"])}
    assert allowed == {
        "LeaseBuild", "RenewBuild", "FinishBuild", "FindMissingBlobs", "GetUploadStatus", "UploadBlob", "DownloadBlob"
    }  # fmt: skip
    lease = next(method for method in methods() if method.name == "LeaseBuild")
    request = build_pb2.LeaseBuildRequest(agent="orin-1", targets=["jetson-orin"]).SerializeToString()
    assert not call(accounts_server.channel(), lease, [request], token).HasField("build")
    for method in (m for m in methods() if m.name not in allowed):
        assert refusal(lambda m=method: call(accounts_server.channel(), m, [b""], token))[1] == "SCOPE_MISSING"  # type: ignore[misc]


def test_no_reason_is_given_that_tells_a_wrong_token_from_a_revoked_one(accounts_server: AccountsServer) -> None:
    (method,) = (m for m in methods() if m.name == "ListJobs")
    good = accounts_server.token("acme", "read")
    revoked = accounts_server.token("acme", "read")
    accounts_server.command("token", "revoke", revoked.split("_")[1])
    other_secret = "_".join([*good.split("_", 2)[:2], "A" * 43])
    shapes = ("", "nonsense", good[:-1], good + "A", good.upper(), other_secret, revoked)
    said = {refusal(lambda t=token: call(accounts_server.channel(), method, [b""], t)) for token in shapes}  # type: ignore[misc]
    assert len(said) == 1
    call(accounts_server.channel(), method, [b""], good)


@pytest.mark.parametrize(
    "metadata",
    [
        (("authorization", "Basic {}"),),
        (("authorization", "{}"),),
        (("authorization", "Bearer {}"), ("authorization", "Bearer {}")),
        (("x-authorization", "Bearer {}"),),
    ],
)
def test_token_counts_only_as_the_one_bearer(
    accounts_server: AccountsServer, metadata: tuple[tuple[str, str], ...]
) -> None:
    token = accounts_server.token("acme", "read")
    sent: tuple[tuple[str, str | bytes], ...] = tuple((name, value.format(token)) for name, value in metadata)
    assert refusal(lambda: accounts_server.compression.ListJobs(LIST, metadata=sent))[1] == "TOKEN_INVALID"


def test_health_is_told_without_a_token_and_not_watched(accounts_server: AccountsServer) -> None:
    health = health_pb2_grpc.HealthStub(accounts_server.channel())
    answer = health.Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert refusal(lambda: next(health.Watch(health_pb2.HealthCheckRequest(), timeout=10)))[1] == "TOKEN_INVALID"


def test_revoked_token_ends_its_open_streams_and_later_calls(accounts_server: AccountsServer) -> None:
    tenant = accounts_server.tenant("watchful")
    tar = image_tar(400, side=64)
    upload = next(m for m in methods() if m.name == "UploadBlob")
    call(accounts_server.channel(), upload, [m.SerializeToString() for m in chunks(tar)], tenant.token)
    request = pool_pb2.CreatePoolRequest(name="p", tar_sha256=[hashlib.sha256(tar).hexdigest()])
    job = tenant.pools.CreatePool(request).job
    accounts_server.pause_stages()
    ended: list[grpc.StatusCode] = []

    def watch() -> None:
        try:
            for _ in tenant.compression.WatchJob(compression_pb2.WatchJobRequest(id=job.id)):
                started.set()
        except grpc.RpcError as error:
            ended.append(error.code())

    started = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    assert started.wait(10)
    accounts_server.command("token", "revoke", tenant.token.split("_")[1])
    accounts_server.resume_stages()
    watcher.join(20)
    assert ended == [grpc.StatusCode.UNAUTHENTICATED]
    assert refusal(lambda: tenant.compression.ListJobs(LIST))[1] == "TOKEN_INVALID"


def test_page_opens_to_a_token_that_may_read_and_shows_its_tenant(folder: Path) -> None:
    server = AccountsServer(folder, options=("--require-tokens", "--page", "127.0.0.1:0", "--calls-a-minute", "1000"))
    server.start()
    try:
        record = json.loads((server.data / "server.json").read_text())
        assert "page_key" not in record
        tenant = server.tenant("acme")
        tar = image_tar(3)
        tenant.blobs.UploadBlob(chunks(tar))
        request = pool_pb2.CreatePoolRequest(name="p", tar_sha256=[hashlib.sha256(tar).hexdigest()])
        job = tenant.pools.CreatePool(request).job

        def status(path: str, token: str) -> int:
            connection = http.client.HTTPConnection(urlsplit(record["page"]).netloc, timeout=20)
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            answer.read()
            connection.close()
            return answer.status

        reader, stranger = server.token("acme", "read"), server.token("other", "read")
        assert (status("/", reader), status(f"/jobs/{job.id}", reader)) == (200, 200)
        assert (status("/", stranger), status(f"/jobs/{job.id}", stranger)) == (200, 404)
        opens_nothing = status("/", "")
        assert opens_nothing >= 300
        assert status("/", server.token("acme", "submit")) == opens_nothing
        server.command("token", "revoke", reader.split("_")[1])
        assert status("/", reader) == opens_nothing
    finally:
        server.close()


def test_neither_token_nor_secret_is_in_the_data_folder(accounts_server: AccountsServer) -> None:
    tenant = accounts_server.tenant("quiet")
    tenant.compression.ListJobs(LIST)
    secret = tenant.token.split("_", 2)[2].encode()
    until(lambda: b"quiet" in (accounts_server.data / "audit.jsonl").read_bytes())
    files = [path for path in accounts_server.data.rglob("*") if path.is_file()]
    assert [path.name for path in files if secret in path.read_bytes()] == []
    listed = accounts_server.command("token", "list")
    assert secret.decode() not in str(listed)
    assert "quiet" in {row["tenant"] for row in listed["tokens"]}


def test_peer_that_fails_too_often_is_told_to_wait_and_locks_nobody_out(folder: Path) -> None:
    server = AccountsServer(folder, options=("--require-tokens",))
    server.start()
    try:
        tenant = server.tenant("acme")
        codes = [refusal(lambda: server.compression.ListJobs(LIST))[0] for _ in range(12)]
        assert codes == [grpc.StatusCode.UNAUTHENTICATED] * 10 + [grpc.StatusCode.RESOURCE_EXHAUSTED] * 2
        with pytest.raises(grpc.RpcError) as refused:
            server.compression.ListJobs(LIST)
        status = rpc_status.from_call(refused.value)
        assert status is not None
        retry = error_details_pb2.RetryInfo()
        assert status.details[1].Unpack(retry)
        assert 0 < retry.retry_delay.seconds <= 60
        assert tenant.compression.ListJobs(LIST).jobs == []
    finally:
        server.close()
