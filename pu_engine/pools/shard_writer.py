"""Writes one shard and its index; both appear under their names only when they are whole and on the disk."""

from __future__ import annotations

import hashlib
import os
import tarfile
from pathlib import Path

from pu_engine.imaging.image_check import CheckedImage
from pu_engine.imaging.images import JPEG_START
from pu_engine.pools.pool_index import BAD, GOOD, index_name, write_index
from pu_engine.pools.pool_types import Shard
from pu_engine.results import file_sha256, fsync_files, fsync_folder

SHARD_BYTES = 2**30  # a confined stage may write files of 2 GiB


class ShardWriter:
    """One shard that is being filled. Bad images go to the index only."""

    def __init__(self, out: Path, number: int) -> None:
        self.name = f"shard-{number:05d}"
        self.entries = 0
        self._out = out
        self._rows: list[dict[str, object]] = []
        self._partial = out / f".{self.name}.tar.partial"
        self._file = self._partial.open("wb")
        self._digest = hashlib.sha256()
        self._position = 0

    def close(self) -> None:
        """Let go of the file; a shard that was not finished leaves only hidden ones."""
        self._file.close()

    def has_room(self, size: int, shard_images: int) -> bool:
        """Whether a good image of so many bytes still goes in."""
        return self.entries < shard_images and self._position + size <= SHARD_BYTES

    def add(self, key: str, image: CheckedImage, *, duplicate_of: str | None, near_duplicate_of: str | None) -> None:
        """Append an image under a key that is unique in the pool."""
        row: dict[str, object] = {
            "key": key,
            "status": BAD if image.reason else GOOD,
            "reason": image.reason,
            "offset": None,
            "size": image.source_size,
            "sha256": image.sha256,
            "source_sha256": image.source_sha256,
            "format": image.format,
            "width": image.width,
            "height": image.height,
            "phash": image.phash,
            "duplicate_of": duplicate_of,
            "near_duplicate_of": near_duplicate_of,
        }
        if not image.reason:
            header = _member_header(key, image.data)
            row |= {"offset": self._position + len(header), "size": len(image.data)}
            self._write(header + image.data + b"\0" * (-len(image.data) % tarfile.BLOCKSIZE))
            self.entries += 1
        self._rows.append(row)

    def finish(self) -> Shard:
        """Give shard and index their names."""
        self._write(b"\0" * (2 * tarfile.BLOCKSIZE))
        self._write(b"\0" * (-self._position % tarfile.RECORDSIZE))
        self._file.close()
        index = self._out / f".{index_name(self.name)}.partial"
        write_index(index, self._rows)
        index_sha256 = file_sha256(index)
        fsync_files(self._out, (Path(self._partial.name), Path(index.name)))
        os.rename(self._partial, self._out / f"{self.name}.tar")
        os.rename(index, self._out / index_name(self.name))
        fsync_folder(self._out)
        return Shard(
            name=self.name,
            sha256=self._digest.hexdigest(),
            size=self._position,
            entries=self.entries,
            index_sha256=index_sha256,
        )

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._position += len(data)


def _member_header(key: str, data: bytes) -> bytes:
    """A header without time, owner or machine."""
    info = tarfile.TarInfo(key + (".jpg" if data.startswith(JPEG_START) else ".png"))
    info.size = len(data)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
