"""A training's curve as a TensorBoard event file.

Written by hand: TensorBoard's own package brings a web server, and what it writes is a few fields. A record is its
length, a masked CRC32C of the length, the data and a masked CRC32C of the data; the data is a protobuf `Event`.
The wall time is the step, so that the same training gives the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import google_crc32c

from pu_engine.results import write_atomic

MASK_DELTA = 0xA282EAD8
VERSION = "brain.Event:2"
# Field numbers with their wire types, of tensorflow/core/util/event.proto and framework/summary.proto.
WALL_TIME, STEP, FILE_VERSION, SUMMARY = b"\x09", b"\x10", b"\x1a", b"\x2a"
VALUE, TAG, SIMPLE_VALUE = b"\x0a", b"\x0a", b"\x15"


def write_events(path: Path, curve: Sequence[Mapping[str, float]]) -> None:
    """Write the rows of a curve: every figure but `step` is a scalar by its name."""
    write_atomic(path, b"".join(map(_record, _events(curve))))


def _events(curve: Sequence[Mapping[str, float]]) -> Iterator[bytes]:
    yield WALL_TIME + struct.pack("<d", 0.0) + FILE_VERSION + _sized(VERSION.encode())
    for row in curve:
        values = [
            VALUE + _sized(TAG + _sized(name.encode()) + SIMPLE_VALUE + struct.pack("<f", value))
            for name, value in row.items()
            if name != "step"
        ]
        step = int(row["step"])
        yield WALL_TIME + struct.pack("<d", step) + STEP + _varint(step) + SUMMARY + _sized(b"".join(values))


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def _masked_crc(data: bytes) -> bytes:
    crc = int(google_crc32c.value(data))
    return struct.pack("<I", ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF)


def _sized(data: bytes) -> bytes:
    return _varint(len(data)) + data


def _varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
