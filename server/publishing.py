"""What a finished job leaves to its user: artifacts, or a pool under its name."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server import pool_table
from server.folders import DataFolder, fsync_folder, remove_tree
from server.job_table import ArtifactRow, JobRow
from server.pool_table import PoolRow
from server.stage_execution import Finished, StageFailed
from server.store import Store, now_microseconds

POOL_FILE = "pool.json"


def artifacts_of(data: DataFolder, finished: Finished) -> list[ArtifactRow]:
    """Every file of the last stage."""
    folder = data.relative(finished.folder)
    return [
        ArtifactRow(path=f.path, sha256=f.sha256, size=f.size, reproducible=f.reproducible, folder=folder)
        for f in finished.manifest.files
    ]


async def publish_pool(store: Store, data: DataFolder, job: JobRow, finished: Finished) -> Sequence[ArtifactRow]:
    """Give the finished folder its pool's name. What a crash interrupts, `republish` completes."""
    row = _pool_row(job, finished)
    target = data.pool(job.tenant, row.name)
    earlier = await store.read(pool_table.pool_by_name, job.tenant, row.name, ready_only=False)
    if earlier is not None and earlier.job_id != job.id:
        # Another job of that name failed between its two notes: the folder is nobody's.
        await asyncio.to_thread(remove_tree, target)
    await store.write(pool_table.put_pool, row)
    await asyncio.to_thread(_move, finished.folder, target)
    return await _announce(store, data, row)


async def republish(store: Store, data: DataFolder, job: JobRow) -> Sequence[ArtifactRow]:
    """The artifacts of a pool that this job has moved before a restart; empty where it has not come so far."""
    row = await store.read(pool_table.pool_by_name, job.tenant, job.spec["name"], ready_only=False)
    if row is None or row.job_id != job.id or not (data.pool(job.tenant, row.name) / POOL_FILE).is_file():
        return ()
    return await _announce(store, data, row)


async def _announce(store: Store, data: DataFolder, row: PoolRow) -> Sequence[ArtifactRow]:
    await store.write(pool_table.mark_ready, row.tenant, row.name)
    folder = data.pool(row.tenant, row.name)
    size = (folder / POOL_FILE).stat().st_size
    return (ArtifactRow(path=POOL_FILE, sha256=row.sha256, size=size, reproducible=True, folder=data.relative(folder)),)


def _pool_row(job: JobRow, finished: Finished) -> PoolRow:
    result: Mapping[str, Any] = finished.manifest.result
    digests = [file.sha256 for file in finished.manifest.files if file.path == POOL_FILE]
    try:
        figures = {name: int(result[name]) for name in ("images", "bad_images", "size")}
        shards = len(result["shards"])
        (sha256,) = digests
    except (KeyError, TypeError, ValueError) as error:
        raise StageFailed(
            "STAGE_PROTOCOL",
            "The stage's process broke the stage contract: no pool.",
            "Report it with the server's log.",
        ) from error
    return PoolRow(
        tenant=job.tenant,
        name=job.spec["name"],
        job_id=job.id,
        ready=False,
        shards=shards,
        sha256=sha256,
        created=now_microseconds(),
        **figures,
    )


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.rename(source, target)
    fsync_folder(target.parent)
    fsync_folder(source.parent)
