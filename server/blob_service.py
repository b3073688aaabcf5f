# ruff: noqa: N802 - the contract names the methods
"""Blobs, on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from punnet.errors import make_error
from punnet.v1 import blob_pb2, blob_pb2_grpc
from server.blobs import BlobStore, Digest, Upload, missing_blob
from server.callers import tenant
from server.folders import DataFolder
from server.job_table import artifact_by_digest
from server.request_check import check_digest, violation
from server.storage_quota import StorageQuota
from server.store import Store

Context = grpc.aio.ServicerContext[Any, Any]
CHUNK_BYTES = 1 << 20
BLOB_BYTES = 16 << 30
DIGESTS = 10_000
SILENT_SECONDS = 60.0  # between two messages of an upload


class BlobService(blob_pb2_grpc.BlobServiceServicer):
    """Uploads and downloads; artifacts of finished jobs are read like blobs."""

    def __init__(self, blobs: BlobStore, store: Store, data: DataFolder, storage: StorageQuota) -> None:
        self._blobs = blobs
        self._storage = storage
        self._store = store
        self._data = data
        self.draining = False

    async def FindMissingBlobs(
        self, request: blob_pb2.FindMissingBlobsRequest, context: Context
    ) -> blob_pb2.FindMissingBlobsResponse:
        """Which of these are still to be uploaded."""
        if len(request.digests) > DIGESTS:
            raise violation("digests", f"at most {DIGESTS}", len(request.digests))
        for digest in request.digests:
            _digest("digests", digest)
        found = await asyncio.to_thread(self._blobs.find_all, tenant(), [d.sha256 for d in request.digests])
        missing = [d for d in request.digests if d.sha256 not in found or found[d.sha256][1] != d.size]
        return blob_pb2.FindMissingBlobsResponse(missing=missing)

    async def GetUploadStatus(
        self, request: blob_pb2.GetUploadStatusRequest, context: Context
    ) -> blob_pb2.GetUploadStatusResponse:
        """How far a broken upload is."""
        digest = _digest("digest", request.digest)
        size, complete = await self._blobs.in_thread(self._blobs.committed_size, tenant(), digest)
        return blob_pb2.GetUploadStatusResponse(committed_size=size, complete=complete)

    async def UploadBlob(
        self, request_iterator: AsyncIterator[blob_pb2.UploadBlobRequest], context: Context
    ) -> blob_pb2.UploadBlobResponse:
        """Store what comes. Only `finish` makes a blob of it: a killed client looks like a normal end."""
        if self.draining:
            raise make_error("UNAVAILABLE", "The server goes down.", "Go on with the upload in a moment.")
        async with _silence_limited():
            first = await anext(aiter(request_iterator), None)
        if first is None:
            raise violation("digest", "on the first message", "no message")
        digest = _digest("digest", first.digest)
        async with self._blobs.upload(tenant(), digest) as upload:
            if upload is None:
                return blob_pb2.UploadBlobResponse(committed_size=digest.size)
            async with self._storage.reserve(tenant(), digest.size, upload.path.name):
                await self._take_all(upload, first, request_iterator)
        return blob_pb2.UploadBlobResponse(committed_size=digest.size)

    async def DownloadBlob(
        self, request: blob_pb2.DownloadBlobRequest, context: Context
    ) -> AsyncIterator[blob_pb2.DownloadBlobResponse]:
        """Send a blob or an artifact from an offset."""
        check_digest("sha256", request.sha256)
        path, size = await self._locate(request.sha256)
        if not 0 <= request.offset <= size:
            raise violation("offset", f"0 to {size}", request.offset)
        position = request.offset
        if position == size:
            yield blob_pb2.DownloadBlobResponse(offset=position, size=size)
        async for data, crc32c in self._blobs.read(path, position):
            yield blob_pb2.DownloadBlobResponse(offset=position, data=data, crc32c=crc32c, size=size)
            position += len(data)

    async def _take_all(
        self, upload: Upload, first: blob_pb2.UploadBlobRequest, others: AsyncIterator[blob_pb2.UploadBlobRequest]
    ) -> None:
        if first.offset == 0 and upload.size:
            await self._blobs.restart(upload)
        finished = await self._take(upload, first)
        async with _silence_limited() as silence:
            async for message in others:
                silence.reschedule(None)  # the disk may take its time
                if finished:
                    raise violation("finish", "only on the last message", "a message after it")
                finished = await self._take(upload, message)
                silence.reschedule(asyncio.get_running_loop().time() + SILENT_SECONDS)
        if not finished:
            raise _unfinished(upload)
        await self._blobs.finish(tenant(), upload)

    async def _take(self, upload: Upload, message: blob_pb2.UploadBlobRequest) -> bool:
        if message.offset != upload.size:
            raise make_error(
                "UPLOAD_OFFSET",
                f"Field offset: {message.offset} came, {upload.size} is next.",
                "Ask GetUploadStatus, then go on from its committed_size.",
                {"field": "offset", "value": str(message.offset), "next": str(upload.size)},
            )
        data = message.data  # each reading of the field copies it
        if len(data) > CHUNK_BYTES:
            raise violation("data", f"at most {CHUNK_BYTES} bytes", len(data))
        if upload.size + len(data) > upload.digest.size:
            raise violation("data", f"{upload.digest.size} bytes together", "more")
        await self._blobs.append(upload, data, message.crc32c)
        return message.finish

    async def _locate(self, sha256: str) -> tuple[Path, int]:
        found = await asyncio.to_thread(self._blobs.find, tenant(), sha256)
        if found is not None:
            return found
        artifact = await self._store.read(artifact_by_digest, tenant(), sha256)
        if artifact is None:
            raise missing_blob(sha256)
        return self._data.root / artifact.folder / artifact.path, artifact.size


@asynccontextmanager
async def _silence_limited() -> AsyncIterator[asyncio.Timeout]:
    """A stream that stays silent would keep others from uploading. One timer a stream: one a message takes 30 us."""
    try:
        async with asyncio.timeout(SILENT_SECONDS) as silence:
            yield silence
    except TimeoutError:
        if not silence.expired():
            raise
        raise make_error(
            "UNAVAILABLE",
            f"No message of the upload came for {SILENT_SECONDS:g} seconds.",
            "Ask GetUploadStatus, then go on from its committed_size.",
        ) from None


def _digest(field: str, digest: blob_pb2.BlobDigest) -> Digest:
    check_digest(f"{field}.sha256", digest.sha256)
    if not 0 <= digest.size <= BLOB_BYTES:
        raise violation(f"{field}.size", f"0 to {BLOB_BYTES}", digest.size)
    return Digest(digest.sha256, digest.size)


def _unfinished(upload: Upload) -> Exception:
    return make_error(
        "UPLOAD_OFFSET",
        f"The upload ended after {upload.size} of {upload.digest.size} bytes without `finish`.",
        "Ask GetUploadStatus, then go on from its committed_size.",
    )
