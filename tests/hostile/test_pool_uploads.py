"""Tars made to hurt an ingest: each image is handled or recorded as bad with its reason, and the good ones stay."""

from __future__ import annotations

import io
import random
import struct
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pu_engine import ingest, pool_page
from pu_engine.errors import EngineError
from pu_engine.pools.pool import open_pool, pool_folder
from pu_engine.pools.pool_index import read_index
from pu_engine.pools.pool_types import IngestInputs, PoolPageInputs
from pu_engine.progress import SilentProgress
from pu_engine.results import file_sha256
from pu_engine.types import File

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def rgb() -> Image.Image:
    return Image.fromarray(PIXELS)


def good() -> bytes:
    return encoded(rgb(), "JPEG")


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(rgb(), "JPEG", exif=exif)


def animated(form: str) -> bytes:
    frames = [Image.fromarray(np.roll(PIXELS, shift, 0)) for shift in range(3)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:])


def png_claiming(side: int) -> bytes:
    data = bytearray(encoded(rgb(), "PNG"))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def write_members(path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]]) -> File:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return File(path=str(path), sha256=file_sha256(path))


def rows_of(out: Path, tar: File) -> dict[str, dict[str, Any]]:
    out.mkdir(exist_ok=True)
    ingest.run(IngestInputs(name="hostile", tars=(tar,), threads=2), out, SilentProgress())
    return {row["key"]: row for path in sorted(out.glob("*.arrow")) for row in read_index(path).to_pylist()}


def outcome(out: Path, tar: Path) -> str:
    """ "pool" where every bad image has its reason, or the error's code."""
    try:
        rows = rows_of(out, File(path=str(tar), sha256=file_sha256(tar)))
    except EngineError as error:
        return error.code
    return "pool" if all(row["reason"] for row in rows.values() if row["status"] == "bad") else "no reason"


HANDLED = {
    "cmyk": (encoded(rgb().convert("CMYK"), "JPEG"), (24, 16)),
    "gray": (encoded(rgb().convert("L"), "JPEG"), (24, 16)),
    "sixteen": (encoded(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), "PNG"), (24, 16)),
    "palette": (encoded(rgb().convert("P"), "PNG", transparency=0), (24, 16)),
    "rotated": (rotated(), (16, 24)),
    "animated-png": (animated("PNG"), (24, 16)),
    "progressive": (encoded(rgb(), "JPEG", progressive=True), (24, 16)),
    "one-pixel": (encoded(Image.new("RGB", (1, 1)), "PNG"), (1, 1)),
}
BAD = {
    "empty": (b"", "empty"),
    "truncated": (good()[:-40], "ends within a scan"),
    "header-only": (good()[:30], "JPEG is not taken"),
    "large": (png_claiming(7100), "pixels"),  # 50 megapixels
    "gif": (animated("GIF"), "neither JPEG nor PNG"),
    "webp": (animated("WEBP"), "neither JPEG nor PNG"),
    "text": (b"<html>404</html>", "neither JPEG nor PNG"),
    "damaged-png": (encoded(rgb(), "PNG")[:-60], "damaged"),
}


def test_each_image_is_handled_or_bad_with_its_reason(tmp_path: Path) -> None:
    members = {f"{name}.jpg": data for name, (data, _) in (HANDLED | BAD).items()}
    rows = rows_of(tmp_path / "out", write_members(tmp_path / "t.tar", members))
    for name, (_, size) in HANDLED.items():
        assert (rows[name]["status"], rows[name]["height"], rows[name]["width"]) == ("ok", *size), name
    for name, (_, reason) in BAD.items():
        assert rows[name]["status"] == "bad", name
        assert reason in rows[name]["reason"], name
        assert rows[name]["offset"] is None
    reader = open_pool(pool_folder(tmp_path / "out"))
    assert {data for _, data in reader.read(range(len(HANDLED)))} == {data for data, _ in HANDLED.values()}
    page = tmp_path / "page"
    page.mkdir()
    pool_page.run(PoolPageInputs(pool=pool_folder(tmp_path / "out")), page, SilentProgress())


def test_same_name_twice_gives_two_images(tmp_path: Path) -> None:
    tar = write_members(tmp_path / "t.tar", [("a.jpg", good()), ("a.jpg", encoded(rgb(), "PNG"))])
    assert sorted(rows_of(tmp_path / "out", tar)) == ["a", "a~2"]


@pytest.mark.parametrize("kept", [300, 700, 2000])
def test_cut_tar_is_refused_and_leaves_no_pool(tmp_path: Path, kept: int) -> None:
    whole = write_members(tmp_path / "t.tar", {f"{i}.jpg": good() for i in range(3)})
    Path(whole.path).write_bytes(Path(whole.path).read_bytes()[:kept])
    with pytest.raises(EngineError) as caught:
        rows_of(tmp_path / "out", File(path=whole.path, sha256=file_sha256(Path(whole.path))))
    assert caught.value.code == "ARCHIVE_REJECTED"
    assert not (tmp_path / "out" / "pool.json").exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), flips=st.integers(1, 40))
def test_flipped_bits_in_an_upload_cost_at_most_a_typed_error(tmp_path: Path, seed: int, flips: int) -> None:
    tar = write_members(tmp_path / "t.tar", {f"{i}.jpg": good() for i in range(2)} | {"x.png": encoded(rgb(), "PNG")})
    data, chance = bytearray(Path(tar.path).read_bytes()), random.Random(seed)
    for _ in range(flips):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    Path(tar.path).write_bytes(data)
    assert outcome(tmp_path / "out", Path(tar.path)) in ("pool", "ARCHIVE_REJECTED", "POOL_INVALID")
