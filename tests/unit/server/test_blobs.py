"""The blob store when calls end early, meet each other or find the disk full."""

from __future__ import annotations

import asyncio
import errno
import gc
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import google_crc32c
import pytest

from punnet.errors import PunnetError
from server.blobs import BATCH_BYTES, CONCURRENT_UPLOADS, BlobStore, Digest
from server.disk_space import FREE_BYTES_KEPT
from server.folders import DataFolder

TENANT = "local"
DATA = os.urandom(2 * BATCH_BYTES)
DIGEST = Digest(hashlib.sha256(DATA).hexdigest(), len(DATA))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BlobStore]:
    blobs = BlobStore(DataFolder(tmp_path))
    yield blobs
    blobs.close()


class Held:
    """A function that waits for a sign where the system under it would be slow."""

    def __init__(self, function: Callable[..., Any], *, only: str = "") -> None:
        self.function = function
        self.only = only
        self.began, self.go_on = threading.Event(), threading.Event()

    def __call__(self, *arguments: Any) -> Any:
        if self.only in str(arguments[0]):
            self.began.set()
            assert self.go_on.wait(10)
        return self.function(*arguments)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def send(store: BlobStore) -> bool:
    """Upload DATA; whether its bytes were asked for."""
    async with store.upload(TENANT, DIGEST) as upload:
        if upload is None:
            return False
        for part in (DATA[:BATCH_BYTES], DATA[BATCH_BYTES:]):
            await store.append(upload, part, google_crc32c.value(part))
        await store.finish(TENANT, upload)
        return True


async def cancelled_while(task: asyncio.Task[Any], held: Held) -> None:
    """Cancel twice while a thread is held; what the task uses must be there until the thread is done."""
    assert await asyncio.to_thread(held.began.wait, 10)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0.02)
        assert not task.done()


