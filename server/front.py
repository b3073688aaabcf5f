"""The gRPC server: options, services, and the outermost interceptor, through which every call goes."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from punnet.errors import PunnetError, make_error
from punnet.v1 import (
    blob_pb2_grpc,
    build_pb2_grpc,
    catalogue_pb2_grpc,
    compression_pb2_grpc,
    operator_pb2_grpc,
    pool_pb2_grpc,
)
from server.admission import Admission
from server.audit import AuditLog, Record
from server.call_times import CallTimes
from server.callers import Caller, enter
from server.disk_space import storage_failure
from server.meter import Meter
from server.scopes import is_open
from server.status import abort, internal

log = logging.getLogger(__name__)

MESSAGE_BYTES = 4 << 20
CONCURRENT_CALLS = 512  # above the number of watchers
END_POLL_SECONDS = 0.01
# Each of these mends a fault that was reproduced: cut idle streams, large messages, two servers on one port.
OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    # A chunk in one frame, not in 64 of 16 KiB; no slower in `benchmarks.transport`.
    ("grpc.http2.max_frame_size", 1 << 20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)
SERVICES = (
    "punnet.v1.CompressionService",
    "punnet.v1.BlobService",
    "punnet.v1.PoolService",
    "punnet.v1.CatalogueService",
    "punnet.v1.OperatorService",
    "punnet.v1.BuildService",
)
Context = grpc.aio.ServicerContext[Any, Any]
Parse = Callable[[bytes], Any]


class Calls(grpc.aio.ServerInterceptor):
    """Outermost: admits each call, counts and audits it, and turns what a service raises into a status.

    A request is read only once its caller is admitted. The text of an unexpected exception never leaves the server: it
    may hold paths or a user's data.
    """

    def __init__(self, admission: Admission, audit: AuditLog | None = None) -> None:
        self._admission = admission
        self._audit = audit
        self.running = 0
        self.last_end = time.monotonic()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the method's handler by one of the same arity that takes bytes."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return None
        parse, coders = handler.request_deserializer, {"response_serializer": handler.response_serializer}
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary, method, parse), **coders)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(self._stream(handler.unary_stream, method, parse), **coders)
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(self._unary(handler.stream_unary, method, parse), **coders)
        return grpc.stream_stream_rpc_method_handler(self._stream(handler.stream_stream, method, parse), **coders)

    async def ended(self, seconds: float) -> None:
        """Wait until no call runs and each has sent its status, at most so long."""
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            await asyncio.sleep(END_POLL_SECONDS)

    def _unary(self, inner: Callable[[Any, Context], Awaitable[Any]], method: str, parse: Parse) -> Any:
        async def call(raw: Any, context: Context) -> Any:
            async with self._admitted(method, context) as running:
                answer = await inner(self._request(raw, parse, running), context)
                running.record.note(answer)
                return answer

        return call

    def _stream(self, inner: Callable[[Any, Context], Any], method: str, parse: Parse) -> Any:
        async def call(raw: Any, context: Context) -> AsyncIterator[Any]:
            async with self._admitted(method, context) as running:
                # Reflection's generator hands out messages like ours; health's coroutine writes by itself.
                answer = inner(self._request(raw, parse, running), context)
                if hasattr(answer, "__aiter__"):
                    async for message in answer:
                        self._admission.check(running.caller)
                        yield message
                else:
                    await answer

        return call

    @asynccontextmanager
    async def _admitted(self, method: str, context: Context) -> AsyncIterator[_Running]:
        self.running += 1
        record = Record(method=method, peer=context.peer())
        caller: Caller | None = None
        try:
            caller = self._admission.admit(method, context)
            record.tenant, record.token_id = caller.tenant, caller.token_id
            enter(caller)
            yield _Running(method=method, caller=caller, record=record)
            record.outcome = "OK"
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - the outermost frame of every call
            await self._refuse(context, record, error)
        finally:
            # Whoever fails on and on is told so, and does not fill the disk.
            if self._audit is not None and not is_open(method) and record.outcome != "QUOTA":
                self._audit.write(record)
            if caller is not None:
                self._admission.leave(caller)
            self.running -= 1
            self.last_end = time.monotonic()

    def _request(self, raw: Any, parse: Parse, running: _Running) -> Any:
        """The request, or the stream of requests, of which each is read when it is asked for."""
        if not hasattr(raw, "__aiter__"):
            return _parsed(raw, parse, running)

        async def requests() -> AsyncIterator[Any]:
            async for each in raw:
                self._admission.check(running.caller)
                yield _parsed(each, parse, running)

        return requests()

    async def _refuse(self, context: Context, record: Record, error: Exception) -> None:
        if (failure := storage_failure(error)) is not None:
            log.error("the data folder fails", exc_info=error, extra={"method": record.method, "code": failure.code})
            error = failure
        if isinstance(error, PunnetError):
            record.outcome = error.code
            log.info("refused", extra={"method": record.method, "code": error.code, "details": error.details})
            await abort(context, error)
        record.outcome = "INTERNAL"
        error_id = secrets.token_hex(8)
        log.error("call failed", exc_info=error, extra={"method": record.method, "error_id": error_id})
        await abort(context, internal(error_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """An admitted call."""

    method: str
    caller: Caller
    record: Record


def _parsed(raw: bytes, parse: Parse, running: _Running) -> Any:
    try:
        message = parse(raw)
    except DecodeError:
        raise make_error(
            "REQUEST_INVALID",
            f"The {len(raw)} bytes that came are no request of {running.method}.",
            "Use a client of this server's version, or its .proto files.",
        ) from None
    running.record.note(message)
    return message


class Front:
    """The server with its services and its health."""

    def __init__(
        self,
        *,
        compression: compression_pb2_grpc.CompressionServiceServicer,
        blob: blob_pb2_grpc.BlobServiceServicer,
        pool: pool_pb2_grpc.PoolServiceServicer,
        catalogue: catalogue_pb2_grpc.CatalogueServiceServicer,
        operator: operator_pb2_grpc.OperatorServiceServicer,
        build: build_pb2_grpc.BuildServiceServicer,
        reflection: bool,
        calls: Calls,
        meter: Meter,
    ) -> None:
        self.calls = calls
        self.health = HealthServicer()
        self.server = grpc.aio.server(
            interceptors=(CallTimes(meter), self.calls), options=OPTIONS, maximum_concurrent_rpcs=CONCURRENT_CALLS
        )
        compression_pb2_grpc.add_CompressionServiceServicer_to_server(compression, self.server)
        blob_pb2_grpc.add_BlobServiceServicer_to_server(blob, self.server)
        pool_pb2_grpc.add_PoolServiceServicer_to_server(pool, self.server)
        catalogue_pb2_grpc.add_CatalogueServiceServicer_to_server(catalogue, self.server)
        operator_pb2_grpc.add_OperatorServiceServicer_to_server(operator, self.server)
        build_pb2_grpc.add_BuildServiceServicer_to_server(build, self.server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        if reflection:
            _add_reflection(self.server)

    async def open(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Bind and serve, over TLS where there are credentials; the port, or 1 for a socket.

        Raises:
            RuntimeError: the address is taken, or the credentials can't be used.
        """
        if credentials is None:
            port = self.server.add_insecure_port(address)
        else:
            port = self.server.add_secure_port(address, credentials)
        await self.server.start()
        for name in ("", *SERVICES):
            await self.health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return port


def _add_reflection(server: grpc.aio.Server) -> None:
    from grpc_reflection.v1alpha import reflection

    names = (*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
