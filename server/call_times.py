"""How long each call takes and how it ends; stands outside of everything else that looks at calls."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from server.meter import Meter

Context = grpc.aio.ServicerContext[Any, Any]


class CallTimes(grpc.aio.ServerInterceptor):
    """Times every method's handler."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the method's handler by one of the same arity; a method that there is not is not counted."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        coders = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary, method), **coders)
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(self._unary(handler.stream_unary, method), **coders)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(self._stream(handler.unary_stream, method), **coders)
        return grpc.stream_stream_rpc_method_handler(self._stream(handler.stream_stream, method), **coders)

    def _unary(self, inner: Callable[[Any, Context], Awaitable[Any]], method: str) -> Any:
        async def call(request: Any, context: Context) -> Any:
            with self._timed(method, context):
                return await inner(request, context)

        return call

    def _stream(self, inner: Callable[[Any, Context], Any], method: str) -> Any:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            with self._timed(method, context):
                async for message in inner(request, context):
                    yield message

        return call

    @contextmanager
    def _timed(self, method: str, context: Context) -> Iterator[None]:
        start = time.monotonic()
        ended = False
        try:
            yield
            ended = True
        finally:
            self._meter.call_ended(method, _code_name(context.code(), ended=ended), time.monotonic() - start)


def _code_name(code: Any, *, ended: bool) -> str:
    """The status as its name; a call that its client left has none yet."""
    if not code:
        return "OK" if ended else "CANCELLED"
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((status.name for status in grpc.StatusCode if status.value[0] == code), str(code))
