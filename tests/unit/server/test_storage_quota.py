"""Bytes are counted once, reserved before they come, and given back when they go."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from punnet.errors import PunnetError
from server import storage_quota
from server.folders import DataFolder
from server.storage_quota import StorageQuota, used_bytes

TENANT = "acme"


@pytest.fixture(autouse=True)
def counted_before_each_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_quota, "RECOUNT_SECONDS", 0.0)


def put(data: DataFolder, size: int, *parts: str) -> Path:
    path = data.root.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def test_all_of_a_tenants_files_count_each_once(tmp_path: Path) -> None:
    data = DataFolder(tmp_path)
    blob = put(data, 1000, "blobs", TENANT, "aa", "blob")
    put(data, 100, "stages", TENANT, "key", "out", "file")
    put(data, 10, "pools", TENANT, "web", "version", "shard")
    put(data, 5000, "blobs", "other", "aa", "blob")
    os.link(blob, put(data, 0, "jobs", TENANT, "id", "x").with_name("pinned"))
    (tmp_path / "stages" / TENANT / "loop").symlink_to(tmp_path)
    link = len(os.readlink(tmp_path / "stages" / TENANT / "loop"))
    assert used_bytes(data, TENANT) == 1110 + link
    assert used_bytes(data, "nobody") == 0


def test_reservations_hold_room_until_they_end(tmp_path: Path) -> None:
    quota = StorageQuota(DataFolder(tmp_path), 100)

    async def scenario() -> None:
        async with quota.reserve(TENANT, 60):
            with pytest.raises(PunnetError) as refused:
                async with quota.reserve(TENANT, 41):
                    raise AssertionError("it was admitted")
            assert refused.value.code == "QUOTA"
            assert refused.value.details["quota"] == "storage_bytes"
            async with quota.reserve(TENANT, 40), quota.reserve("other", 100):
                assert await quota.lack(TENANT) is not None
        async with quota.reserve(TENANT, 100):  # nothing of it came, and the disk tells
            pass

    asyncio.run(scenario())


def test_file_that_grows_under_its_reservation_counts_once(tmp_path: Path) -> None:
    data = DataFolder(tmp_path)
    quota = StorageQuota(data, 100)

    async def scenario() -> None:
        async with quota.reserve(TENANT, 60, "name"):
            put(data, 50, "blobs", TENANT, "partial", "name")
            async with quota.reserve(TENANT, 40):
                pass
            assert await quota.lack(TENANT, 41) is not None
        assert await quota.lack(TENANT, 50) is None
        assert await quota.lack(TENANT, 51) is not None

    asyncio.run(scenario())


def test_many_at_once_get_no_more_than_there_is(tmp_path: Path) -> None:
    data = DataFolder(tmp_path)
    quota = StorageQuota(data, 100)
    most = 0

    async def one() -> bool:
        nonlocal most
        try:
            async with quota.reserve(TENANT, 30):
                most += 30
                await asyncio.sleep(0.05)
                most -= 30
                assert most <= 100
        except PunnetError:
            return False
        return True

    async def scenario() -> list[bool]:
        return await asyncio.gather(*(one() for _ in range(20)))

    assert sum(asyncio.run(scenario())) == 3


def test_deleting_makes_room_again(tmp_path: Path) -> None:
    data = DataFolder(tmp_path)
    quota = StorageQuota(data, 100)
    path = put(data, 100, "stages", TENANT, "file")

    async def scenario() -> None:
        assert await quota.lack(TENANT) is not None
        path.unlink()
        assert await quota.lack(TENANT, 100) is None

    asyncio.run(scenario())


def test_no_limit_counts_nothing(tmp_path: Path) -> None:
    quota = StorageQuota(DataFolder(tmp_path), None)
    assert asyncio.run(quota.lack(TENANT, 1 << 60)) is None
