"""Files by their sha256, one folder a tenant: `blobs/<tenant>/<2 hex>/<digest>-<size>`.

An upload is a partial file that grows by batches; it becomes a blob when it is finished, has its size and its
digest. What a broken connection or a restart leaves is continued.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import google_crc32c

from punnet.errors import PunnetError, make_error
from server.disk_space import check_space, full_disk_named
from server.folders import DataFolder, fsync_folder
from server.job_spec import digests_of

BATCH_BYTES = 1 << 20  # handed to a thread at once
DOWNLOAD_CHUNK_BYTES = 1 << 20  # with freed buffers kept, cheaper than smaller ones
REHASH_BYTES = 1 << 20
DISK_THREADS = 4
SYNC_THREADS = 16  # the filesystem commits their syncs together: a thousand files take a third to a half of the time
CONCURRENT_UPLOADS = 4  # of one tenant: slow ones of another must not hold them all
ONE_WRITER_SECONDS = 45.0  # longer than keepalive takes to find a dead client

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Digest:
    """What a blob is called."""

    sha256: str
    size: int


@dataclass(slots=True)
class Upload:
    """One stream that writes one partial file."""

    digest: Digest
    path: Path
    file: int
    size: int
    hash: Any
    pending: list[tuple[bytes, int]] = field(default_factory=list)
    pending_bytes: int = 0
    in_flight: asyncio.Future[None] | None = None
    broken: bool = False  # a batch was not written; what came after it must not be either


class BlobStore:
    """Stores, finds and reads blobs; hashing and disk are in threads."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data
        self._threads = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="blobs")
        # A lock lives as long as streams hold it or wait for it.
        self._writers: WeakValueDictionary[tuple[str, Digest], asyncio.Lock] = WeakValueDictionary()
        self._uploads: Counter[str] = Counter()

    async def in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        """Run on the disk threads, to the end even where the caller is cancelled; a full disk becomes DISK_FULL."""
        return await _result(self._start(function, *arguments))

    def find(self, tenant: str, sha256: str) -> tuple[Path, int] | None:
        """Path and size of a blob."""
        return self.find_all(tenant, [sha256]).get(sha256)

    def find_all(self, tenant: str, digests: Iterable[str]) -> dict[str, tuple[Path, int]]:
        """Path and size of each blob that is there; asking keeps it for another day."""
        by_folder: defaultdict[str, set[str]] = defaultdict(set)
        for sha256 in digests:
            by_folder[sha256[:2]].add(sha256)
        found: dict[str, tuple[Path, int]] = {}
        for name, wanted in by_folder.items():
            folder = self._data.blobs(tenant) / name
            for entry in os.listdir(folder) if folder.is_dir() else ():
                sha256, _, size = entry.partition("-")
                if sha256 in wanted:
                    found[sha256] = (folder / entry, int(size))
                    os.utime(folder / entry)
        return found

    def require_all(self, tenant: str, digests: Set[str]) -> dict[str, tuple[Path, int]]:
        """Path and size of each blob; raises PunnetError BLOB_MISSING where one is not there."""
        found = self.find_all(tenant, digests)
        missing = sorted(digests - found.keys())
        if missing:
            raise missing_blob(missing[0], len(missing))
        return found

    @full_disk_named()
    def pin(self, tenant: str, spec: Mapping[str, Any], folder: Path) -> None:
        """Link every blob that a job names into the job's folder: it stays, and its stages see nothing else.

        Raises:
            PunnetError: BLOB_MISSING, DISK_FULL.
        """
        found = self.require_all(tenant, digests_of(spec))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for sha256, (path, _) in found.items():
            if not (folder / sha256).exists():
                os.link(path, folder / sha256)

    def put_all(self, tenant: str, contents: Sequence[bytes]) -> list[str]:
        """Store bytes that came whole; returns the sha256 of each. All are on the disk then.

        Raises:
            PunnetError: DISK_FULL.
        """
        digests = [Digest(hashlib.sha256(data).hexdigest(), len(data)) for data in contents]
        there = self.find_all(tenant, (digest.sha256 for digest in digests))
        new = {digest: data for digest, data in zip(digests, contents, strict=True) if digest.sha256 not in there}
        if new:
            check_space(self._partials(tenant), sum(digest.size for digest in new))
        with ThreadPoolExecutor(SYNC_THREADS) as threads:
            folders = set(threads.map(partial(self._put, tenant), new, new.values()))
            list(threads.map(fsync_folder, folders))
        return [digest.sha256 for digest in digests]

    def forget(self, tenant: str, digests: Sequence[str]) -> None:
        """Remove blobs whose content has found another place."""
        for path, _ in self.find_all(tenant, digests).values():
            path.unlink(missing_ok=True)

    def committed_size(self, tenant: str, digest: Digest) -> tuple[int, bool]:
        """Bytes that need not be sent again, and whether the blob is whole."""
        if self._blob(tenant, digest).exists():
            return digest.size, True
        try:
            descriptor = os.open(self._partial(tenant, digest), os.O_WRONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return 0, False
        try:
            os.fsync(descriptor)  # a killed server may have left bytes that are not on the disk yet
            return os.fstat(descriptor).st_size, False
        finally:
            os.close(descriptor)

    @asynccontextmanager
    async def upload(self, tenant: str, digest: Digest) -> AsyncIterator[Upload | None]:
        """A place to write to, positioned behind what is there; None where the blob is whole already.

        Raises:
            PunnetError: QUOTA, DISK_FULL, or UNAVAILABLE while another stream writes the same blob.
        """
        async with self._only_writer(tenant, digest):
            with self._slot(tenant):
                upload = await _result(self._start(self._open, tenant, digest), unclaimed=_close_unused)
                try:
                    yield upload
                finally:
                    if upload is not None:
                        await _result(asyncio.ensure_future(self._close(upload)))

    async def append(self, upload: Upload, data: bytes, crc32c: int) -> None:
        """Take a chunk. Returns at once unless a batch is full and the one before is not yet written.

        Raises:
            PunnetError: CHUNK_CORRUPT, DISK_FULL; maybe of a chunk before.
        """
        upload.pending.append((data, crc32c))
        upload.pending_bytes += len(data)
        upload.size += len(data)
        if upload.pending_bytes >= BATCH_BYTES:
            await self._flush(upload)

    async def restart(self, upload: Upload) -> None:
        """Forget what is there: the client sends from the first byte."""
        await self.in_thread(os.ftruncate, upload.file, 0)
        upload.size, upload.hash = 0, hashlib.sha256()

    async def finish(self, tenant: str, upload: Upload) -> None:
        """Make the partial a blob.

        Raises:
            PunnetError: DIGEST_MISMATCH; the partial is removed.
        """
        await self._flush(upload)
        await self._settle(upload)
        digest = upload.hash.hexdigest()
        if (upload.size, digest) != (upload.digest.size, upload.digest.sha256):
            await self.in_thread(upload.path.unlink)
            raise make_error(
                "DIGEST_MISMATCH",
                f"Field digest: {upload.size} bytes with sha256 {digest} came, "
                f"{upload.digest.size} bytes with sha256 {upload.digest.sha256} were announced.",
                "Send the file again; it may have changed while it was read.",
            )
        await self.in_thread(os.fsync, upload.file)
        await self.in_thread(lambda: fsync_folder(self._publish(tenant, upload.digest, upload.path)))

    async def read(self, path: Path, offset: int) -> AsyncIterator[tuple[bytes, int]]:
        """Chunks with their CRC32C; the next one is read while one is sent."""
        file = await _result(self._start(os.open, path, os.O_RDONLY | os.O_NOFOLLOW), unclaimed=os.close)
        coming = self._start(_read_chunk, file, offset)
        try:
            while (chunk := await _result(coming))[0]:
                offset += len(chunk[0])
                coming = self._start(_read_chunk, file, offset)
                yield chunk
        finally:
            try:
                await _ended(coming)
            finally:
                os.close(file)

    def close(self) -> None:
        """Wait for the threads."""
        self._threads.shutdown()

    def _start(self, function: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, _on_disk, function, *arguments)

    @asynccontextmanager
    async def _only_writer(self, tenant: str, digest: Digest) -> AsyncIterator[None]:
        lock = self._writers.setdefault((tenant, digest), asyncio.Lock())
        try:
            async with asyncio.timeout(ONE_WRITER_SECONDS):
                await lock.acquire()
        except TimeoutError:
            raise make_error(
                "UNAVAILABLE", "Another stream uploads the same blob.", "Wait for it, then ask for the blob again."
            ) from None
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _slot(self, tenant: str) -> Iterator[None]:
        if self._uploads[tenant] >= CONCURRENT_UPLOADS:
            limit = str(CONCURRENT_UPLOADS)
            raise make_error(
                "QUOTA",
                f"{limit} uploads run; that is the limit.",
                "Try again in a moment.",
                {"quota": "uploads", "limit": limit},
            )
        self._uploads[tenant] += 1
        try:
            yield
        finally:
            self._uploads[tenant] -= 1

    def _open(self, tenant: str, digest: Digest) -> Upload | None:
        if self._blob(tenant, digest).exists():
            return None
        path = self._partial(tenant, digest)
        already = path.stat().st_size if path.exists() else 0
        check_space(path.parent, digest.size - already)
        try:
            file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)
        except FileNotFoundError:
            file = _create(path)
        upload = Upload(digest=digest, path=path, file=file, size=0, hash=hashlib.sha256())
        try:
            while chunk := os.pread(file, REHASH_BYTES, upload.size):
                upload.hash.update(chunk)
                upload.size += len(chunk)
        except OSError:
            os.close(file)
            raise
        return upload

    async def _flush(self, upload: Upload) -> None:
        await self._settle(upload)
        batch, upload.pending, upload.pending_bytes = upload.pending, [], 0
        upload.in_flight = self._start(_write_batch, upload.file, upload.hash, batch)

    async def _settle(self, upload: Upload) -> None:
        """Wait for the batch in flight."""
        batch, upload.in_flight = upload.in_flight, None
        if batch is None:
            return
        try:
            await _result(batch)
        finally:
            upload.broken = upload.broken or batch.exception() is not None

    async def _close(self, upload: Upload) -> None:
        """Keep what came: the partial is on the disk when the stream is gone."""
        try:
            with contextlib.suppress(PunnetError):  # the stream has ended already; its end said why
                if upload.pending and not upload.broken:
                    await self._flush(upload)
                await self._settle(upload)
            await self.in_thread(os.fsync, upload.file)
        finally:
            os.close(upload.file)

    def _blob(self, tenant: str, digest: Digest) -> Path:
        return self._data.blobs(tenant) / digest.sha256[:2] / f"{digest.sha256}-{digest.size}"

    def _partials(self, tenant: str) -> Path:
        folder = self._data.blobs(tenant) / "partial"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def _partial(self, tenant: str, digest: Digest) -> Path:
        return self._partials(tenant) / f"{digest.sha256}-{digest.size}"

    def _put(self, tenant: str, digest: Digest, data: bytes) -> Path:
        """Write under a name that no other call uses: two may bring the same bytes, or one upload them."""
        unfinished = self._partials(tenant) / f"{digest.sha256}.{secrets.token_hex(8)}"
        try:
            with os.fdopen(_create(unfinished), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            return self._publish(tenant, digest, unfinished)
        finally:
            unfinished.unlink(missing_ok=True)

    def _publish(self, tenant: str, digest: Digest, unfinished: Path) -> Path:
        """Make a partial a blob; returns the folder that is still to be synced."""
        path = self._blob(tenant, digest)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.rename(unfinished, path)
        return path.parent


def missing_blob(sha256: str, count: int = 1) -> Exception:
    """BLOB_MISSING for the first of `count` blobs."""
    others = f" and {count - 1} more" if count > 1 else ""
    return make_error(
        "BLOB_MISSING",
        f"There is no blob {sha256}{others}.",
        "Upload it first, then send the request again.",
        {"sha256": sha256, "missing": str(count)},
    )


async def _result(work: asyncio.Future[T], unclaimed: Callable[[T], object] | None = None) -> T:
    """What the work gives; `unclaimed` takes it where the caller was cancelled."""
    try:
        await _ended(work)
    except asyncio.CancelledError:
        if work.exception() is None and unclaimed is not None:
            unclaimed(work.result())
        raise
    return work.result()


async def _ended(work: asyncio.Future[Any]) -> None:
    """Wait for the work, then let a cancellation of the caller through.

    Cancelling does not stop a thread. It must not go on with a descriptor that its caller has closed: the number may be
    another file's by then.
    """
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def _on_disk(function: Callable[..., T], *arguments: object) -> T:
    with full_disk_named():
        return function(*arguments)


def _close_unused(upload: Upload | None) -> None:
    if upload is not None:
        os.close(upload.file)


def _create(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)


def _write_batch(file: int, known: Any, batch: Sequence[tuple[bytes, int]]) -> None:
    for data, crc32c in batch:
        if google_crc32c.value(data) != crc32c:
            raise make_error(
                "CHUNK_CORRUPT",
                "Field crc32c: a chunk differs from its CRC32C.",
                "Send the blob again from its offset.",
            )
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
        known.update(data)


def _read_chunk(file: int, offset: int) -> tuple[bytes, int]:
    data = os.pread(file, DOWNLOAD_CHUNK_BYTES, offset)
    return data, google_crc32c.value(data)
