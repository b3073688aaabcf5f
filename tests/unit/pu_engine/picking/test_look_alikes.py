"""Groups of look-alikes, and images that must not be picked."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pu_engine.errors import EngineError
from pu_engine.picking.look_alikes import excluded_rows, surplus
from pu_engine.pools.pool import open_pool
from pu_engine.types import File, Folder

Pack = Callable[[Path, Mapping[str, bytes]], File]
MakeJpeg = Callable[..., bytes]


def test_only_the_best_of_each_group_stays() -> None:
    leaders = np.array([0, 1, 0, 1, 4, 0])
    score = np.array([1.0, 5.0, 3.0, 2.0, 0.0, 9.0])
    eligible = np.array([True, True, True, True, True, False])
    assert surplus(leaders, score, eligible).tolist() == [True, False, False, True, False, False]


def test_of_equally_good_ones_the_first_stays() -> None:
    assert surplus(np.zeros(3, np.int64), np.ones(3), np.ones(3, np.bool_)).tolist() == [False, True, True]


def again(data: bytes) -> bytes:
    """The image, saved once more at another size."""
    image = Image.open(io.BytesIO(data))
    made = io.BytesIO()
    image.resize((image.width * 3 // 4, image.height * 3 // 4)).save(made, "JPEG", quality=80)
    return made.getvalue()


@pytest.fixture
def members(make_jpeg: MakeJpeg) -> dict[str, bytes]:
    return {f"{i}.jpg": make_jpeg(seed=i, height=64, width=64) for i in range(6)}


def test_copies_and_what_looks_like_them_are_excluded(
    tmp_path: Path, members: dict[str, bytes], pack: Pack, make_pool: Callable[..., Folder]
) -> None:
    pool = open_pool(make_pool(tmp_path, members))
    tar = pack(tmp_path / "excluded.tar", {"test/a.jpg": members["1.jpg"], "test/b.jpg": again(members["4.jpg"])})
    assert np.flatnonzero(excluded_rows(tar, pool)).tolist() == [1, 4]


def test_a_broken_image_to_exclude_is_named(
    tmp_path: Path, members: dict[str, bytes], pack: Pack, make_pool: Callable[..., Folder]
) -> None:
    pool = open_pool(make_pool(tmp_path, members))
    with pytest.raises(EngineError, match=r"'test/a\.jpg' to exclude is not taken") as raised:
        excluded_rows(pack(tmp_path / "excluded.tar", {"test/a.jpg": b"no image"}), pool)
    assert raised.value.code == "IMAGE_REJECTED"


def test_leaders_are_found_through_what_ingest_recorded(
    tmp_path: Path, members: dict[str, bytes], make_pool: Callable[..., Folder]
) -> None:
    more = {**members, "copy.jpg": members["2.jpg"], "like.jpg": again(members["3.jpg"])}
    pool = open_pool(make_pool(tmp_path, more))
    rows = {key: row for row, key in enumerate(pool.keys)}
    expected = np.arange(8)
    expected[rows["copy"]], expected[rows["like"]] = rows["2"], rows["3"]
    assert pool.leaders().tolist() == expected.tolist()
