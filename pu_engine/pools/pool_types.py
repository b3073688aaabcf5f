"""What pool stages exchange: frozen, with a JSON form."""

from __future__ import annotations

from dataclasses import dataclass

from pu_engine.types import File, Folder

FORMAT = 2  # of pool.json and the indexes
EXIF_POLICY = "applied"  # images are shown upright everywhere, and stored as they came unless they are shrunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrink:
    """Images with a longer short side are stored with this one, as JPEG of this quality."""

    short_side: int
    quality: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestInputs:
    """Make a pool from plain tars of images, or append to one (`pool`), whose `shrink` then holds on."""

    name: str
    tars: tuple[File, ...]
    pool: Folder | None = None
    shrink: Shrink | None = None
    shard_images: int = 5000
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """`<name>.tar` with `entries` good images and its index `<name>.arrow`; neither ever changes."""

    name: str
    sha256: str
    size: int
    entries: int
    index_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """`pool.json` beside the shards and their indexes."""

    name: str
    images: int
    bad_images: int
    duplicates: int  # images whose bytes an earlier image has
    near_duplicates: int  # images that look like an earlier one
    size: int
    shards: tuple[Shard, ...]
    shrink: Shrink | None = None
    exif: str = EXIF_POLICY
    format: int = FORMAT


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolVerificationInputs:
    """Read a whole pool again; `check` makes each verification one of its own, for a finished one says nothing new."""

    pool: Folder
    check: str = ""
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolVerification:
    """A pool that is as it was made."""

    shards: int
    images: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPageInputs:
    """Show a pool."""

    pool: Folder
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPage:
    """Files: `pool.html`, `pool-summary.json`."""

    images: int
    shown: int
