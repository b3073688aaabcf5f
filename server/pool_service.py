# ruff: noqa: N802 - the contract names the methods
"""Pools, on the wire."""

from __future__ import annotations

from typing import Any

import grpc

from punnet.errors import make_error
from punnet.v1 import pool_pb2, pool_pb2_grpc
from server.job_message import job_message, pool_message
from server.job_spec import ingest_spec
from server.jobs import JobEngine
from server.page_token import parse_token, to_token
from server.pool_table import pool_by_name, pools_after
from server.request_check import check_ingest, page_size
from server.store import LOCAL_TENANT, Store

Context = grpc.aio.ServicerContext[Any, Any]
PAGE_SIZE, PAGE_LIMIT = 50, 200


class PoolService(pool_pb2_grpc.PoolServiceServicer):
    """Makes and lists pools."""

    def __init__(self, engine: JobEngine, store: Store) -> None:
        self._engine = engine
        self._store = store

    async def CreatePool(self, request: pool_pb2.CreatePoolRequest, context: Context) -> pool_pb2.CreatePoolResponse:
        """Accept an ingest."""
        check_ingest(request)
        job = await self._engine.submit(LOCAL_TENANT, "ingest", ingest_spec(request), request.request_id)
        return pool_pb2.CreatePoolResponse(job=job_message(job))

    async def GetPool(self, request: pool_pb2.GetPoolRequest, context: Context) -> pool_pb2.GetPoolResponse:
        """One pool."""
        pool = await self._store.read(pool_by_name, LOCAL_TENANT, request.name)
        if pool is None:
            text = f"Field name: there is no pool {request.name[:64]!r}."
            raise make_error("POOL_NOT_FOUND", text, "`punnet pools` lists the pools.")
        return pool_pb2.GetPoolResponse(pool=pool_message(pool))

    async def ListPools(self, request: pool_pb2.ListPoolsRequest, context: Context) -> pool_pb2.ListPoolsResponse:
        """A page of pools."""
        size = page_size(request.page_size, default=PAGE_SIZE, limit=PAGE_LIMIT)
        (after,) = parse_token(request.page_token, (str,)) if request.page_token else ("",)
        rows = await self._store.read(pools_after, LOCAL_TENANT, after, size + 1)
        page, more = rows[:size], rows[size:]
        token = to_token(page[-1].name) if more else ""
        return pool_pb2.ListPoolsResponse(pools=[pool_message(pool) for pool in page], next_page_token=token)
