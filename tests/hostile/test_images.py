"""Images made to hurt a decoder; each has a benign twin."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from pu_engine.errors import EngineError
from pu_engine.imaging import images

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
MUTANTS = 400


def jpeg(*, progressive: bool = False) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG", progressive=progressive)
    return buffer.getvalue()


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg_claiming(height: int, width: int) -> bytes:
    data = bytearray(jpeg())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def png_claiming(height: int, width: int) -> bytes:
    data = bytearray(png())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def with_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated until there are `count`."""
    data = jpeg(progressive=True)
    last = data.rindex(b"\xff\xda")
    scan = data[last:-2]
    return data[:-2] + scan * (count - data.count(b"\xff\xda")) + data[-2:]


def rejection(data: bytes) -> str:
    with pytest.raises(EngineError) as caught:
        images.decode(data, 3)
    assert caught.value.code == "IMAGE_REJECTED"
    assert caught.value.remedy
    return caught.value.message


def outcome(data: bytes) -> str:
    """The type of the pixels, or the error's code."""
    try:
        images.jpeg_quality(data)
        return images.decode(data, 3).dtype.name
    except EngineError as error:
        return error.code


@pytest.mark.parametrize("data", [jpeg(), jpeg(progressive=True), png()], ids=["jpeg", "progressive", "png"])
def test_benign_twins_decode(data: bytes) -> None:
    assert images.decode(data, 3).shape == (16, 16, 3)


@pytest.mark.parametrize("side", [65500, 9000, 5001])
def test_claimed_size_is_refused_before_decoding(side: int) -> None:
    assert "pixels" in rejection(jpeg_claiming(side, side))
    assert "pixels" in rejection(png_claiming(side, side))


@pytest.mark.parametrize("data", [jpeg_claiming(0, 16), jpeg_claiming(16, 0), png_claiming(0, 16)])
def test_empty_images_are_refused(data: bytes) -> None:
    assert "pixels" in rejection(data)


def test_largest_claim_that_passes_the_gate_is_a_clean_error() -> None:
    assert "damaged" in rejection(jpeg_claiming(4999, 5000))


def test_scans_are_counted() -> None:
    assert "damaged" in rejection(with_scans(32))
    assert "more than 32 scans" in rejection(with_scans(210))


def test_scan_marker_in_metadata_is_no_scan() -> None:
    data = jpeg()
    comment = b"\xff\xda" * 100
    segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
    assert images.decode(data[:2] + segment + data[2:], 3).shape == (16, 16, 3)


def test_bytes_are_counted() -> None:
    assert "bytes" in rejection(jpeg() + b"\0" * images.MAX_BYTES)


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"GIF89a\x01\x00\x01\x00",
        b"RIFF\x00\x00\x00\x00WEBPVP8 ",
        b"BM" + b"\0" * 60,
        b"II*\0" + b"\0" * 60,
        b"",
        b"\xff\xd8",
    ],
    ids=["eps", "gif", "webp", "bmp", "tiff", "empty", "start only"],
)
def test_only_jpeg_and_png_are_tried(data: bytes) -> None:
    assert "neither" in rejection(data)


@pytest.mark.parametrize("data", [jpeg(), jpeg(progressive=True), png()], ids=["jpeg", "progressive", "png"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_cut_files_are_refused(data: bytes, kept: float) -> None:
    rejection(data[: int(len(data) * kept)])


def test_second_frame_is_refused() -> None:
    data = jpeg()
    frame = data.index(b"\xff\xc0")
    segment = data[frame : frame + 2 + int.from_bytes(data[frame + 2 : frame + 4], "big")]
    assert "two frames" in rejection(data[:frame] + segment + data[frame:])


@pytest.mark.parametrize("coding", [0xC3, 0xC5, 0xC9, 0xCB])
def test_rare_codings_are_refused(coding: int) -> None:
    assert "not supported" in rejection(jpeg().replace(b"\xff\xc0", bytes([0xFF, coding]), 1))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "flood",
    [b"\xff" * 2**23, b"\xff\x00" * 2**22, b"\xff\xfe\x00\x02" * 2**21, b"\xff\xd0" * 2**22],
    ids=["fill bytes", "stuffed zeros", "empty segments", "restarts"],
)
@pytest.mark.parametrize("place", ["before the frame", "in the scan"])
def test_floods_are_walked_in_linear_time(flood: bytes, place: str) -> None:
    data = jpeg()
    at = 2 if place == "before the frame" else len(data) - 2
    rejection(data[:at] + flood)


def test_png_bomb_in_metadata_is_refused() -> None:
    body = b"Comment\0\0" + zlib.compress(b"\0" * 2**27)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    data = png()
    rejection(data[:33] + chunk + data[33:])


@pytest.mark.parametrize("data", [jpeg(), jpeg(progressive=True), png()], ids=["jpeg", "progressive", "png"])
def test_mutants_decode_or_are_refused(data: bytes) -> None:
    generator = np.random.default_rng(11)
    for _ in range(MUTANTS):
        mutant = bytearray(data)
        for at in generator.integers(0, len(data), generator.integers(1, 6)):
            mutant[at] = generator.integers(0, 256)
        assert outcome(bytes(mutant)) in ("uint8", "IMAGE_REJECTED")


def test_same_bytes_give_the_same_error() -> None:
    bad = jpeg()[:-40]
    assert rejection(bad) == rejection(bad)


def test_decoder_errors_do_not_outlive_their_image() -> None:
    rejection(jpeg()[:-40])
    np.testing.assert_array_equal(images.decode(jpeg(), 3), simplejpeg.decode_jpeg(jpeg()))
