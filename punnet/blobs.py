"""Uploads that resume and downloads that are verified."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from grpc.aio import AioRpcError, StreamUnaryCall, UnaryStreamCall

from punnet.connection import Connection, Patience
from punnet.errors import IntegrityError, make_error
from punnet.transfer import Blob, Chunk, VerifiedFile, artifact_path, chunks, is_there
from punnet.v1 import blob_pb2, job_pb2

FIND_DIGESTS = 10_000  # the most that one FindMissingBlobs takes
CORRUPT_TRIES = 3

Upload = StreamUnaryCall[blob_pb2.UploadBlobRequest, blob_pb2.UploadBlobResponse]
Download = UnaryStreamCall[blob_pb2.DownloadBlobRequest, blob_pb2.DownloadBlobResponse]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """How far the upload or download of several files is, in bytes."""

    done: int
    total: int


TransferProgress = Callable[[Transfer], None]


async def upload_missing(
    connection: Connection, blobs: Sequence[Blob], progress: TransferProgress | None = None
) -> None:
    """Brings the blobs that the server lacks there; those that it has cost one question.

    Raises:
        PunnetError: what the server answered; IntegrityError where a file changed meanwhile.
    """
    unique = {blob.sha256: blob for blob in blobs}
    missing = [unique[sha256] for sha256 in await _missing(connection, list(unique.values()))]
    total = sum(blob.size for blob in missing)
    before = 0
    for blob in missing:
        await _upload(connection, blob, _shifted(progress, before, total))
        before += blob.size


async def download(
    connection: Connection,
    artifacts: Sequence[job_pb2.Artifact],
    folder: Path,
    progress: TransferProgress | None = None,
) -> list[Path]:
    """Fetches artifacts below a folder; each gets its name once its sha256 is right. Those that are there stay.

    Raises:
        IntegrityError: ARTIFACT_CORRUPT for a wrong path, size or digest.
        PunnetError: what the server answered.
    """
    targets = [artifact_path(folder, artifact.path) for artifact in artifacts]
    if len(set(targets)) != len(targets):
        raise make_error(
            "ARTIFACT_CORRUPT", "The server names two artifacts with one path.", "Do not trust this server."
        )
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(artifact.size for artifact in artifacts)
    before = 0
    for artifact, target in zip(artifacts, targets, strict=True):
        await _download(connection, artifact, target, _shifted(progress, before, total))
        before += artifact.size
    return targets


async def _missing(connection: Connection, blobs: Sequence[Blob]) -> list[str]:
    found: list[str] = []
    for start in range(0, len(blobs), FIND_DIGESTS):
        digests = [_digest(blob) for blob in blobs[start : start + FIND_DIGESTS]]
        request = blob_pb2.FindMissingBlobsRequest(digests=digests)
        response = await connection.call(connection.blobs.FindMissingBlobs, request)
        found += [digest.sha256 for digest in response.missing]
    return found


async def _upload(connection: Connection, blob: Blob, progress: Callable[[int], None]) -> None:
    patience = Patience(connection)
    furthest = 0
    while True:
        request = blob_pb2.GetUploadStatusRequest(digest=_digest(blob))
        status = await connection.call(connection.blobs.GetUploadStatus, request)
        if status.complete:
            progress(blob.size)
            return
        if status.committed_size > furthest:
            furthest = status.committed_size
            patience.progressed()
        progress(status.committed_size)
        try:
            await _send(
                connection.blobs.UploadBlob(metadata=connection.metadata), blob, status.committed_size, progress
            )
            return
        except AioRpcError as error:
            await patience.wait(error)


async def _send(call: Upload, blob: Blob, offset: int, progress: Callable[[int], None]) -> None:
    """Sends the rest of a blob from `offset`.

    Raises:
        AioRpcError: the stream broke, or the server refused.
        IntegrityError: the file has another size than when it was hashed.
    """
    try:
        async for message in _messages(blob, offset):
            if call.done():  # the server answered early; what, `await call` tells
                break
            try:
                await call.write(message)
            except (asyncio.InvalidStateError, AioRpcError):  # it answered meanwhile
                break
            progress(message.offset + len(message.data))
        await call.done_writing()
        await call
    finally:
        call.cancel()


async def _messages(blob: Blob, offset: int) -> AsyncIterator[blob_pb2.UploadBlobRequest]:
    """The rest of a blob; the first message names it, the one that reaches its end carries `finish`."""
    digest: blob_pb2.BlobDigest | None = _digest(blob)
    if offset == blob.size:  # all of it is there, only the last word was lost
        yield blob_pb2.UploadBlobRequest(digest=digest, offset=offset, finish=True)
        return
    pieces = chunks(blob.source, offset)
    end = offset
    while chunk := await asyncio.to_thread(next, pieces, None):
        end = chunk.offset + len(chunk.data)
        if end > blob.size:
            raise _changed(blob, end)
        yield blob_pb2.UploadBlobRequest(
            digest=digest, offset=chunk.offset, data=chunk.data, crc32c=chunk.crc32c, finish=end == blob.size
        )
        digest = None
        if end == blob.size:
            return
    raise _changed(blob, end)


async def _download(
    connection: Connection, artifact: job_pb2.Artifact, target: Path, progress: Callable[[int], None]
) -> None:
    if await asyncio.to_thread(is_there, target, sha256=artifact.sha256, size=artifact.size):
        progress(artifact.size)
        return
    patience = Patience(connection)
    file = VerifiedFile(target, sha256=artifact.sha256, size=artifact.size)
    corrupt = 0
    try:
        while file.offset < artifact.size:
            request = blob_pb2.DownloadBlobRequest(sha256=artifact.sha256, offset=file.offset)
            before = file.offset
            try:
                await _receive(connection.blobs.DownloadBlob(request, metadata=connection.metadata), file, progress)
                break
            except AioRpcError as error:
                if file.offset > before:
                    patience.progressed()
                await patience.wait(error)
            except IntegrityError as error:
                corrupt += 1
                if error.code != "CHUNK_CORRUPT" or corrupt == CORRUPT_TRIES:
                    raise
        await asyncio.to_thread(file.finish)
    finally:
        file.discard()


async def _receive(call: Download, file: VerifiedFile, progress: Callable[[int], None]) -> None:
    """Stores one chunk in a thread while the next one comes; what came before an error is stored as well."""
    storing: asyncio.Task[None] | None = None
    try:
        async for message in call:
            chunk = Chunk(offset=message.offset, data=message.data, crc32c=message.crc32c)
            if storing is not None:
                await asyncio.shield(storing)
                progress(file.offset)
            storing = asyncio.create_task(asyncio.to_thread(file.write, chunk))
        if storing is not None:
            await asyncio.shield(storing)
            progress(file.offset)
    finally:
        call.cancel()
        if storing is not None:
            await asyncio.wait({storing})  # a thread can't be stopped, and the file must not be closed under it
            storing.exception()  # where the stream broke too, its own error is the one that counts


def _digest(blob: Blob) -> blob_pb2.BlobDigest:
    return blob_pb2.BlobDigest(sha256=blob.sha256, size=blob.size)


def _shifted(progress: TransferProgress | None, before: int, total: int) -> Callable[[int], None]:
    def report(done: int) -> None:
        if progress is not None:
            progress(Transfer(done=before + done, total=total))

    return report


def _changed(blob: Blob, size: int) -> IntegrityError:
    return IntegrityError(
        f"{blob.source if isinstance(blob.source, Path) else 'A blob'} has {size} bytes, but had {blob.size} before.",
        code="DIGEST_MISMATCH",
        remedy="Send it again once nothing writes to it any more.",
        details={"sha256": blob.sha256, "size": str(blob.size)},
    )
