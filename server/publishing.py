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
SHARD_SUFFIXES = (".tar", ".arrow")


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
    target = data.pool(job.tenant, row.name, row.sha256)
    base = job.spec.get("pool")
    if base is not None:
        earlier = data.pool(job.tenant, base["name"], base["sha256"])
        await asyncio.to_thread(_link_missing, earlier, finished.folder)
    # A folder of that name is nobody's: the same bytes from a job that failed before its last note.
    await asyncio.to_thread(remove_tree, target)
    await store.write_patiently(pool_table.put_pool, row)
    await asyncio.to_thread(_move, finished.folder, target)
    return await _announce(store, data, row)


async def republish(store: Store, data: DataFolder, job: JobRow) -> Sequence[ArtifactRow]:
    """The artifacts of a pool that this job has moved before a restart; empty where it has not come so far."""
    row = await store.read(pool_table.pool_of_job, job.tenant, job.id)
    if row is None or not (data.pool(job.tenant, row.name, row.sha256) / POOL_FILE).is_file():
        return ()
    return await _announce(store, data, row)


async def _announce(store: Store, data: DataFolder, row: PoolRow) -> Sequence[ArtifactRow]:
    await store.write_patiently(pool_table.mark_ready, row)
    folder = data.pool(row.tenant, row.name, row.sha256)
    size = (folder / POOL_FILE).stat().st_size
    return (ArtifactRow(path=POOL_FILE, sha256=row.sha256, size=size, reproducible=True, folder=data.relative(folder)),)


def _pool_row(job: JobRow, finished: Finished) -> PoolRow:
    result: Mapping[str, Any] = finished.manifest.result
    digests = [file.sha256 for file in finished.manifest.files if file.path == POOL_FILE]
    try:
        names = ("images", "bad_images", "duplicates", "near_duplicates", "size")
        figures = {name: int(result[name]) for name in names}
        shrink = result["shrink"] or {"short_side": 0, "quality": 0}
        figures |= {name: int(shrink[name]) for name in ("short_side", "quality")}
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


def _link_missing(earlier: Path, folder: Path) -> None:
    """Put the shards and indexes of an earlier version beside the new ones, as links to the same bytes."""
    for file in earlier.iterdir():
        if file.suffix in SHARD_SUFFIXES and not (folder / file.name).exists():
            os.link(file, folder / file.name)
    fsync_folder(folder)


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.rename(source, target)
    fsync_folder(target.parent)
    fsync_folder(target.parent.parent)
    fsync_folder(source.parent)
