"""A channel to one appliance: stubs, unary calls that are tried again, patience while it is away."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from grpc import StatusCode
from grpc.aio import AioRpcError, UnaryUnaryMultiCallable

from punnet.access import Access
from punnet.errors_from_rpc import error_from_rpc, reason, retry_seconds, unreachable
from punnet.v1 import (
    blob_pb2_grpc,
    build_pb2_grpc,
    catalogue_pb2_grpc,
    compression_pb2_grpc,
    operator_pb2_grpc,
    pool_pb2_grpc,
)

OPTIONS = (
    ("grpc.http2.max_frame_size", 1 << 20),  # as the server announces for uploads; 16 KiB otherwise
    ("grpc.keepalive_time_ms", 30_000),  # dead peers are noticed on idle watches; the server permits 10 s
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
CALL_SECONDS = 180.0  # the server gives the child that measures students 120
CONNECT_SECONDS = 1.0
HEALTH_SECONDS = 5.0
RETRY_SECONDS = 60.0  # a front restarts in seconds
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0
# The wire form of grpc.health.v1: an empty request asks for the whole server; the answer's field 1 is 1 for SERVING.
# Its stubs are in grpcio-health-checking, which a client need not have.
HEALTH_METHOD = "/grpc.health.v1.Health/Check"
SERVING = b"\x08\x01"
# Codes after which the same bytes are worth sending again from what the server says it holds.
RESUMABLE = frozenset({"CHUNK_CORRUPT", "UPLOAD_OFFSET"})
# What grpc.aio 1.76 to 1.85 puts in place of the server's status where a write races with it; the next try learns it.
MASKED_STATUS = "Internal error from Core"

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Connection:
    """One channel with the stubs of every service.

    Args:
        address: `https://host:port`, or without TLS `host:port` or `unix:/path`.
        access: credentials of the client.
        revive: called before each new try while the server is away; starts a private server again.
        patience_seconds: how long to try without progress.
    """

    def __init__(
        self,
        address: str,
        *,
        access: Access | None = None,
        revive: Callable[[], Awaitable[None]] | None = None,
        patience_seconds: float = RETRY_SECONDS,
    ) -> None:
        self.address = address
        self.revive = revive
        self.patience_seconds = patience_seconds
        access = access or Access()
        self.metadata = access.metadata  # goes with every call but health's
        self._channel = access.channel(address, OPTIONS)
        self.compression = compression_pb2_grpc.CompressionServiceStub(self._channel)
        self.blobs = blob_pb2_grpc.BlobServiceStub(self._channel)
        self.pools = pool_pb2_grpc.PoolServiceStub(self._channel)
        self.builds = build_pb2_grpc.BuildServiceStub(self._channel)
        self.catalogue = catalogue_pb2_grpc.CatalogueServiceStub(self._channel)
        self.operator = operator_pb2_grpc.OperatorServiceStub(self._channel)

    async def check(self, seconds: float = CONNECT_SECONDS) -> None:
        """Returns once the server serves.

        Raises:
            ServerUnavailable: it does not within the seconds.
        """
        check: UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(HEALTH_METHOD)
        end = time.monotonic() + seconds
        while True:
            try:
                if await check(b"", timeout=HEALTH_SECONDS) == SERVING:
                    return
                failure = unreachable(self.address, "it is going down")
            except AioRpcError as error:
                failure = error_from_rpc(error, self.address)
                if error.code() != StatusCode.UNAVAILABLE:
                    raise failure from error
            if time.monotonic() > end:
                raise failure
            await asyncio.sleep(FIRST_PAUSE_SECONDS)

    async def call(self, method: UnaryUnaryMultiCallable[_Request, _Response], request: _Request) -> _Response:
        """A unary call, tried again while the server is away. Every method that is called so is idempotent.

        Raises:
            PunnetError: what the server answered, or ServerUnavailable.
        """
        patience = Patience(self)
        while True:
            try:
                return await method(request, timeout=CALL_SECONDS, metadata=self.metadata)
            except AioRpcError as error:
                await patience.wait(error)

    async def close(self) -> None:
        """Ends every call."""
        await self._channel.close()


class Patience:
    """Decides after a failed call whether to try again, and waits: 0.1 s doubling to 5 s, with jitter.

    Without progress it ends after the connection's patience.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.progressed()

    def progressed(self) -> None:
        """Starts the patience anew, since something came through."""
        self._end = time.monotonic() + self._connection.patience_seconds
        self._pause = FIRST_PAUSE_SECONDS

    async def wait(self, error: AioRpcError) -> None:
        """Returns when it is time for another try.

        Raises:
            PunnetError: `error` as its typed exception, where another try would not help or patience is over.
        """
        asked = retry_seconds(error)
        again = error.code() == StatusCode.UNAVAILABLE or asked is not None or reason(error) in RESUMABLE
        again = again or error.details() == MASKED_STATUS
        # A wait that is longer than the patience would only delay the same answer.
        if not again or time.monotonic() + (asked or 0.0) > self._end:
            if error.details() == MASKED_STATUS:
                raise unreachable(self._connection.address, "each try broke off") from error
            raise error_from_rpc(error, self._connection.address) from error
        if error.code() == StatusCode.UNAVAILABLE and self._connection.revive is not None:
            await self._connection.revive()
        await asyncio.sleep(asked or self._pause * random.uniform(0.5, 1.0))
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
