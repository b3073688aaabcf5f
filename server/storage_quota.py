"""How many bytes a tenant has in the data folder, and room for more that is reserved before it is written."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from punnet.errors import PunnetError
from server.folders import DataFolder
from server.quotas import over_quota

FRESH_SECONDS = 60.0  # jobs write without asking; their bytes count after so long at the latest
RECOUNT_SECONDS = 1.0  # before a refusal it is counted again, and no more often than this
RETRY_SECONDS = 600.0  # nothing frees itself soon: the user must remove something


@dataclass(slots=True)
class _Use:
    """What is known of one tenant."""

    counted: int = 0  # bytes on the disk
    counted_at: float = -math.inf
    came: int = 0  # bytes that ended reservations have brought since the start
    reserved: dict[int, tuple[str, int]] = field(default_factory=dict)  # the partial file's name, bytes
    counting: asyncio.Lock = field(default_factory=asyncio.Lock)

    def reserved_bytes(self) -> int:
        return sum(size for _, size in self.reserved.values())


class StorageQuota:
    """Counts and reserves, for every tenant; `limit` is in bytes, None sets none."""

    def __init__(self, data: DataFolder, limit: int | None) -> None:
        self._data = data
        self._limit = limit
        self._uses: defaultdict[str, _Use] = defaultdict(_Use)
        self._claims = itertools.count()

    @asynccontextmanager
    async def reserve(self, tenant: str, size: int, partial: str = "") -> AsyncIterator[None]:
        """Hold room for bytes that are about to come; `partial` names the file that they grow in.

        Raises:
            PunnetError: QUOTA.
        """
        lack = await self.lack(tenant, size)
        if lack is not None:
            raise lack
        use, claim = self._uses[tenant], next(self._claims)
        use.reserved[claim] = (partial, size)  # nothing was awaited since the check
        try:
            yield
        finally:
            del use.reserved[claim]
            use.came += size  # or less, where it failed: the next count tells
            use.counted += size

    async def lack(self, tenant: str, size: int = 0) -> PunnetError | None:
        """The refusal of so many more bytes; None where there is room for them."""
        if self._limit is None:
            return None
        use = self._uses[tenant]
        async with use.counting:
            age = time.monotonic() - use.counted_at
            if age > FRESH_SECONDS or (age > RECOUNT_SECONDS and not self._fits(use, size)):
                await self._count(tenant, use)
        if self._fits(use, size):
            return None
        left = max(0, self._limit - use.counted - use.reserved_bytes())
        return over_quota(
            "storage_bytes",
            f"{size} bytes more are to be stored; of the limit of {self._limit} bytes {left} are left.",
            "Delete jobs or pools that are no longer needed, or ask the operator to raise the limit.",
            limit=self._limit,
            retry_seconds=RETRY_SECONDS,
        )

    def _fits(self, use: _Use, size: int) -> bool:
        taken = use.counted + use.reserved_bytes()
        return self._limit is None or (taken < self._limit and taken + size <= self._limit)

    async def _count(self, tenant: str, use: _Use) -> None:
        came = use.came
        growing = {name for name, _ in use.reserved.values()}
        used = await asyncio.to_thread(used_bytes, self._data, tenant, growing)
        use.counted = used + use.came - came  # what ended meanwhile may be in neither
        use.counted_at = time.monotonic()


def used_bytes(data: DataFolder, tenant: str, without: Set[str] = frozenset()) -> int:
    """Bytes of a tenant's files, each counted once however many links it has.

    Partial files of these names are left out: they are reserved whole.
    """
    seen: set[int] = set()
    total = 0
    partials = data.blobs(tenant) / "partial"
    folders = [data.blobs(tenant), data.pools(tenant), data.stages(tenant), data.jobs(tenant)]
    while folders:
        folder = folders.pop()
        for entry in _entries(folder):
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            elif entry.inode() not in seen and not (folder == partials and entry.name in without):
                seen.add(entry.inode())
                total += _size(entry)
    return total


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:  # a tenant has none yet, or a job ended while its folder was counted
        return []


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0
