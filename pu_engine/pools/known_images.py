"""What an ingest remembers of the images before: their keys, their bytes and what they look like."""

from __future__ import annotations

from array import array
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa

from pu_engine.imaging.perceptual_hash import BAND_BITS, BANDS, NEAR_BITS
from pu_engine.pools.pool_index import GOOD


class KnownImages:
    """Keys, content and looks in the order of ingest.

    Memory grows with the pool: 0.4 kB an image, measured on 500,000.
    """

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}
        self._first: dict[bytes, str] = {}
        self._alike = _Alike()

    def unique_key(self, name: str) -> str:
        """A member's path without its extension, with "~2", "~3", ... where that is taken."""
        path = PurePosixPath(name)
        # A dot in a file's name would end a WebDataset key.
        wanted = key = str(path.with_name(path.stem.replace(".", "_")))
        while key in self._taken:
            self._taken[wanted] += 1
            key = f"{wanted}~{self._taken[wanted]}"
        self._taken[key] = 1
        return key

    def place(self, key: str, source_sha256: bytes, phash: int) -> tuple[str | None, str | None]:
        """Take a good image in: the key of the first image of the same bytes, or else of the one that it looks like."""
        first = self._first.setdefault(source_sha256, key)
        if first != key:
            return first, None
        return None, self._alike.place(key, phash)

    def restore(self, index: pa.Table) -> None:
        """Take in what an index records, as if its images had just come."""
        columns = ("key", "status", "source_sha256", "phash", "duplicate_of", "near_duplicate_of")
        for key, status, source, phash, duplicate, near in zip(
            *(index[name].to_pylist() for name in columns), strict=True
        ):
            self._taken[key] = 1
            if status == GOOD and duplicate is None:
                self._first[source] = key
                if near is None:
                    self._alike.lead(key, phash)


class _Alike:
    """Groups of images that look alike, each led by its first image: only leaders are compared with."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._buckets: list[dict[int, tuple[array[int], array[int]]]] = [{} for _ in range(BANDS)]

    def place(self, key: str, phash: int) -> str | None:
        """The leader nearest to a hash, the earliest of equally near ones; without one the image leads a new group."""
        nearest = (NEAR_BITS + 1, -1)
        for buckets, band in zip(self._buckets, _bands(phash), strict=True):
            if band in buckets:
                hashes, numbers = buckets[band]
                # A copy: a view would keep the array from growing.
                distances = np.bitwise_count(np.array(hashes, np.uint64) ^ np.uint64(phash))
                best = int(distances.argmin())
                nearest = min(nearest, (int(distances[best]), numbers[best]))
        if nearest[0] <= NEAR_BITS:
            return self._keys[nearest[1]]
        self.lead(key, phash)
        return None

    def lead(self, key: str, phash: int) -> None:
        """Begin a group."""
        for buckets, band in zip(self._buckets, _bands(phash), strict=True):
            hashes, numbers = buckets.setdefault(band, (array("Q"), array("L")))
            hashes.append(phash)
            numbers.append(len(self._keys))
        self._keys.append(key)


def _bands(phash: int) -> list[int]:
    mask = (1 << BAND_BITS) - 1
    return [(phash >> (BAND_BITS * band)) & mask for band in range(BANDS)]
