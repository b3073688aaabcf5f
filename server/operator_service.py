# ruff: noqa: N802 - the contract names the methods
"""What the operator asks for, on the wire."""

from __future__ import annotations

import math
from typing import Any

import grpc

from punnet.v1 import operator_pb2, operator_pb2_grpc
from server.collection import Bounds, Removal
from server.collector import Collector
from server.request_check import violation

Context = grpc.aio.ServicerContext[Any, Any]
LISTED_REMOVALS = 10_000


class OperatorService(operator_pb2_grpc.OperatorServiceServicer):
    """The operator's calls; they concern every tenant."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    async def CollectGarbage(
        self, request: operator_pb2.CollectGarbageRequest, context: Context
    ) -> operator_pb2.CollectGarbageResponse:
        """Say what nobody needs any more, or remove it."""
        own = self._collector.bounds
        bounds = Bounds(
            job_days=_days(request, "job_days", own.job_days),
            result_days=_days(request, "result_days", own.result_days),
            quota_bytes=_quota(request, own.quota_bytes),
        )
        found = await self._collector.collect(bounds, apply=request.apply)
        return operator_pb2.CollectGarbageResponse(
            removals=[_message(removal) for removal in found.removals[:LISTED_REMOVALS]],
            removal_count=len(found.removals),
            removed_bytes=found.removed_bytes,
            kept_bytes=found.kept_bytes,
            applied=request.apply,
        )


def _days(request: operator_pb2.CollectGarbageRequest, name: Any, own: float | None) -> float | None:
    if not request.HasField(name):
        return own
    value = float(getattr(request, name))
    if not (math.isfinite(value) and value >= 0):
        raise violation(name, "a finite number of days, at least 0", value)
    return value


def _quota(request: operator_pb2.CollectGarbageRequest, own: int | None) -> int | None:
    if not request.HasField("quota_bytes"):
        return own
    if request.quota_bytes < 0:
        raise violation("quota_bytes", "at least 0", request.quota_bytes)
    return request.quota_bytes


def _message(removal: Removal) -> operator_pb2.Removal:
    return operator_pb2.Removal(kind=removal.kind, name=removal.name, bytes=removal.bytes, reason=removal.reason)
