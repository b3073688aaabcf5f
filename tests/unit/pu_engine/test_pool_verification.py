"""A flipped bit is found, wherever it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pu_engine import pool_verification
from pu_engine.errors import EngineError
from pu_engine.pools.pool_types import PoolVerificationInputs
from pu_engine.progress import SilentProgress
from pu_engine.types import Folder

MakePool = Callable[..., Folder]
MakeJpeg = Callable[..., bytes]


@pytest.fixture
def folder(tmp_path: Path, make_pool: MakePool, make_jpeg: MakeJpeg) -> Folder:
    """Twelve images, five a shard, with a bad one among them."""
    return make_pool(tmp_path, {f"{i:02d}.jpg": make_jpeg(i) for i in range(12)} | {"bad.jpg": b"no"})


def verify(folder: Folder, out: Path) -> None:
    found = pool_verification.run(PoolVerificationInputs(pool=folder, threads=2), out, SilentProgress())
    assert (found.shards, found.images) == (3, 12)


def damage(folder: Folder, out: Path) -> str:
    with pytest.raises(EngineError) as caught:
        verify(folder, out)
    assert caught.value.code == "POOL_DAMAGED"
    return caught.value.message


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)


def test_whole_pool_is_verified(folder: Folder, tmp_path: Path) -> None:
    verify(folder, tmp_path)


def test_flipped_bit_of_an_image_names_its_shard_and_key(folder: Folder, tmp_path: Path, make_jpeg: MakeJpeg) -> None:
    shard = Path(folder.path) / "shard-00001.tar"
    flip(shard, 8 * (shard.read_bytes().index(make_jpeg(7)) + 30))
    assert "image '07' in shard-00001.tar" in damage(folder, tmp_path)


def test_flipped_bit_of_a_header_names_the_shard(folder: Folder, tmp_path: Path) -> None:
    flip(Path(folder.path) / "shard-00000.tar", 8)
    assert "shard-00000.tar differs from its sha256 (none of its images" in damage(folder, tmp_path)


def test_cut_shard_names_what_is_gone(folder: Folder, tmp_path: Path) -> None:
    shard = Path(folder.path) / "shard-00002.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    assert "image '10' in shard-00002.tar; image '11' in shard-00002.tar" in damage(folder, tmp_path)


def test_damaged_index_is_named_beside_a_damaged_shard(folder: Folder, tmp_path: Path) -> None:
    flip(Path(folder.path) / "shard-00001.arrow", 999)
    flip(Path(folder.path) / "shard-00001.tar", 9999)
    (Path(folder.path) / "shard-00002.tar").unlink()
    message = damage(folder, tmp_path)
    assert "shard-00001.arrow differs" in message
    assert "shard-00001.tar differs from its sha256 (its index can't say where)" in message
    assert "shard-00002.tar is missing" in message


def test_changed_pool_json_is_damage(folder: Folder, tmp_path: Path) -> None:
    flip(Path(folder.path) / "pool.json", 50)
    assert "pool.json" in damage(folder, tmp_path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_flipped_bit_is_missed(folder: Folder, tmp_path: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(p for p in Path(folder.path).iterdir() if p.name.startswith("shard"))))
    bit = data.draw(st.integers(0, 8 * path.stat().st_size - 1))
    flip(path, bit)
    assert path.name in damage(folder, tmp_path)
    flip(path, bit)
