"""Plain tars read as a stream, never extracted: regular members only, every byte counted.

Own header reading, because `tarfile` also accepts sparse members, links and compressed files, and follows
sizes that a header overrides (CVE-2025-8194 among others). Understood: v7, ustar, GNU long names, pax paths.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from pu_engine.errors import EngineError
from pu_engine.types import File

BLOCK = 512
MAX_NAME_BYTES = 1024
MAX_EXTENSION_BYTES = 65536  # a pax header or long name
SKIP_BYTES = 2**20
REGULAR, DIRECTORY, PAX, PAX_GLOBAL, LONG_NAME = (b"0", b"\0"), b"5", b"x", b"g", b"L"
KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a FIFO",
    b"S": "sparse",
}
POSIX_MAGIC = b"ustar\0"


class ByteStream(Protocol):
    """What is read from start to end, once."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; fewer only at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an archive may hold."""

    members: int
    total_bytes: int
    member_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A regular member; `data` is None where it is larger than the limit for one."""

    name: str
    size: int
    data: bytes | None


def read_tar(tar: File, limits: Limits) -> Iterator[Member]:
    """`read_members` of a file whose sha256 is known; it is checked at the end.

    Raises:
        EngineError: ARCHIVE_REJECTED, as `read_members` does; DIGEST_MISMATCH.
    """
    with Path(tar.path).open("rb") as file:
        stream = _HashingStream(file)
        yield from read_members(stream, limits)
    check_digest("a tar of images", stream.sha256(), tar.sha256)


def read_members(stream: ByteStream, limits: Limits) -> Iterator[Member]:
    """Regular members in the order of the archive; directories are passed over.

    Raises:
        EngineError: ARCHIVE_REJECTED, naming the member, for anything but plain members, for names that are
            absolute or leave their folder, above a limit, and for a damaged or cut archive.
    """
    total, name_override = 0, ""
    count = 0
    while (header := _read_header(stream)) is not None:
        name, size, kind = header
        if kind in (PAX, PAX_GLOBAL, LONG_NAME):
            name_override = _read_extension(stream, name, size, kind) or name_override
            continue
        name, name_override = name_override or name, ""
        count += 1
        total += size
        if count > limits.members:
            raise rejected(f"The tar has more than {limits.members} members.", limit=limits.members)
        if total > limits.total_bytes:
            raise rejected(f"The tar's members have more than {limits.total_bytes} bytes.", limit=limits.total_bytes)
        name = _safe_name(name)
        if kind == DIRECTORY and size == 0:
            continue
        if kind not in REGULAR:
            raise rejected(f"Member {name!r} is {KINDS.get(kind, 'of an unknown kind')}.", member=name)
        if size > limits.member_bytes:
            _skip(stream, name, size)
            yield Member(name=name, size=size, data=None)
        else:
            yield Member(name=name, size=size, data=_read_padded(stream, name, size))


def check_digest(what: str, actual: str, expected: str) -> None:
    """Compare two sha256.

    Raises:
        EngineError: DIGEST_MISMATCH where they differ.
    """
    if actual != expected:
        raise EngineError(
            "DIGEST_MISMATCH",
            f"The sha256 of {what} is {actual}, not {expected}.",
            "Upload it again.",
            actual=actual,
            expected=expected,
        )


def rejected(message: str, **details: object) -> EngineError:
    """The error of an archive that is not taken."""
    return EngineError("ARCHIVE_REJECTED", message, "Pack plain files only, uncompressed: tar cf.", **details)


class _HashingStream:
    """Reads of a file, with the sha256 of all that was read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        data = self._file.read(size)
        self._digest.update(data)
        return data

    def sha256(self) -> str:
        return self._digest.hexdigest()


