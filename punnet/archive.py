"""Images as plain tars: deterministic, sorted, regular members only, nothing of the user's machine in them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from punnet.errors import make_error

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


def pack_images(folder: Path, tar: Path) -> int:
    """Packs every JPEG and PNG below a folder into one plain tar, whatever the folders in between.

    Returns:
        The number of images.

    Raises:
        InvalidImages: IMAGES_MISSING where there is none; ARCHIVE_REJECTED for links.
    """
    files = [file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and not _hidden(file, folder)]
    if not files:
        raise make_error(
            "IMAGES_MISSING",
            f"There are no JPEG or PNG images below {folder}.",
            "--exclude takes a folder of images.",
            {"folder": str(folder)},
        )
    write_tar((Member(name=file.relative_to(folder).as_posix(), source=file) for file in files), tar)
    return len(files)


def write_tar(members: Iterable[Member], tar: Path) -> None:
    """Writes a plain tar, sorted by name, without times, owners or modes of the user's files.

    Raises:
        InvalidImages: ARCHIVE_REJECTED where a source is a link or not a regular file, or has a name that no appliance
            takes.
    """
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
        for member in sorted(members, key=lambda m: m.name):
            if not _sendable(member.name):
                raise _unsendable(member)
            header = tarfile.TarInfo(member.name)
            if isinstance(member.source, bytes):
                header.size = len(member.source)
                archive.addfile(header, io.BytesIO(member.source))
                continue
            if member.source.is_symlink() or not member.source.is_file():
                raise rejected(member.source)
            with member.source.open("rb") as file:
                header.size = member.source.stat().st_size
                archive.addfile(header, file)


def _folder_members(folder: Path) -> list[Member]:
    if not folder.is_dir():
        raise make_error(
            "IMAGES_MISSING",
            f"{folder} is a file." if folder.exists() else f"There is no folder {folder}.",
            "--images takes a folder that holds a folder of images for each label.",
            {"folder": str(folder)},
        )
    members = []
    for label in sorted(visible(folder)):
        if label.is_symlink():
            raise rejected(label)
        if label.is_dir():
            for file in sorted(visible(label)):
                if file.is_symlink() or not file.is_file():
                    raise rejected(file)
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
    if not 1 <= len(label) <= LABEL_CHARACTERS or "/" in label or label in (".", "..") or not _sendable(label):
        raise make_error(
            "ARCHIVE_REJECTED",
            f"{label[:LABEL_CHARACTERS]!r} can't be a label: 1 to {LABEL_CHARACTERS} printable characters "
            "without '/' and '\\' can.",
            "Rename the class.",
            {"label": label[:LABEL_CHARACTERS]},
        )
    return label


def _sendable(name: str) -> bool:
    """Whether the appliance takes a name; bytes of a file's name that are no UTF-8 are not printable either."""
    return name.isprintable() and "\\" not in name


def _unsendable(member: Member) -> Exception:
    """The error of a name that is not sendable, with the file or folder to rename."""
    if isinstance(member.source, bytes):
        what, remedy = repr(member.name), "Rename it."
    else:
        bad = next((p for p in (member.source, *member.source.parents) if not _sendable(p.name)), member.source)
        what, remedy = repr(str(member.source)), f"Rename {bad.name!r} in the folder {str(bad.parent)!r}."
    return make_error(
        "ARCHIVE_REJECTED",
        f"{what} can't be sent under its name: every character has to be printable, and none '\\'.",
        remedy,
        {"member": member.name.encode("utf-8", "backslashreplace").decode()},
    )


def visible(folder: Path) -> Iterator[Path]:
    """What a folder holds, without hidden files, which file managers leave behind."""
    return (p for p in folder.iterdir() if not p.name.startswith("."))


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def rejected(path: Path, code: str = "ARCHIVE_REJECTED") -> Exception:
    """The error of a path that is no regular file."""
    what = "a link" if path.is_symlink() else "a folder within a label's folder" if path.is_dir() else "missing"
    return make_error(
        code,
        f"{path} is {what}; only regular files are sent.",
        "Put the image itself there.",
        {"file": str(path)},
    )
