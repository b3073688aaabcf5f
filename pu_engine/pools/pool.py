"""Reading a pool: good images in index order, by shard or by row."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pu_engine.errors import EngineError
from pu_engine.jsonform import from_json
from pu_engine.pools.pool_index import GOOD, SCHEMA, index_name, read_index
from pu_engine.pools.pool_types import FORMAT, Pool
from pu_engine.results import file_sha256
from pu_engine.types import Folder

POOL = "pool.json"
WINDOW_BYTES = 2**18  # read at once by a scan; larger windows leave the cache and were slower
DIGEST_BYTES = 32
BEGUN_HASH = hashlib.sha256()


def open_pool(folder: Folder) -> PoolReader:
    """A pool whose `pool.json` has the sha256 that `folder` names, and whose indexes are whole.

    Raises:
        EngineError: POOL_INVALID where a file is missing or differs from its digest.
    """
    root = Path(folder.path)
    pool = read_pool_json(folder)
    for shard in pool.shards:
        path = root / index_name(shard.name)
        if not path.is_file() or file_sha256(path) != shard.index_sha256:
            raise invalid(f"{path.name} of the pool {pool.name!r} is missing or differs from its sha256.")
    return PoolReader(root, pool)


def read_pool_json(folder: Folder) -> Pool:
    """What `pool.json` says; nothing else is looked at.

    Raises:
        EngineError: POOL_INVALID.
    """
    path = Path(folder.path) / POOL
    if not path.is_file():
        raise invalid(f"The pool has no {POOL}.")
    actual = file_sha256(path)
    if actual != folder.sha256:
        raise invalid(f"The sha256 of {POOL} is {actual}, not {folder.sha256}.", actual=actual)
    try:
        pool = from_json(Pool, json.loads(path.read_text()))
    except ValueError as error:
        raise invalid(f"{POOL} is not of this version's form: {error}.") from error
    if pool.format != FORMAT:
        raise invalid(f"The pool has format {pool.format}; this version reads {FORMAT}.")
    return pool


def pool_folder(path: Path) -> Folder:
    """What names a pool in a stage's inputs: its folder with the sha256 of `pool.json`."""
    return Folder(path=str(path), sha256=file_sha256(path / POOL))