def test_cancelled_upload_keeps_its_file_until_the_thread_has_written(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checksums = [google_crc32c.value(DATA[:BATCH_BYTES]), google_crc32c.value(DATA[BATCH_BYTES:])]
    held = Held(google_crc32c.value)

    async def stream() -> None:
        async with store.upload(TENANT, DIGEST) as upload:
            assert upload is not None
            await store.append(upload, DATA[:BATCH_BYTES], checksums[0])
            await store.append(upload, DATA[BATCH_BYTES:], checksums[1])

    async def scenario() -> None:
        monkeypatch.setattr(google_crc32c, "value", held)
        task = asyncio.create_task(stream())
        await cancelled_while(task, held)
        with (tmp_path / "stranger").open("wb") as stranger:
            held.go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert os.fstat(stranger.fileno()).st_size == 0
        assert store.committed_size(TENANT, DIGEST) == (len(DATA), False)

    asyncio.run(scenario())


def test_next_writer_waits_until_a_cancelled_one_is_done(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(os.rename)
    monkeypatch.setattr(os, "rename", held)

    async def scenario() -> None:
        first = asyncio.create_task(send(store))
        await cancelled_while(first, held)
        second = asyncio.create_task(send(store))
        await asyncio.sleep(0.02)
        held.go_on.set()
        await asyncio.wait({first, second})
        assert first.cancelled()
        assert not second.result()
        found = store.find(TENANT, DIGEST.sha256)
        assert found is not None
        assert found[0].read_bytes() == DATA

    asyncio.run(scenario())


def test_upload_cancelled_while_its_file_opens_leaves_no_descriptor(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(shutil.disk_usage)
    monkeypatch.setattr(shutil, "disk_usage", held)

    async def scenario() -> None:
        task = asyncio.create_task(send(store))
        await cancelled_while(task, held)
        before = descriptors()
        held.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert descriptors() == before

    asyncio.run(scenario())


def test_download_cancelled_while_its_file_opens_leaves_no_descriptor(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    held = Held(os.open, only=str(path))
    monkeypatch.setattr(os, "open", held)

    async def stream() -> None:
        async for _ in store.read(path, 0):
            pass

    async def scenario() -> None:
        task = asyncio.create_task(stream())
        await cancelled_while(task, held)
        before = descriptors()
        held.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert descriptors() == before

    asyncio.run(scenario())


def test_same_bytes_may_come_from_many_calls_at_once(store: BlobStore) -> None:
    together = threading.Barrier(4)

    def put(contents: list[bytes]) -> list[str]:
        together.wait(10)
        return store.put_all(TENANT, contents)

    with ThreadPoolExecutor(4) as threads:
        for turn in range(5):
            contents = [bytes([turn, index]) for index in range(20)]
            answers = list(threads.map(put, [contents] * 4))
            assert answers == [[hashlib.sha256(data).hexdigest() for data in contents]] * 4
            assert len(store.find_all(TENANT, answers[0])) == len(contents)


def test_bytes_that_come_whole_leave_an_upload_of_the_same_blob_alone(store: BlobStore) -> None:
    async def scenario() -> None:
        async with store.upload(TENANT, DIGEST) as upload:
            assert upload is not None
            store.put_all(TENANT, [DATA])
            assert upload.path.exists()

    asyncio.run(scenario())


def with_free_bytes(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))


def test_bytes_that_come_whole_leave_the_kept_space_free(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free_bytes(FREE_BYTES_KEPT + 5, monkeypatch)
    with pytest.raises(PunnetError) as refused:
        store.put_all(TENANT, [b"abc", b"def"])
    assert (refused.value.code, refused.value.details["size"]) == ("DISK_FULL", "6")
    store.put_all(TENANT, [b"abc", b"de", b"abc"])


def test_disk_that_fills_up_leaves_no_half_of_bytes_that_came_whole(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PunnetError) as refused:
        asyncio.run(store.in_thread(store.put_all, TENANT, [b"abc"]))
    assert refused.value.code == "DISK_FULL"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_stream_that_waits_for_another_takes_no_slot(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(os.rename)
    monkeypatch.setattr(os, "rename", held)

    async def scenario() -> None:
        streams = [asyncio.create_task(send(store)) for _ in range(CONCURRENT_UPLOADS + 1)]
        assert await asyncio.to_thread(held.began.wait, 10)
        async with store.upload(TENANT, Digest("0" * 64, 1)) as upload:
            assert upload is not None
        held.go_on.set()
        assert sorted(await asyncio.gather(*streams)) == [False] * CONCURRENT_UPLOADS + [True]

    asyncio.run(scenario())


def test_lock_of_a_digest_goes_with_its_last_stream(store: BlobStore) -> None:
    def locks() -> int:
        gc.collect()
        # isinstance would ask torch's lazy modules for their class, which warns.
        return sum(type(known) is asyncio.Lock for known in gc.get_objects())

    async def scenario() -> None:
        before = locks()
        assert sorted(await asyncio.gather(send(store), send(store))) == [False, True]
        assert locks() == before

    asyncio.run(scenario())


def test_continued_upload_needs_space_for_the_rest_only(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async def part() -> None:
        async with store.upload(TENANT, DIGEST) as upload:
            assert upload is not None
            await store.append(upload, DATA[:BATCH_BYTES], google_crc32c.value(DATA[:BATCH_BYTES]))

    async def position() -> int:
        async with store.upload(TENANT, DIGEST) as upload:
            assert upload is not None
            return upload.size

    asyncio.run(part())
    rest = len(DATA) - BATCH_BYTES
    with_free_bytes(FREE_BYTES_KEPT + rest, monkeypatch)
    assert asyncio.run(position()) == BATCH_BYTES
    with_free_bytes(FREE_BYTES_KEPT + rest - 1, monkeypatch)
    before = descriptors()
    with pytest.raises(PunnetError) as refused:
        asyncio.run(position())
    assert (refused.value.code, refused.value.details["size"]) == ("DISK_FULL", str(rest))
    assert descriptors() == before


def test_full_disk_is_named_where_a_job_takes_its_blobs(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    (sha256,) = store.put_all(TENANT, [b"a tar"])
    monkeypatch.setattr(os, "link", full)
    with pytest.raises(PunnetError) as refused:
        store.pin(TENANT, {"tars": [{"sha256": sha256}]}, tmp_path / "job")
    assert refused.value.code == "DISK_FULL"
