# ruff: noqa: N802 - the contract names the methods
"""Pools, on the wire."""

from __future__ import annotations

import secrets
from typing import Any

import grpc

from punnet.v1 import pool_pb2, pool_pb2_grpc
from server.job_message import job_message, pool_message
from server.job_spec import append_spec, ingest_spec, pool_spec
from server.jobs import JobEngine
from server.page_token import parse_token, to_token
from server.pool_table import pool_by_name, pool_not_found, pools_after, version_for
from server.request_check import check_ingest, check_pool_job, check_pool_name, check_shrink, page_size
from server.store import LOCAL_TENANT, Store

Context = grpc.aio.ServicerContext[Any, Any]
PoolRequest = pool_pb2.AppendPoolRequest | pool_pb2.VerifyPoolRequest | pool_pb2.DescribePoolRequest
PAGE_SIZE, PAGE_LIMIT = 50, 200


class PoolService(pool_pb2_grpc.PoolServiceServicer):
    """Makes, extends, checks, shows, lists and removes pools."""

    def __init__(self, engine: JobEngine, store: Store) -> None:
        self._engine = engine
        self._store = store

    async def CreatePool(self, request: pool_pb2.CreatePoolRequest, context: Context) -> pool_pb2.CreatePoolResponse:
        """Accept an ingest."""
        check_ingest(request)
        check_shrink(request)
        job = await self._engine.submit(LOCAL_TENANT, "ingest", ingest_spec(request), request.request_id)
        return pool_pb2.CreatePoolResponse(job=job_message(job))

    async def AppendPool(self, request: pool_pb2.AppendPoolRequest, context: Context) -> pool_pb2.AppendPoolResponse:
        """Accept an ingest of new shards."""
        check_ingest(request)
        spec = append_spec(request, await self._version(request))
        job = await self._engine.submit(LOCAL_TENANT, "ingest", spec, request.request_id)
        return pool_pb2.AppendPoolResponse(job=job_message(job))

    async def VerifyPool(self, request: pool_pb2.VerifyPoolRequest, context: Context) -> pool_pb2.VerifyPoolResponse:
        """Accept a verification."""
        check_pool_job(request)
        check = request.request_id or secrets.token_hex(16)
        spec = pool_spec(request.name, await self._version(request), check=check)
        job = await self._engine.submit(LOCAL_TENANT, "verify_pool", spec, request.request_id)
        return pool_pb2.VerifyPoolResponse(job=job_message(job))

    async def DescribePool(
        self, request: pool_pb2.DescribePoolRequest, context: Context
    ) -> pool_pb2.DescribePoolResponse:
        """Accept the making of a pool's page."""
        check_pool_job(request)
        spec = pool_spec(request.name, await self._version(request))
        job = await self._engine.submit(LOCAL_TENANT, "describe_pool", spec, request.request_id)
        return pool_pb2.DescribePoolResponse(job=job_message(job))

    async def DeletePool(self, request: pool_pb2.DeletePoolRequest, context: Context) -> pool_pb2.DeletePoolResponse:
        """Remove a pool that no job uses."""
        check_pool_name("name", request.name)
        await self._engine.delete_pool(LOCAL_TENANT, request.name)
        return pool_pb2.DeletePoolResponse()

    async def GetPool(self, request: pool_pb2.GetPoolRequest, context: Context) -> pool_pb2.GetPoolResponse:
        """One pool."""
        pool = await self._store.read(pool_by_name, LOCAL_TENANT, request.name)
        if pool is None:
            raise pool_not_found("name", request.name)
        return pool_pb2.GetPoolResponse(pool=pool_message(pool))

    async def ListPools(self, request: pool_pb2.ListPoolsRequest, context: Context) -> pool_pb2.ListPoolsResponse:
        """A page of pools."""
        size = page_size(request.page_size, default=PAGE_SIZE, limit=PAGE_LIMIT)
        (after,) = parse_token(request.page_token, (str,)) if request.page_token else ("",)
        rows = await self._store.read(pools_after, LOCAL_TENANT, after, size + 1)
        page, more = rows[:size], rows[size:]
        token = to_token(page[-1].name) if more else ""
        return pool_pb2.ListPoolsResponse(pools=[pool_message(pool) for pool in page], next_page_token=token)

    async def _version(self, request: PoolRequest) -> str:
        return await self._store.read(version_for, LOCAL_TENANT, request.name, request.request_id)
