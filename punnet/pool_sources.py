"""What a user names as a pool's images, as plain tars to upload: folders, tars, Parquet files, URLs of the operator."""

from __future__ import annotations

import itertools
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from punnet.archive import IMAGE_SUFFIXES, Member, rejected, visible, write_tar
from punnet.errors import make_error
from punnet.parquet_images import PARQUET_SUFFIX, parquet_members
from punnet.remote_files import is_url, remote_files

POOL_TAR_BYTES = 256 * 2**20
BLOCK_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contents:
    """What one source holds: tars as they are, and members to be packed."""

    tars: Iterable[Path]
    members: Iterable[Member]


def pool_tars(sources: Sequence[Path | str], scratch: Path) -> Iterator[Path]:
    """The tars to upload for a pool, one after the other; the same sources give the same tars.

    Plain tars are given back as they are. Images of folders, at any depth, and of Parquet files are packed in tars of
    at most POOL_TAR_BYTES under `scratch`, and what a URL names is fetched there; each tar under `scratch` may be
    deleted before the next is asked for.

    Raises:
        InvalidPool: POOL_INVALID where a source is missing, a compressed tar, a link, or holds nothing.
    """
    packed = itertools.count()
    for source in sources:
        contents = _remote_contents(source, scratch) if is_url(source) else _local_contents(Path(source))
        found = False
        for tar in contents.tars:
            found = True
            yield tar
        for group in _groups(contents.members):
            found = True
            tar = scratch / f"pool-{next(packed):05}.tar"
            write_tar(group, tar)
            yield tar
        if not found:  # Parquet files without rows
            raise _empty(source)


def _local_contents(source: Path) -> _Contents:
    if source.is_file():
        if source.suffix == PARQUET_SUFFIX and not source.is_symlink():
            return _Contents(tars=(), members=parquet_members(source, source.stem))
        return _Contents(tars=(_plain_tar(source),), members=())
    files = _files_below(source)
    tars = [f for f in files if f.suffix == ".tar"]
    tables = [f for f in files if f.suffix == PARQUET_SUFFIX]
    images = [f for f in files if f.suffix.lower() in IMAGE_SUFFIXES]
    if not (tars or tables or images):
        raise _nothing(str(source))
    return _Contents(
        tars=(_plain_tar(tar) for tar in tars),
        members=itertools.chain(
            *(parquet_members(f, f.relative_to(source).with_suffix("").as_posix()) for f in tables),
            (Member(name=f.relative_to(source).as_posix(), source=f) for f in images),
        ),
    )


def _remote_contents(url: Path | str, scratch: Path) -> _Contents:
    """Files are fetched when their turn comes, so that a large source never lies on the disk as a whole."""
    files = remote_files(str(url))
    tars = [f for f in files if f.suffix == ".tar"]
    tables = [f for f in files if f.suffix == PARQUET_SUFFIX]
    images = [f for f in files if f.suffix.lower() in IMAGE_SUFFIXES]
    if not (tars or tables or images):
        raise _nothing(str(url))

    def rows(fetch: Callable[[Path], Path], name: str) -> Iterator[Member]:
        table = fetch(scratch / "remote.parquet")
        yield from parquet_members(table, name)
        table.unlink()

    return _Contents(
        tars=(_plain_tar(f.fetch(scratch / f"remote-{n:05}.tar")) for n, f in enumerate(tars)),
        members=itertools.chain(
            itertools.chain.from_iterable(rows(f.fetch, f.name.removesuffix(PARQUET_SUFFIX)) for f in tables),
            (Member(name=f.name, source=f.read()) for f in images),
        ),
    )


def _nothing(source: str) -> Exception:
    return make_error(
        "POOL_INVALID",
        f"{source} holds neither JPEG or PNG files nor tars nor Parquet files of them.",
        "Give the folder that holds the images.",
        {"path": source},
    )


def _empty(source: Path | str) -> Exception:
    return make_error(
        "POOL_INVALID",
        f"There are no images in {source}.",
        "Give a tar or a Parquet file that holds some, or the folder that does.",
        {"path": str(source)},
    )


def _files_below(folder: Path) -> list[Path]:
    """Every visible regular file below a folder, sorted."""
    if folder.is_symlink() or not folder.is_dir():
        raise make_error(
            "POOL_INVALID",
            f"{folder} is neither a folder of images nor a plain tar.",
            "Give folders with JPEG or PNG files, or uncompressed tars or Parquet files of them.",
            {"path": str(folder)},
        )
    files: list[Path] = []
    for path in sorted(visible(folder)):
        if path.is_symlink():
            raise rejected(path, "POOL_INVALID")
        if path.is_dir():
            files += _files_below(path)
        elif path.is_file():
            files.append(path)
    return files


def _plain_tar(path: Path) -> Path:
    with path.open("rb") as file:
        header = file.read(BLOCK_BYTES)
    if header == bytes(BLOCK_BYTES):  # the mark of a tar's end
        raise _empty(path)
    if path.is_symlink() or header[257:262] != b"ustar":
        raise make_error(
            "POOL_INVALID",
            f"{path} is not a plain tar.",
            "Decompress it first (`gunzip`, `zstd -d`), or unpack it and give the folder.",
            {"path": str(path)},
        )
    return path


def _groups(images: Iterable[Member]) -> Iterator[list[Member]]:
    """Consecutive members whose tar stays within POOL_TAR_BYTES; a larger single file makes a tar of its own."""
    group: list[Member] = []
    size = 2 * BLOCK_BYTES
    for member in images:
        content = len(member.source) if isinstance(member.source, bytes) else member.source.stat().st_size
        # A header, three more blocks where the name needs a PAX header, and the content rounded up to blocks.
        needed = 4 * BLOCK_BYTES + -(-content // BLOCK_BYTES) * BLOCK_BYTES
        if group and size + needed > POOL_TAR_BYTES - tarfile.RECORDSIZE:
            yield group
            group, size = [], 2 * BLOCK_BYTES
        group.append(member)
        size += needed
    if group:
        yield group
