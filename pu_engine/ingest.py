"""Stage: plain tars of images become a pool, immutable shards with an index.

A pool is a folder with `shard-00000.tar`, ... (WebDataset layout: one member `<key>.jpg` or `<key>.png` an image),
`index.arrow` and, written last, `pool.json`. The same tars give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa

from pu_engine.archive import Limits, Member, read_tar
from pu_engine.errors import EngineError
from pu_engine.images import JPEG_START, MAX_BYTES, decode, is_image
from pu_engine.jsonform import to_json
from pu_engine.pool import BAD, GOOD, INDEX, INDEX_SCHEMA, POOL
from pu_engine.prefetch import prefetched
from pu_engine.progress import Progress
from pu_engine.results import file_sha256, write_atomic
from pu_engine.types import IngestInputs, Pool, Shard

LIMITS = Limits(members=5_000_000, total_bytes=4 * 2**40, member_bytes=MAX_BYTES)
SHARD_BYTES = 2**30  # a confined stage may write files of 2 GiB
BAD_SHARE_WARNED = 0.01
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".jp2", ".heic", ".avif")
REASON_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """A member that is or claims to be an image, decoded once; `reason` is empty where it is good."""

    member: Member
    sha256: bytes | None
    height: int
    width: int
    reason: str


def run(inputs: IngestInputs, out: Path, progress: Progress) -> Pool:
    """Write the pool; leftovers of a killed run are overwritten.

    Exact duplicates are kept. Undecodable images stand in the index as bad and are never picked.

    Raises:
        EngineError: ARCHIVE_REJECTED, DIGEST_MISMATCH, or POOL_INVALID where no image is usable.
    """
    if inputs.shard_images < 1:
        raise ValueError(f"shard_images is at least 1, not {inputs.shard_images}")
    for leftover in out.iterdir():
        leftover.unlink()
    total = sum(Path(tar.path).stat().st_size for tar in inputs.tars)
    shards = _ShardWriter(out, inputs.shard_images)
    keys = _Keys()
    images = bad = done = 0
    with shards:
        for checked in prefetched(_check, _image_members(inputs), inputs.threads):
            shards.add(keys.unique(checked.member.name), checked)
            images += not checked.reason
            bad += bool(checked.reason)
            done += checked.member.size
            progress.update(min(done, total), total, "bytes", {"images": images, "bad_images": bad})
    if not images:
        raise EngineError(
            "POOL_INVALID",
            f"The pool {inputs.name!r} has no usable image; {bad} could not be decoded.",
            "Pack JPEG or PNG files as plain tars.",
            bad_images=bad,
        )
    if bad > BAD_SHARE_WARNED * (images + bad):
        progress.warn(f"{bad} of {images + bad} images of the pool could not be decoded; index.arrow says why.")
    progress.update(total, total, "bytes", {"images": images, "bad_images": bad})
    pool = Pool(
        name=inputs.name,
        images=images,
        bad_images=bad,
        size=sum(shard.size for shard in shards.finished),
        shards=tuple(shards.finished),
        index_sha256=file_sha256(out / INDEX),
    )
    write_atomic(out / POOL, json.dumps(to_json(pool), indent=1, sort_keys=True).encode())
    return pool


def _image_members(inputs: IngestInputs) -> Iterator[Member]:
    """Members that are images, or claim to be by their name."""
    for tar in inputs.tars:
        for member in read_tar(tar, LIMITS):
            path = PurePosixPath(member.name)
            claims = path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
            if claims or (member.data is not None and is_image(member.data)):
                yield member


def _check(member: Member) -> _Checked:
    if member.data is None:
        reason = f"The image has {member.size} bytes; at most {MAX_BYTES} are taken."
        return _Checked(member=member, sha256=None, height=0, width=0, reason=reason)
    sha256 = hashlib.sha256(member.data).digest()
    try:
        height, width, _ = decode(member.data, 3).shape
    except EngineError as error:
        return _Checked(member=member, sha256=sha256, height=0, width=0, reason=error.message[:REASON_CHARACTERS])
    return _Checked(member=member, sha256=sha256, height=height, width=width, reason="")


class _Keys:
    """Unique names: a member's path without its extension, with "~2", "~3", ... where that is taken."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def unique(self, name: str) -> str:
        path = PurePosixPath(name)
        # A dot in a file's name would end a WebDataset key.
        wanted = key = str(path.with_name(path.stem.replace(".", "_")))
        while key in self._taken:
            self._taken[wanted] += 1
            key = f"{wanted}~{self._taken[wanted]}"
        self._taken[key] = 1
        return key


class _ShardWriter:
    """Shards and index, written in the order of the images; a shard's name appears when it is whole."""

    def __init__(self, out: Path, shard_images: int) -> None:
        self.finished: list[Shard] = []
        self._out = out
        self._shard_images = shard_images
        self._index_partial = out / f".{INDEX}.partial"
        self._index = pa.ipc.new_file(str(self._index_partial), INDEX_SCHEMA)
        self._rows: list[dict[str, object]] = []
        self._begin()

    def __enter__(self) -> _ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._entries:
            self._finish_shard()
        self._file.close()
        self._partial.unlink(missing_ok=True)
        self._write_rows()
        self._index.close()
        if kind is None:
            self._index_partial.rename(self._out / INDEX)

    def add(self, key: str, checked: _Checked) -> None:
        """Append an image to the open shard; a bad one to the index only."""
        member = checked.member
        row: dict[str, object] = {
            "key": key,
            "shard": None,
            "offset": None,
            "size": member.size,
            "sha256": checked.sha256,
            "width": checked.width,
            "height": checked.height,
            "status": BAD if checked.reason else GOOD,
            "reason": checked.reason,
        }
        if member.data is not None and not checked.reason:
            if self._entries == self._shard_images or self._position + member.size > SHARD_BYTES:
                self._finish_shard()
                self._begin()
            header = _member_header(key, member.data)
            row |= {"shard": self._name, "offset": self._position + len(header)}
            self._write(header + member.data + b"\0" * (-member.size % tarfile.BLOCKSIZE))
            self._entries += 1
        self._rows.append(row)
        if len(self._rows) >= self._shard_images:
            self._write_rows()

    def _begin(self) -> None:
        self._name = f"shard-{len(self.finished):05d}"
        self._partial = self._out / f".{self._name}.tar.partial"
        self._file = self._partial.open("wb")
        self._digest = hashlib.sha256()
        self._position = self._entries = 0

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._position += len(data)

    def _finish_shard(self) -> None:
        self._write(b"\0" * (2 * tarfile.BLOCKSIZE))
        self._write(b"\0" * (-self._position % tarfile.RECORDSIZE))
        self._file.close()
        self._partial.rename(self._out / f"{self._name}.tar")
        self.finished.append(
            Shard(name=self._name, sha256=self._digest.hexdigest(), size=self._position, entries=self._entries)
        )

    def _write_rows(self) -> None:
        if self._rows:
            self._index.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=INDEX_SCHEMA))
            self._rows = []


def _member_header(key: str, data: bytes) -> bytes:
    """A header without time, owner or machine."""
    info = tarfile.TarInfo(key + (".jpg" if data.startswith(JPEG_START) else ".png"))
    info.size = len(data)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
