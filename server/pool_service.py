# ruff: noqa: N802 - the contract names the methods
"""Pools, on the wire."""

from __future__ import annotations

import secrets
from typing import Any

import grpc

from punnet.v1 import pool_pb2, pool_pb2_grpc
from server.callers import tenant
from server.job_message import job_message, pool_message
from server.job_spec import append_spec, ingest_spec, pool_spec
from server.jobs import JobEngine
from server.page_token import parse_token, to_token
from server.pool_table import SharedPools, find_pool, pool_not_found, pool_reference, pools_after
from server.request_check import check_ingest, check_pool_job, check_pool_name, check_shrink, page_size
from server.store import Store

Context = grpc.aio.ServicerContext[Any, Any]
PoolRequest = pool_pb2.VerifyPoolRequest | pool_pb2.DescribePoolRequest
PAGE_SIZE, PAGE_LIMIT = 50, 200


class PoolService(pool_pb2_grpc.PoolServiceServicer):
    """Makes, extends, checks, shows, lists and removes pools."""

    def __init__(self, engine: JobEngine, store: Store, shared_pools: SharedPools) -> None:
        self._engine = engine
        self._store = store
        self._shared_pools = shared_pools

    async def CreatePool(self, request: pool_pb2.CreatePoolRequest, context: Context) -> pool_pb2.CreatePoolResponse:
        """Accept an ingest."""
        check_ingest(request)
        check_shrink(request)
        job = await self._engine.submit(tenant(), "ingest", ingest_spec(request), request.request_id)
        return pool_pb2.CreatePoolResponse(job=job_message(job))

    async def AppendPool(self, request: pool_pb2.AppendPoolRequest, context: Context) -> pool_pb2.AppendPoolResponse:
        """Accept an ingest of new shards."""
        check_ingest(request)
        own = await self._store.read(pool_reference, tenant(), request.name, request.request_id, {})
        spec = append_spec(request, own)
        job = await self._engine.submit(tenant(), "ingest", spec, request.request_id)
        return pool_pb2.AppendPoolResponse(job=job_message(job))

    async def VerifyPool(self, request: pool_pb2.VerifyPoolRequest, context: Context) -> pool_pb2.VerifyPoolResponse:
        """Accept a verification."""
        check_pool_job(request)
        check = request.request_id or secrets.token_hex(16)
        spec = pool_spec(await self._reference(request), check=check)
        job = await self._engine.submit(tenant(), "verify_pool", spec, request.request_id)
        return pool_pb2.VerifyPoolResponse(job=job_message(job))

    async def DescribePool(
        self, request: pool_pb2.DescribePoolRequest, context: Context
    ) -> pool_pb2.DescribePoolResponse:
        """Accept the making of a pool's page."""
        check_pool_job(request)
        spec = pool_spec(await self._reference(request))
        job = await self._engine.submit(tenant(), "describe_pool", spec, request.request_id)
        return pool_pb2.DescribePoolResponse(job=job_message(job))

    async def DeletePool(self, request: pool_pb2.DeletePoolRequest, context: Context) -> pool_pb2.DeletePoolResponse:
        """Remove a pool that no job uses; one that is only shared with the tenant is not its own to remove."""
        check_pool_name("name", request.name)
        await self._engine.delete_pool(tenant(), request.name)
        return pool_pb2.DeletePoolResponse()

    async def GetPool(self, request: pool_pb2.GetPoolRequest, context: Context) -> pool_pb2.GetPoolResponse:
        """One pool."""
        pool = await self._store.read(find_pool, tenant(), request.name, self._shared_pools())
        if pool is None:
            raise pool_not_found("name", request.name)
        return pool_pb2.GetPoolResponse(pool=pool_message(pool, tenant()))

    async def ListPools(self, request: pool_pb2.ListPoolsRequest, context: Context) -> pool_pb2.ListPoolsResponse:
        """A page of pools."""
        size = page_size(request.page_size, default=PAGE_SIZE, limit=PAGE_LIMIT)
        (after,) = parse_token(request.page_token, (str,)) if request.page_token else ("",)
        rows = await self._store.read(pools_after, tenant(), after, size + 1, self._shared_pools())
        page, more = rows[:size], rows[size:]
        token = to_token(page[-1].name) if more else ""
        pools = [pool_message(pool, tenant()) for pool in page]
        return pool_pb2.ListPoolsResponse(pools=pools, next_page_token=token)

    async def _reference(self, request: PoolRequest) -> dict[str, str]:
        shared = self._shared_pools()
        return await self._store.read(pool_reference, tenant(), request.name, request.request_id, shared)
