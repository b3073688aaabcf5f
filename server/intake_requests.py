"""What every request with a teacher needs before it becomes a job: blobs there, sizes known, inline images stored."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any

from punnet.v1 import catalogue_pb2, compression_pb2
from server.blobs import BlobStore
from server.job_spec import digests_of
from server.request_check import check_blob_sizes
from server.storage_quota import StorageQuota


class IntakeRequests:
    """Prepares the blobs of a request."""

    def __init__(self, blobs: BlobStore, storage: StorageQuota) -> None:
        self._blobs = blobs
        self._storage = storage

    async def prepare(
        self,
        tenant: str,
        request: compression_pb2.CompressRequest | catalogue_pb2.InspectTeacherRequest,
        spec: Mapping[str, Any],
    ) -> None:
        """Find the blobs that the request names, check their sizes, then store inline images.

        Raises:
            PunnetError: BLOB_MISSING, MODEL_TOO_LARGE, QUOTA, DISK_FULL.
        """
        inline = {hashlib.sha256(image.data).hexdigest(): image.data for image in request.images.inline.images}
        wanted = digests_of(spec) - set(inline)
        found = await asyncio.to_thread(self._blobs.require_all, tenant, wanted)
        sizes = {sha256: len(data) for sha256, data in inline.items()}
        check_blob_sizes(request.teacher, sizes | {sha256: size for sha256, (_, size) in found.items()})
        if inline:
            async with self._storage.reserve(tenant, sum(map(len, inline.values()))):
                await self._blobs.in_thread(self._blobs.put_all, tenant, list(inline.values()))
