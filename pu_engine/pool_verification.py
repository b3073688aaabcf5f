"""Stage: read a whole pool again and compare every byte with its sha256."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from pu_engine.errors import EngineError
from pu_engine.pools.pool import POOL, read_pool_json
from pu_engine.pools.pool_index import GOOD, index_name, read_index
from pu_engine.pools.pool_types import PoolVerification, PoolVerificationInputs, Shard
from pu_engine.prefetch import prefetched
from pu_engine.progress import Progress
from pu_engine.results import file_sha256

NAMED = 20  # of damaged things; the others are counted


def run(inputs: PoolVerificationInputs, out: Path, progress: Progress) -> PoolVerification:
    """Nothing is written; a pool that is as it was made is the result.

    Raises:
        EngineError: POOL_DAMAGED, naming files and the keys of the images that have changed.
    """
    root = Path(inputs.pool.path)
    try:
        pool = read_pool_json(inputs.pool)
    except EngineError as error:
        raise _damaged([error.message]) from error
    found: list[str] = []
    done = 0
    for shard, damage in zip(
        pool.shards, prefetched(lambda s: list(shard_damage(root, s)), pool.shards, inputs.threads), strict=True
    ):
        found += damage
        done += shard.size
        progress.update(done, pool.size, "bytes", {"damaged": len(found)})
    if found:
        raise _damaged(found)
    return PoolVerification(shards=len(pool.shards), images=pool.images, size=pool.size)


def shard_damage(root: Path, shard: Shard) -> Iterator[str]:
    """What has changed of one shard and its index, in words; nothing where both are whole."""
    tar, index = root / f"{shard.name}.tar", root / index_name(shard.name)
    index_is_whole = index.is_file() and file_sha256(index) == shard.index_sha256
    if not index_is_whole:
        yield f"{index.name} is missing" if not index.is_file() else f"{index.name} differs from its sha256"
    if not tar.is_file():
        yield f"{tar.name} is missing"
    elif file_sha256(tar) != shard.sha256:
        keys = list(_changed_keys(tar, read_index(index))) if index_is_whole else []
        yield from (f"image {key!r} in {tar.name}" for key in keys)
        if not keys:
            where = "none of its images, so in a header or its end" if index_is_whole else "its index can't say where"
            yield f"{tar.name} differs from its sha256 ({where})"


def _changed_keys(tar: Path, index: pa.Table) -> Iterator[str]:
    columns = (index[name].to_pylist() for name in ("key", "status", "offset", "size", "sha256"))
    descriptor = os.open(tar, os.O_RDONLY)
    try:
        for key, status, offset, size, sha256 in zip(*columns, strict=True):
            if status == GOOD and hashlib.sha256(os.pread(descriptor, size, offset)).digest() != sha256:
                yield key
    finally:
        os.close(descriptor)


def _damaged(found: list[str]) -> EngineError:
    named = "; ".join(found[:NAMED]) + (f"; and {len(found) - NAMED} more" if len(found) > NAMED else "")
    return EngineError(
        "POOL_DAMAGED",
        f"The pool has changed since it was made: {named}.",
        f"Look at the disk, delete the pool and make it again, or put the files of {POOL} back.",
        damaged=len(found),
    )
