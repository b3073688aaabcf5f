"""Uploads through gRPC, in this process, so that its limits can be short."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import google_crc32c
import grpc
import pytest

from punnet.v1 import blob_pb2, blob_pb2_grpc
from server import blob_service
from server.admission import Admission
from server.blob_service import BlobService
from server.blobs import CONCURRENT_UPLOADS, BlobStore, Digest
from server.folders import DataFolder
from server.front import Calls
from server.quotas import Quotas
from server.storage_quota import StorageQuota
from server.store import LOCAL_TENANT, Store
from tests.service.running_server import reason

PART_BYTES = 1000


async def one_then_silence(data: bytes) -> AsyncIterator[blob_pb2.UploadBlobRequest]:
    digest = blob_pb2.BlobDigest(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    part = data[:PART_BYTES]
    yield blob_pb2.UploadBlobRequest(digest=digest, data=part, crc32c=google_crc32c.value(part))
    await asyncio.sleep(30)


async def refusal(call: grpc.aio.StreamUnaryCall[blob_pb2.UploadBlobRequest, blob_pb2.UploadBlobResponse]) -> str:
    with pytest.raises(grpc.RpcError) as refused:
        await call
    return reason(refused.value)[0]


def test_silent_uploads_end_and_keep_what_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_service, "SILENT_SECONDS", 0.2)
    data = DataFolder(tmp_path)
    store, blobs = Store(data.database), BlobStore(data)
    contents = [os.urandom(2 * PART_BYTES) for _ in range(CONCURRENT_UPLOADS)]

    async def scenario() -> None:
        server = grpc.aio.server(interceptors=(Calls(Admission(None, Quotas())),))
        blob_pb2_grpc.add_BlobServiceServicer_to_server(
            BlobService(blobs, store, data, StorageQuota(data, None)), server
        )
        server.add_insecure_port(f"unix:{tmp_path / 's'}")
        await server.start()
        async with grpc.aio.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
            stub = blob_pb2_grpc.BlobServiceStub(channel)
            calls = [stub.UploadBlob(one_then_silence(content)) for content in contents]
            assert await asyncio.gather(*map(refusal, calls)) == ["UNAVAILABLE"] * CONCURRENT_UPLOADS
            assert await refusal(stub.UploadBlob(one_then_silence(b"more"))) == "UNAVAILABLE"
        await server.stop(None)

    asyncio.run(scenario())
    for content in contents:
        digest = Digest(hashlib.sha256(content).hexdigest(), len(content))
        assert blobs.committed_size(LOCAL_TENANT, digest) == (PART_BYTES, False)
    blobs.close()
    store.close()