class PoolReader:
    """Images of one pool. A row counts the good images in index order, from 0."""

    def __init__(self, root: Path, pool: Pool) -> None:
        self.pool = pool
        self._root = root
        tables = [read_index(root / index_name(shard.name)) for shard in pool.shards]
        self.index = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
        good = self.index.filter(pc.equal(self.index["status"], GOOD))
        if good.num_rows != pool.images or sum(shard.entries for shard in pool.shards) != pool.images:
            raise invalid(f"The index of the pool {pool.name!r} has {good.num_rows} good images, not {pool.images}.")
        self._key = good["key"]
        self._source = good["source_sha256"]
        self._hash = good["phash"]
        self._alike = pc.coalesce(good["duplicate_of"], good["near_duplicate_of"])
        self._offset = good["offset"].to_numpy()
        self._size = good["size"].to_numpy()
        self._digests = b"".join(_fixed_bytes(chunk) for chunk in good["sha256"].chunks)
        self._ends = np.cumsum([shard.entries for shard in pool.shards]).astype(np.int64)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Keys of the good images, by row."""
        return tuple(self._key.to_pylist())

    def holds(self, digests: Sequence[str]) -> NDArray[np.bool_]:
        """Which rows are images that came as files of these sha256 (hexadecimal), [N]."""
        wanted = pa.array([bytes.fromhex(digest) for digest in digests], self._source.type)
        return np.asarray(pc.is_in(self._source, value_set=wanted), dtype=np.bool_)

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        """Perceptual hashes of the good images, by row."""
        return np.asarray(self._hash.to_numpy(), dtype=np.uint64)

    def leaders(self) -> NDArray[np.int64]:
        """For each row the first image that it equals or looks like, as ingest recorded; its own row without one."""
        leaders = np.arange(self.pool.images)
        alike = np.flatnonzero(pc.is_valid(self._alike).to_numpy())
        places = {key: row for row, key in enumerate(self.keys)} if alike.size else {}
        for row, key in zip(alike.tolist(), self._alike.take(alike).to_pylist(), strict=True):
            leaders[row] = leaders[places[key]]  # an earlier row: it has found its own leader
        return leaders

    def rows(self, shard: str) -> range:
        """Rows of one shard's images."""
        number = [s.name for s in self.pool.shards].index(shard)
        end = int(self._ends[number])
        return range(end - self.pool.shards[number].entries, end)

    def scan(self, shard: str) -> Iterator[tuple[int, str, bytes]]:
        """Row, key and bytes of one shard's images, in index order; the file is read once, forwards.

        Raises:
            EngineError: POOL_INVALID where the shard is missing or an image differs from its sha256.
        """
        rows = self.rows(shard)
        keys = self._key.slice(rows.start, len(rows)).to_pylist()
        offsets = self._offset[rows.start : rows.stop].tolist()
        sizes = self._size[rows.start : rows.stop].tolist()
        digests, first = self._digests, rows.start
        window, start, end = b"", 0, 0
        descriptor = self._open(shard)
        try:
            for i, (key, offset, size) in enumerate(zip(keys, offsets, sizes, strict=True)):
                if offset + size > end:
                    window = os.pread(descriptor, max(WINDOW_BYTES, size), offset)
                    start, end = offset, offset + len(window)
                data = window[offset - start : offset - start + size]
                place = DIGEST_BYTES * (first + i)
                if _sha256(data) != digests[place : place + DIGEST_BYTES]:
                    raise self._changed(first + i)
                yield first + i, key, data
        finally:
            os.close(descriptor)

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        """Row and bytes of the images asked for, by ascending row, so that a disk is read forwards.

        Raises:
            EngineError: POOL_INVALID, as `scan` does.
        """
        wanted = np.unique(np.asarray(rows, np.int64))
        if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < self.pool.images:
            raise ValueError(f"rows are 0 to {self.pool.images - 1}, got {wanted[0]} to {wanted[-1]}")
        shards = np.searchsorted(self._ends, wanted, side="right")
        for number in np.unique(shards):
            descriptor = self._open(self.pool.shards[number].name)
            try:
                for row in wanted[shards == number].tolist():
                    yield row, self._image(descriptor, row)
            finally:
                os.close(descriptor)

    def _open(self, shard: str) -> int:
        try:
            return os.open(self._root / f"{shard}.tar", os.O_RDONLY)
        except FileNotFoundError as error:
            raise invalid(f"{shard}.tar of the pool {self.pool.name!r} is missing.") from error

    def _image(self, descriptor: int, row: int) -> bytes:
        data = os.pread(descriptor, int(self._size[row]), int(self._offset[row]))
        if _sha256(data) != self._digests[DIGEST_BYTES * row : DIGEST_BYTES * (row + 1)]:
            raise self._changed(row)
        return data

    def _changed(self, row: int) -> EngineError:
        number = int(np.searchsorted(self._ends, row, side="right"))
        key, shard = self._key[row].as_py(), self.pool.shards[number].name
        return invalid(f"Image {key!r} in {shard}.tar of the pool {self.pool.name!r} differs from its sha256.")


def invalid(message: str, **details: object) -> EngineError:
    """The error of a pool that can't be read."""
    return EngineError("POOL_INVALID", message, "Run `punnet pool verify`; make the pool again.", **details)


def _sha256(data: bytes) -> bytes:
    """A copy of a hash that was begun: OpenSSL looks the algorithm up for a new one, which takes as long as 2 KiB."""
    running = BEGUN_HASH.copy()
    running.update(data)
    return running.digest()


def _fixed_bytes(chunk: pa.FixedSizeBinaryArray) -> bytes:
    """The values of a fixed-size column without nulls, one behind the other."""
    start = chunk.offset * DIGEST_BYTES
    data: bytes = chunk.buffers()[1].slice(start, len(chunk) * DIGEST_BYTES).to_pybytes()
    return data
