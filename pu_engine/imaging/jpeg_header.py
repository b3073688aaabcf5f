"""The segments of a JPEG, read without decoding: what the header gate and the matched view need."""

from __future__ import annotations

import re
from dataclasses import dataclass

EOI, SOS, DQT, APP1 = 0xD9, 0xDA, 0xDB, 0xE1
FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive; the others are lossless, hierarchical or arithmetic
OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
MAX_SEGMENTS = 2000  # a 20 MiB file of empty segments would take seconds to walk
TABLE_ENTRIES = 64
# In entropy-coded data 0xFF stands only before a stuffed zero, a restart marker or a fill byte.
NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
FILL = re.compile(rb"\xff+")
EXIF_START = b"Exif\0\0"
# ITU T.81, table K.1, in zigzag order.
STANDARD_LUMINANCE = (
    *(16, 11, 12, 14, 12, 10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40),
    *(26, 24, 22, 22, 24, 49, 35, 37, 29, 40, 58, 51, 61, 60, 57, 51),
    *(56, 55, 64, 72, 92, 78, 64, 68, 87, 69, 55, 56, 80, 109, 81, 87),
    *(95, 98, 103, 104, 103, 62, 77, 113, 121, 112, 100, 120, 92, 101, 103, 99),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegHeader:
    """What the segments say."""

    height: int
    width: int
    components: int
    chroma: str  # "4:2:0", "4:4:4", ..., "gray", or "other"
    scans: int
    luminance_table: tuple[int, ...]  # 64 entries in zigzag order
    exif: bytes  # b"" where there is none


def read_jpeg_header(data: bytes, max_scans: int) -> JpegHeader:
    """Walk the segments from SOI to EOI, counting scans.

    Raises:
        ValueError: what is malformed, not supported or above `max_scans`.
    """
    tables: dict[int, tuple[int, ...]] = {}
    frame, exif, scans, position = b"", b"", 0, 2
    for _ in range(MAX_SEGMENTS):
        marker, start = _marker_at(data, position)
        if marker == EOI:
            break
        if marker in OTHER_FRAMES:
            raise ValueError(f"its coding (SOF{marker - 0xC0}) is not supported")
        body, position = _segment_at(data, start)
        if marker == SOS:
            scans += 1
            if scans > max_scans:
                raise ValueError(f"it has more than {max_scans} scans")
            position = _end_of_scan(data, position)
        elif marker == DQT:
            tables |= _quantisation_tables(body)
        elif marker in FRAMES:
            if frame:
                raise ValueError("it has two frames")
            frame = body
        elif marker == APP1 and not exif and body.startswith(EXIF_START):
            exif = body
    else:
        raise ValueError(f"it has more than {MAX_SEGMENTS} segments")
    if not scans:
        raise ValueError("it has no scan")
    return _read_frame(frame, tables, scans, exif)


def _marker_at(data: bytes, position: int) -> tuple[int, int]:
    """A marker's code, and where its segment starts; fill bytes may stand before it."""
    fill = FILL.match(data, position)
    position = fill.end() if fill else position
    if position >= len(data):
        raise ValueError("it ends before its end marker")
    if fill is None:
        raise ValueError(f"no marker at byte {position}")
    return data[position], position + 1


def _end_of_scan(data: bytes, position: int) -> int:
    found = NEXT_MARKER.search(data, position)
    if found is None:
        raise ValueError("it ends within a scan")
    return found.start()


def _segment_at(data: bytes, start: int) -> tuple[bytes, int]:
    length = int.from_bytes(data[start : start + 2], "big")
    if length < 2 or start + length > len(data):
        raise ValueError(f"the segment at byte {start} has a wrong length of {length}")
    return data[start + 2 : start + length], start + length


def _quantisation_tables(body: bytes) -> dict[int, tuple[int, ...]]:
    tables, position = {}, 0
    while position < len(body):
        width, number = 1 + (body[position] >> 4), body[position] & 15
        values = body[position + 1 : position + 1 + TABLE_ENTRIES * width]
        if width > 2 or len(values) != TABLE_ENTRIES * width:
            raise ValueError("a quantisation table is malformed")
        tables[number] = tuple(int.from_bytes(values[i : i + width], "big") for i in range(0, len(values), width))
        position += 1 + len(values)
    return tables


def _read_frame(frame: bytes, tables: dict[int, tuple[int, ...]], scans: int, exif: bytes) -> JpegHeader:
    components = frame[5] if len(frame) > 5 else 0
    if components not in (1, 3, 4) or len(frame) != 6 + 3 * components:
        raise ValueError("its frame header is malformed")
    if frame[0] != 8:
        raise ValueError(f"it has {frame[0]} bits a sample, not 8")
    table = tables.get(frame[8])
    if table is None:
        raise ValueError("its luminance table is missing")
    return JpegHeader(
        height=int.from_bytes(frame[1:3], "big"),
        width=int.from_bytes(frame[3:5], "big"),
        components=components,
        chroma=_chroma([frame[7 + 3 * i] for i in range(components)]),
        scans=scans,
        luminance_table=table,
        exif=exif,
    )


def _chroma(sampling: list[int]) -> str:
    """The usual name of sampling factors (horizontal in the upper four bits, vertical in the lower)."""
    if len(sampling) == 1:
        return "gray"
    if sampling[1:3] != [0x11, 0x11]:
        return "other"
    return {0x11: "4:4:4", 0x21: "4:2:2", 0x22: "4:2:0", 0x12: "4:4:0", 0x41: "4:1:1"}.get(sampling[0], "other")
