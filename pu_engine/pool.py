"""Reading a pool: good images in index order, by shard or by row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pu_engine.errors import EngineError
from pu_engine.jsonform import from_json
from pu_engine.results import file_sha256
from pu_engine.types import Folder, Pool

POOL = "pool.json"
INDEX = "index.arrow"
GOOD, BAD = "ok", "bad"
INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),  # null for a bad image, like `offset`
        ("offset", pa.int64()),  # of the image's first byte in the shard
        ("size", pa.int64()),
        ("sha256", pa.binary(32)),  # null for an image too large to be read
        ("width", pa.int32()),  # upright
        ("height", pa.int32()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)


def open_pool(folder: Folder) -> PoolReader:
    """A pool whose `pool.json` has the sha256 that `folder` names, and whose index is whole.

    Raises:
        EngineError: POOL_INVALID where a file is missing or differs from its digest.
    """
    root = Path(folder.path)
    if not (root / POOL).is_file():
        raise _invalid(f"The pool has no {POOL}.")
    actual = file_sha256(root / POOL)
    if actual != folder.sha256:
        raise _invalid(f"The sha256 of {POOL} is {actual}, not {folder.sha256}.", actual=actual)
    pool = from_json(Pool, json.loads((root / POOL).read_text()))
    if not (root / INDEX).is_file() or file_sha256(root / INDEX) != pool.index_sha256:
        raise _invalid(f"{INDEX} of the pool {pool.name!r} is missing or differs from its sha256.")
    return PoolReader(root, pool)


def pool_folder(path: Path) -> Folder:
    """What names a pool in a stage's inputs: its folder with the sha256 of `pool.json`."""
    return Folder(path=str(path), sha256=file_sha256(path / POOL))


class PoolReader:
    """Images of one pool. A row counts the good images in index order, from 0."""

    def __init__(self, root: Path, pool: Pool) -> None:
        self.pool = pool
        self._root = root
        with pa.memory_map(str(root / INDEX)) as source:
            table = pa.ipc.open_file(source).read_all()
        good = table.filter(pc.equal(table["status"], GOOD))
        if good.num_rows != pool.images or sum(shard.entries for shard in pool.shards) != pool.images:
            raise _invalid(f"The index of the pool {pool.name!r} has {good.num_rows} good images, not {pool.images}.")
        self._key = good["key"]
        self._sha256 = good["sha256"]
        self._offset = good["offset"].to_numpy()
        self._size = good["size"].to_numpy()
        ends = np.cumsum([shard.entries for shard in pool.shards])
        self._ends = ends.astype(np.int64)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Keys of the good images, by row."""
        return tuple(self._key.to_pylist())

    def holds(self, digests: Sequence[str]) -> NDArray[np.bool_]:
        """Which rows are images of these sha256 (hexadecimal), [N]."""
        wanted = pa.array([bytes.fromhex(digest) for digest in digests], self._sha256.type)
        return np.asarray(pc.is_in(self._sha256, value_set=wanted), dtype=np.bool_)

    def rows(self, shard: str) -> range:
        """Rows of one shard's images."""
        number = [s.name for s in self.pool.shards].index(shard)
        end = int(self._ends[number])
        return range(end - self.pool.shards[number].entries, end)

    def scan(self, shard: str) -> Iterator[tuple[int, str, bytes]]:
        """Row, key and bytes of one shard's images, in index order.

        Raises:
            EngineError: POOL_INVALID where the shard is missing or an image differs from its sha256.
        """
        for row, data in self.read(self.rows(shard)):
            yield row, self.keys[row], data

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
            path = self._root / f"{self.pool.shards[number].name}.tar"
            if not path.is_file():
                raise _invalid(f"{path.name} of the pool {self.pool.name!r} is missing.")
            with path.open("rb") as file:
                for row in wanted[shards == number]:
                    yield int(row), self._image(file, int(row))

    def _image(self, file: BinaryIO, row: int) -> bytes:
        file.seek(self._offset[row])
        data = file.read(self._size[row])
        if hashlib.sha256(data).digest() != self._sha256[row].as_py():
            raise _invalid(f"Image {self.keys[row]!r} of the pool {self.pool.name!r} differs from its sha256.")
        return data


def _invalid(message: str, **details: object) -> EngineError:
    return EngineError("POOL_INVALID", message, "Make the pool again.", **details)