def _read_header(stream: ByteStream) -> tuple[str, int, bytes] | None:
    """Name, size and kind of the next header; None at the end of the archive."""
    block = stream.read(BLOCK)
    if len(block) < BLOCK:
        raise rejected("The tar is cut: it has no end mark.")
    if not any(block):
        _expect_end(stream)
        return None
    stated = _number(block[148:156])
    if stated != sum(block[:148]) + sum(block[156:]) + 8 * ord(" "):
        raise rejected("The tar is damaged, or compressed: a header's checksum is wrong.")
    size = _number(block[124:136])
    raw = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == POSIX_MAGIC else b""
    name = _text(prefix + b"/" + raw if prefix else raw)
    if size is None:
        raise rejected(f"Member {name!r} has no valid size.", member=name)
    kind = block[156:157]
    # Archives of before 1988 mark a folder by its name alone.
    return name, size, DIRECTORY if kind in REGULAR and name.endswith("/") else kind


def _expect_end(stream: ByteStream) -> None:
    while block := stream.read(SKIP_BYTES):
        if any(block):
            raise rejected("The tar goes on after its end mark: tars put one after another are not taken.")


def _number(field: bytes) -> int | None:
    digits = field.strip(b" \0")
    # int() would also take "_", "+" and blanks within.
    return int(digits, 8) if digits and all(c in b"01234567" for c in digits) else None


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise rejected(f"A member's name is not UTF-8: {raw[:80]!r}.") from error


def _safe_name(name: str) -> str:
    """The name without a leading "./".

    Raises:
        EngineError: ARCHIVE_REJECTED for what is empty, too long, unprintable, absolute or leaves its folder.
    """
    parts = name.split("/")
    if len(name.encode()) > MAX_NAME_BYTES or not name.isprintable() or not name:
        raise rejected(f"The member's name {name[:80]!r} is empty, too long or not printable.", member=name[:80])
    if name.startswith("/") or "\\" in name or ".." in parts:
        raise rejected(f"Member {name!r} is absolute, or leaves its folder.", member=name)
    return "/".join(part for part in parts if part not in ("", "."))


def _read_extension(stream: ByteStream, name: str, size: int, kind: bytes) -> str:
    """The name that a GNU long name or a pax header gives the next member; "" where it gives none."""
    if size > MAX_EXTENSION_BYTES:
        raise rejected(f"The extended header {name!r} has {size} bytes; at most {MAX_EXTENSION_BYTES}.", member=name)
    data = _read_padded(stream, name, size)
    if kind == LONG_NAME:
        return _text(data.rstrip(b"\0"))
    records = _pax_records(data)
    forbidden = sorted(k for k in records if k in ("size", "linkpath") or k.startswith("GNU.sparse"))
    if forbidden or (kind == PAX_GLOBAL and "path" in records):
        raise rejected(f"The extended header {name!r} overrides {forbidden or 'path'}.", member=name)
    return records.get("path", "")


def _pax_records(data: bytes) -> dict[str, str]:
    """Records of the form "<length> <key>=<value>\\n", the length counting all of it."""
    records, position = {}, 0
    while position < len(data):
        digits, blank, _ = data[position : position + 8].partition(b" ")
        length = int(digits) if blank and digits.isdigit() else 0
        record = data[position : position + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if length < len(digits) + 3 or len(record) != length or not record.endswith(b"\n") or not equals:
            raise rejected("An extended header is malformed.")
        # Other records may hold anything (an extended attribute is binary); only paths must be text.
        records[key.decode("utf-8", "replace")] = _text(value) if key == b"path" else ""
        position += length
    return records


def _read_padded(stream: ByteStream, name: str, size: int) -> bytes:
    padded = -(-size // BLOCK) * BLOCK
    data = stream.read(padded)
    if len(data) < padded:
        raise rejected(f"The tar is cut within member {name!r}.", member=name)
    return data[:size]


def _skip(stream: ByteStream, name: str, size: int) -> None:
    left = -(-size // BLOCK) * BLOCK
    while left:
        data = stream.read(min(left, SKIP_BYTES))
        if not data:
            raise rejected(f"The tar is cut within member {name!r}.", member=name)
        left -= len(data)
