"""A server with accounts, tokens for it, and certificates that openssl made for a test."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from punnet.v1 import (
    blob_pb2,
    blob_pb2_grpc,
    build_pb2,
    build_pb2_grpc,
    catalogue_pb2,
    catalogue_pb2_grpc,
    compression_pb2,
    compression_pb2_grpc,
    operator_pb2,
    pool_pb2,
    pool_pb2_grpc,
)
from server.accounts import SCOPES
from tests.service.running_server import RunningServer, reason

CALL_SECONDS = 60.0
FILES = (compression_pb2, blob_pb2, pool_pb2, catalogue_pb2, operator_pb2, build_pb2)


def services() -> list[ServiceDescriptor]:
    return [service for file in FILES for service in file.DESCRIPTOR.services_by_name.values()]


def methods() -> list[MethodDescriptor]:
    return [method for service in services() for method in service.methods]


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def call(
    channel: grpc.Channel, method: MethodDescriptor, raw: list[bytes], token: str = "", *, seconds: float = CALL_SECONDS
) -> Any:
    """Send bytes as the requests of a method; its first answer, parsed, or None where it gives none."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    answer = GetMessageClass(method.output_type)
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    stub = getattr(channel, kind)(path_of(method), None, answer.FromString)
    sent = iter(raw) if method.client_streaming else raw[0]
    got = stub(sent, timeout=seconds, metadata=metadata)
    if not method.server_streaming:
        return got
    first = next(got, None)
    got.cancel()
    return first


def refusal(work: Callable[[], Any]) -> tuple[grpc.StatusCode, str, str]:
    """Status, code of the table and text of a call that must fail."""
    with pytest.raises(grpc.RpcError) as refused:
        work()
    return refused.value.code(), reason(refused.value)[0], refused.value.details() or ""


@dataclass
class AccountsServer(RunningServer):
    """A server that asks for tokens, on a socket: TLS is tested on its own."""

    def command(self, *arguments: str) -> Any:
        """`punnet token ...` or `punnet pool ...`; its document."""
        done = subprocess.run(
            [
                *(sys.executable, "-I", "-m", "server.accounts_command", *arguments),
                *("--data", str(self.data), "--json"),
            ],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return json.loads(done.stdout)

    def token(self, tenant: str, *scopes: str, days: float = 1) -> str:
        options = [part for scope in scopes for part in ("--scope", scope)]
        made = self.command("token", "create", "--tenant", tenant, "--days", str(days), *options)
        return str(made["token"])

    def refuses_without_token(self) -> bool:
        try:
            self.compression.ListJobs(compression_pb2.ListJobsRequest(), timeout=10)
        except grpc.RpcError as error:
            return reason(error)[0] == "TOKEN_INVALID"
        return False

    def tenant(self, name: str, *scopes: str) -> Tenant:
        """A tenant with a token for these scopes, all of them unless stated."""
        return Tenant(self, self.token(name, *(scopes or SCOPES)))


@dataclass
class Tenant:
    """Stubs whose every call carries a token."""

    server: AccountsServer
    token: str

    def channel(self) -> grpc.Channel:
        return grpc.intercept_channel(self.server.channel(), _Bearer(self.token))

    @property
    def compression(self) -> compression_pb2_grpc.CompressionServiceStub:
        return compression_pb2_grpc.CompressionServiceStub(self.channel())

    @property
    def blobs(self) -> blob_pb2_grpc.BlobServiceStub:
        return blob_pb2_grpc.BlobServiceStub(self.channel())

    @property
    def builds(self) -> build_pb2_grpc.BuildServiceStub:
        return build_pb2_grpc.BuildServiceStub(self.channel())

    @property
    def pools(self) -> pool_pb2_grpc.PoolServiceStub:
        return pool_pb2_grpc.PoolServiceStub(self.channel())

    @property
    def catalogue(self) -> catalogue_pb2_grpc.CatalogueServiceStub:
        return catalogue_pb2_grpc.CatalogueServiceStub(self.channel())


class _Bearer(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
):
    def __init__(self, token: str) -> None:
        self._metadata = [("authorization", f"Bearer {token}")]

    def _with_token(self, details: Any) -> Any:
        return details._replace(metadata=[*(details.metadata or ()), *self._metadata])

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._with_token(details), request)

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._with_token(details), request)

    def intercept_stream_unary(self, continuation: Any, details: Any, requests: Iterator[Any]) -> Any:
        return continuation(self._with_token(details), requests)


@dataclass(frozen=True)
class Certificates:
    """PEM files below one folder: an authority, and what it signed."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def certificate(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"


def make_certificates(folder: Path, *clients: str) -> Certificates:
    """An authority, a server's certificate for 127.0.0.1, and one for each client; skips without openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificates, is not on this machine")
    made = Certificates(folder)
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1")
    _openssl(
        *("req", "-x509", *key, "-subj", "/CN=Test authority"),
        *("-keyout", str(made.key("ca")), "-out", str(made.ca)),
    )
    for name in ("server", *clients):
        more = ("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost") if name == "server" else ()
        signing = ("-CA", str(made.ca), "-CAkey", str(made.key("ca")))
        _openssl(
            *("req", "-x509", *key, "-subj", f"/CN={name}", *more, *signing),
            *("-keyout", str(made.key(name)), "-out", str(made.certificate(name))),
        )
    return made


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30)
