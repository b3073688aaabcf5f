"""Reading a pool back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pu_engine.errors import EngineError
from pu_engine.pools.pool import open_pool
from pu_engine.types import Folder

MakePool = Callable[..., Folder]
MakeJpeg = Callable[..., bytes]
IMAGES = 12


@pytest.fixture
def folder(tmp_path: Path, make_pool: MakePool, make_jpeg: MakeJpeg) -> Folder:
    """Twelve good images with a bad one among them, five a shard."""
    members = {f"{i:02d}.jpg": make_jpeg(i) for i in range(IMAGES)}
    return make_pool(tmp_path, dict(list(members.items())[:3]) | {"bad.jpg": b"no"} | members)


def refused(folder: Folder) -> str:
    with pytest.raises(EngineError) as caught:
        list(open_pool(folder).read(range(IMAGES)))
    assert caught.value.code == "POOL_INVALID"
    return caught.value.message


def test_rows_are_the_good_images(folder: Folder) -> None:
    reader = open_pool(folder)
    assert reader.pool.bad_images == 1
    assert reader.keys == tuple(f"{i:02d}" for i in range(IMAGES))
    assert [reader.rows(s.name) for s in reader.pool.shards] == [range(5), range(5, 10), range(10, 12)]


def test_rows_are_found_by_the_bytes_they_hold(folder: Folder, make_jpeg: MakeJpeg) -> None:
    wanted = [hashlib.sha256(data).hexdigest() for data in (make_jpeg(2), make_jpeg(11), b"elsewhere")]
    reader = open_pool(folder)
    assert np.flatnonzero(reader.holds(wanted)).tolist() == [2, 11]
    assert not reader.holds([]).any()


def test_scan_follows_the_index(folder: Folder, make_jpeg: MakeJpeg) -> None:
    reader = open_pool(folder)
    found = [item for shard in reader.pool.shards for item in reader.scan(shard.name)]
    assert found == [(i, f"{i:02d}", make_jpeg(i)) for i in range(IMAGES)]


def test_read_goes_forwards_whatever_was_asked(folder: Folder, make_jpeg: MakeJpeg) -> None:
    found = list(open_pool(folder).read([11, 0, 7, 5]))
    assert found == [(row, make_jpeg(row)) for row in (0, 5, 7, 11)]
    assert list(open_pool(folder).read([])) == []


@pytest.mark.parametrize("rows", [[-1], [0, IMAGES]])
def test_rows_outside_are_a_mistake(folder: Folder, rows: list[int]) -> None:
    with pytest.raises(ValueError, match="rows are 0 to 11"):
        list(open_pool(folder).read(rows))


def test_another_pool_json_is_refused(folder: Folder) -> None:
    assert "pool.json" in refused(Folder(path=folder.path, sha256="0" * 64))


@pytest.mark.parametrize("name", ["pool.json", "shard-00001.arrow", "shard-00001.tar"])
def test_missing_file_is_named(folder: Folder, name: str) -> None:
    (Path(folder.path) / name).unlink()
    assert name in refused(folder)


def test_changed_index_is_refused(folder: Folder) -> None:
    path = Path(folder.path) / "shard-00000.arrow"
    path.write_bytes(path.read_bytes() + b"\0")
    assert "shard-00000.arrow" in refused(folder)


def test_changed_image_is_named(folder: Folder, make_jpeg: MakeJpeg) -> None:
    path = Path(folder.path) / "shard-00001.tar"
    path.write_bytes(path.read_bytes().replace(make_jpeg(7)[-40:], b"\0" * 40))
    assert "'07'" in refused(folder)


def test_cut_shard_is_noticed(folder: Folder) -> None:
    path = Path(folder.path) / "shard-00002.tar"
    path.write_bytes(path.read_bytes()[:700])
    assert "'10'" in refused(folder)
