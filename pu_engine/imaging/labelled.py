"""The user's labelled images, as a stream in a settled order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pu_engine.errors import EngineError
from pu_engine.imaging.archive import Limits, check_digest, read_tar, rejected
from pu_engine.imaging.images import MAX_BYTES
from pu_engine.results import file_sha256
from pu_engine.types import File, LabelledFile, LabelledImages

LIMITS = Limits(members=110_000, total_bytes=16 * 2**30, member_bytes=MAX_BYTES)
LABEL_CHARACTERS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImage:
    """One image as it came; `key` is unique among the labelled images."""

    key: str
    label: str
    data: bytes


def read(images: LabelledImages) -> Iterator[LabelledImage]:
    """Labelled images in the tar's order, or in the order of the given files.

    A key is the member's name `<label>/<name>`, or `<label>/<sha256>` of a file.

    Raises:
        EngineError: ARCHIVE_REJECTED (names the member), IMAGE_REJECTED (an image given twice, or too large),
            IMAGES_MISSING, REQUEST_INVALID (a tar and files), DIGEST_MISMATCH.
    """
    if images.tar is not None and images.files:
        raise EngineError(
            "REQUEST_INVALID", "Labelled images come as a tar and as files at once.", "Give one of the two."
        )
    source = _read_tar(images.tar) if images.tar is not None else _read_files(images.files)
    seen: set[str] = set()
    for image in source:
        if image.key in seen:
            raise EngineError(
                "ARCHIVE_REJECTED" if images.tar is not None else "IMAGE_REJECTED",
                f"Labelled image {image.key!r} comes twice.",
                "Give every image once.",
                key=image.key,
            )
        seen.add(image.key)
        yield image
    if not seen:
        raise EngineError("IMAGES_MISSING", "There are no labelled images.", "Give 20 to 100 images a class.")


@contextmanager
def named(key: str) -> Iterator[None]:
    """Say in an image's refusal which labelled image it is."""
    try:
        yield
    except EngineError as error:
        message = f"Labelled image {key!r} is not taken. {error.message}"
        raise EngineError(error.code, message, error.remedy, **{**error.details, "key": key}) from error


def _read_tar(tar: File) -> Iterator[LabelledImage]:
    for member in read_tar(tar, LIMITS):
        label, _, name = member.name.partition("/")
        if not name or "/" in name:
            raise rejected(f"Member {member.name!r} is not <label>/<name>.", member=member.name)
        if member.data is None:
            raise rejected(f"Member {member.name!r} has {member.size} bytes; at most {MAX_BYTES}.", member=member.name)
        yield LabelledImage(key=member.name, label=_checked_label(label), data=member.data)


def _read_files(files: tuple[LabelledFile, ...]) -> Iterator[LabelledImage]:
    if len(files) > LIMITS.members:
        raise EngineError(
            "IMAGE_REJECTED",
            f"There are {len(files)} labelled images; at most {LIMITS.members} are taken.",
            "Give fewer images: 20 to 100 a class are enough.",
            limit=LIMITS.members,
        )
    for file in files:
        path = Path(file.image.path)
        size = path.stat().st_size
        key = f"{_checked_label(file.label)}/{file.image.sha256}"
        if size > MAX_BYTES:
            raise EngineError(
                "IMAGE_REJECTED",
                f"Labelled image {key!r} has {size} bytes; at most {MAX_BYTES} are taken.",
                "Replace or leave out this image.",
                key=key,
                limit=MAX_BYTES,
            )
        check_digest(f"labelled image {key!r}", file_sha256(path), file.image.sha256)
        yield LabelledImage(key=key, label=file.label, data=path.read_bytes())


def _checked_label(label: str) -> str:
    if not label.strip() or len(label) > LABEL_CHARACTERS or not label.isprintable():
        raise EngineError(
            "LABELS_UNMAPPABLE",
            f"Label {label[:LABEL_CHARACTERS]!r} is empty, unprintable or longer than {LABEL_CHARACTERS} characters.",
            "Name each class with a short printable text.",
        )
    return label
