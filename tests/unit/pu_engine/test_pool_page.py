"""The page that shows a pool."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pu_engine import pool_page
from pu_engine.pool_page import doubling_histogram
from pu_engine.pools.pool_types import PoolPageInputs
from pu_engine.progress import SilentProgress
from pu_engine.types import Folder

MakePool = Callable[..., Folder]
MakeJpeg = Callable[..., bytes]


@pytest.fixture
def out(tmp_path: Path, make_pool: MakePool, make_jpeg: MakeJpeg) -> Path:
    members = {f"{i:02d}.jpg": make_jpeg(i, height=64, width=80) for i in range(6)}
    more = {"same.jpg": make_jpeg(1, height=64, width=80), "alike.jpg": make_jpeg(2, height=64, width=80, quality=85)}
    folder = make_pool(tmp_path, members | more | {"<b>.jpg": make_jpeg(9), "no.gif": b"GIF89a", "empty.png": b""})
    (tmp_path / "out").mkdir()
    for threads in (2, 1):
        pool_page.run(PoolPageInputs(pool=folder, threads=threads), tmp_path / "out", SilentProgress())
        (tmp_path / "out" / "pool.html").rename(tmp_path / "out" / f"{threads}.html")
    return tmp_path / "out"


def test_page_is_one_file_without_anything_from_outside(out: Path) -> None:
    page = (out / "1.html").read_text()
    assert page.count("<img") == 9 + 2  # the pool's images, and a pair that looks alike
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert "<b>" not in page.split('<div class="sheet">')[1].split("</div>")[0]


def test_page_does_not_depend_on_the_number_of_threads(out: Path) -> None:
    assert (out / "1.html").read_bytes() == (out / "2.html").read_bytes()


def test_summary_counts_what_the_index_holds(out: Path) -> None:
    summary = json.loads((out / "pool-summary.json").read_text())
    assert {k: summary[k] for k in ("images", "bad_images", "duplicates", "near_duplicates", "shards")} == {
        "images": 9,
        "bad_images": 2,
        "duplicates": 1,
        "near_duplicates": 1,
        "shards": 2,
    }
    assert summary["formats"] == [{"value": "jpeg", "count": 9}]
    assert summary["short_side_pixels"][0] == {"least": 8, "below": 16, "count": 1}
    assert summary["short_side_pixels"][-1] == {"least": 64, "below": 128, "count": 8}
    assert {row["value"] for row in summary["bad_reasons"]} == {
        "The file is empty.",
        "The image is neither JPEG nor PNG.",
    }


def test_histogram_doubles_from_bin_to_bin() -> None:
    assert doubling_histogram(np.array([1, 2, 3, 8])) == [
        {"least": 1, "below": 2, "count": 1},
        {"least": 2, "below": 4, "count": 2},
        {"least": 4, "below": 8, "count": 0},
        {"least": 8, "below": 16, "count": 1},
    ]
    assert doubling_histogram(np.array([], np.int64)) == []
