"""Images as plain tars: deterministic, sorted, regular members only, nothing of the user's machine in them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from punnet.errors import make_error

POOL_TAR_BYTES = 256 * 2**20
BLOCK_BYTES = 512
LABEL_CHARACTERS = 200
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})

Image = Path | str | bytes
LabelledSource = Path | str | Mapping[str, Sequence[Image]] | Iterable[tuple[str, Image]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A file of a tar to be."""

    name: str
    source: Path | bytes


def pack_labelled(images: LabelledSource, tar: Path) -> int:
    """Packs labelled images into one plain tar of `<label>/<name>` members; the same images give the same bytes.

    Args:
        images: a folder with a folder for each label; a mapping from label to images; or pairs of label and image. An
            image is a path or the bytes of a JPEG or PNG.
        tar: the file to write.

    Returns:
        The number of images.

    Raises:
        InvalidImages: IMAGES_MISSING where there is none; ARCHIVE_REJECTED for links, nested folders or bad labels.
    """
    if isinstance(images, Path | str):
        members = _folder_members(Path(images))
    else:
        pairs = _mapping_pairs(images) if isinstance(images, Mapping) else images
        members = [
            Member(name=f"{_label(label)}/{_member_name(n, image)}", source=_source(image))
            for n, (label, image) in enumerate(pairs)
        ]
    if not members:
        raise make_error(
            "IMAGES_MISSING", "No labelled images were given.", "Give 20 to 100 a class, two classes at least."
        )
    write_tar(members, tar)
    return len(members)


def pool_tars(sources: Sequence[Path], scratch: Path) -> Iterator[Path]:
    """The tars to upload for a pool, one after the other.

    Plain tars are given back as they are. Images of folders, at any depth, are packed in tars of at most POOL_TAR_BYTES
    under `scratch`; each may be deleted before the next is asked for.

    Raises:
        InvalidPool: POOL_INVALID where a source is missing, a compressed tar, a link, or holds nothing.
    """
    packed = 0
    for source in sources:
        if source.is_file():
            yield _plain_tar(source)
            continue
        files = _files_below(source)
        tars = [f for f in files if f.suffix == ".tar"]
        images = [f for f in files if f.suffix.lower() in IMAGE_SUFFIXES]
        if not tars and not images:
            raise make_error(
                "POOL_INVALID",
                f"{source} holds neither JPEG or PNG files nor tars.",
                "Give the folder that holds the images.",
                {"path": str(source)},
            )
        yield from (_plain_tar(f) for f in tars)
        for group in _groups(Member(name=f.relative_to(source).as_posix(), source=f) for f in images):
            tar = scratch / f"pool-{packed:05}.tar"
            write_tar(group, tar)
            packed += 1
            yield tar


def write_tar(members: Iterable[Member], tar: Path) -> None:
    """Writes a plain tar, sorted by name, without times, owners or modes of the user's files.

    Raises:
        InvalidImages: ARCHIVE_REJECTED where a source is a link or not a regular file.
    """
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
        for member in sorted(members, key=lambda m: m.name):
            header = tarfile.TarInfo(member.name)
            if isinstance(member.source, bytes):
                header.size = len(member.source)
                archive.addfile(header, io.BytesIO(member.source))
                continue
            if member.source.is_symlink() or not member.source.is_file():
                raise _rejected(member.source)
            with member.source.open("rb") as file:
                header.size = member.source.stat().st_size
                archive.addfile(header, file)


def _folder_members(folder: Path) -> list[Member]:
    if not folder.is_dir():
        raise make_error(
            "IMAGES_MISSING",
            f"There is no folder {folder}.",
            "--images takes a folder that holds a folder of images for each label.",
            {"folder": str(folder)},
        )
    members = []
    for label in sorted(_visible(folder)):
        if label.is_symlink():
            raise _rejected(label)
        if label.is_dir():
            for file in sorted(_visible(label)):
                if file.is_symlink() or not file.is_file():
                    raise _rejected(file)
                members.append(Member(name=f"{_label(label.name)}/{file.name}", source=file))
        elif label.suffix.lower() in IMAGE_SUFFIXES:
            raise make_error(
                "ARCHIVE_REJECTED",
                f"{label} is an image without a label.",
                f"Move it into a folder named like its label below {folder}.",
                {"file": str(label)},
            )
    return members


def _mapping_pairs(images: Mapping[str, Sequence[Image]]) -> Iterator[tuple[str, Image]]:
    for label, several in images.items():
        for image in several:
            yield label, image


def _member_name(number: int, image: Image) -> str:
    """Unique by its number; the file's own name stays in it, since messages about an image say the member."""
    return f"{number:06}" if isinstance(image, bytes) else f"{number:06}-{Path(image).name}"


def _source(image: Image) -> Path | bytes:
    return image if isinstance(image, bytes) else Path(image)


def _label(label: str) -> str:
    if not 1 <= len(label) <= LABEL_CHARACTERS or "/" in label or "\0" in label or label in (".", ".."):
        raise make_error(
            "ARCHIVE_REJECTED",
            f"{label[:LABEL_CHARACTERS]!r} can't be a label: 1 to {LABEL_CHARACTERS} characters without '/' can.",
            "Rename the class.",
            {"label": label[:LABEL_CHARACTERS]},
        )
    return label


def _files_below(folder: Path) -> list[Path]:
    """Every visible regular file below a folder, sorted."""
    if folder.is_symlink() or not folder.is_dir():
        raise make_error(
            "POOL_INVALID",
            f"{folder} is neither a folder of images nor a plain tar.",
            "Give folders with JPEG or PNG files, or uncompressed tars of them.",
            {"path": str(folder)},
        )
    files: list[Path] = []
    for path in sorted(_visible(folder)):
        if path.is_symlink():
            raise _rejected(path, "POOL_INVALID")
        if path.is_dir():
            files += _files_below(path)
        elif path.is_file():
            files.append(path)
    return files


def _plain_tar(path: Path) -> Path:
    with path.open("rb") as file:
        header = file.read(BLOCK_BYTES)
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


def _visible(folder: Path) -> Iterator[Path]:
    """What a folder holds, without hidden files, which file managers leave behind."""
    return (p for p in folder.iterdir() if not p.name.startswith("."))


def _rejected(path: Path, code: str = "ARCHIVE_REJECTED") -> Exception:
    what = "a link" if path.is_symlink() else "a folder within a label's folder" if path.is_dir() else "missing"
    return make_error(
        code,
        f"{path} is {what}; only regular files are sent.",
        "Put the image itself there.",
        {"file": str(path)},
    )
