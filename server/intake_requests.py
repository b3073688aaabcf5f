"""What every request with a teacher needs before it becomes a job: inline images stored, blobs there, sizes known."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from punnet.v1 import catalogue_pb2, compression_pb2, options_pb2
from server.blobs import BlobStore, missing_blob
from server.job_spec import digests_of
from server.request_check import check_blob_sizes


class IntakeRequests:
    """Prepares the blobs of a request."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    async def prepare(
        self,
        tenant: str,
        request: compression_pb2.CompressRequest | catalogue_pb2.InspectTeacherRequest,
        spec: Mapping[str, Any],
    ) -> None:
        """Store inline images, then find every blob that the spec names.

        Raises:
            PunnetError: BLOB_MISSING, MODEL_TOO_LARGE, DISK_FULL.
        """
        if request.images.WhichOneof("source") == "inline":
            await self._blobs.in_thread(self._store_inline, tenant, request.images.inline)
        wanted = digests_of(spec)
        found = await asyncio.to_thread(self._blobs.find_all, tenant, wanted)
        missing = sorted(wanted - set(found))
        if missing:
            raise missing_blob(missing[0], len(missing))
        check_blob_sizes(request.teacher, {sha256: size for sha256, (_, size) in found.items()})

    def _store_inline(self, tenant: str, images: options_pb2.InlineImages) -> None:
        for image in images.images:
            self._blobs.put(tenant, image.data)
