from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pu_engine.training.tensorboard_file import write_events

CURVE = [{"step": 1.0, "loss": 2.5, "learning_rate": 0.1}, {"step": 300.0, "loss": 0.5, "learning_rate": 0.0}]


def crc32c(data: bytes) -> int:
    """Castagnoli's CRC, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def records(content: bytes) -> list[bytes]:
    found = []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        data = content[12 : 12 + length]
        assert content[8:12] == masked(content[:8])
        assert content[12 + length : 16 + length] == masked(data)
        found.append(data)
        content = content[16 + length :]
    return found


def test_records_are_framed_by_their_length_and_checksums(tmp_path: Path) -> None:
    write_events(tmp_path / "e", CURVE)
    first, *rows = records((tmp_path / "e").read_bytes())
    assert first.endswith(b"\x1a\x0dbrain.Event:2")
    assert len(rows) == 2


def test_a_row_holds_its_step_and_every_figure_by_name(tmp_path: Path) -> None:
    write_events(tmp_path / "e", CURVE)
    row = records((tmp_path / "e").read_bytes())[2]
    assert row[9:12] == b"\x10\xac\x02"  # field 2, 300 as a varint
    assert b"\x0a\x04loss\x15" + struct.pack("<f", 0.5) in row
    assert b"\x0a\x0dlearning_rate\x15" + struct.pack("<f", 0.0) in row
    assert b"step" not in row


def test_the_same_curve_gives_the_same_bytes(tmp_path: Path) -> None:
    write_events(tmp_path / "a", CURVE)
    write_events(tmp_path / "b", CURVE)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tensorboard_reads_it(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write_events(tmp_path / "events.tfevents", CURVE)
    read = accumulators.EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [(1, 2.5), (300, 0.5)]
