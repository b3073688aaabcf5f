"""Stage: a page that shows a pool: a contact sheet, its sizes and formats, what is bad and what comes twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pu_engine.imaging.images import decode
from pu_engine.imaging.thumbnails import thumbnail
from pu_engine.jsonform import to_json
from pu_engine.pages.report_page import byte_size, template
from pu_engine.pools.pool import PoolReader, open_pool
from pu_engine.pools.pool_index import GOOD
from pu_engine.pools.pool_types import PoolPage, PoolPageInputs
from pu_engine.prefetch import prefetched
from pu_engine.progress import Progress
from pu_engine.results import write_atomic

PAGE, SUMMARY, TEMPLATE = "pool.html", "pool-summary.json", "pool.html"
SHOWN_IMAGES = 120
SHOWN_PAIRS = 12
SHOWN_REASONS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One image of the page; `source` is a data URI."""

    source: str
    key: str
    title: str


def run(inputs: PoolPageInputs, out: Path, progress: Progress) -> PoolPage:
    """Write `pool.html` and `pool-summary.json`; the same pool gives the same bytes.

    Raises:
        EngineError: POOL_INVALID.
    """
    reader = open_pool(inputs.pool)
    summary = describe(reader)
    rows = np.unique(np.linspace(0, reader.pool.images - 1, SHOWN_IMAGES).round().astype(np.int64))
    pairs = near_pairs(reader)
    wanted = np.unique(np.concatenate([rows, pairs.ravel()]))
    pictures: dict[int, Shown] = {}

    def show(item: tuple[int, bytes]) -> Shown:
        row, data = item
        pixels = decode(data, 3)
        title = f"{reader.keys[row]}, {pixels.shape[1]} x {pixels.shape[0]}, {byte_size(len(data))}"
        return Shown(source=thumbnail(pixels), key=reader.keys[row], title=title)

    for row, shown in zip(wanted.tolist(), prefetched(show, reader.read(wanted), inputs.threads), strict=True):
        pictures[row] = shown
        progress.update(len(pictures), len(wanted), "images")
    sheet = [pictures[row] for row in rows.tolist()]
    alike = [(pictures[first], pictures[second]) for first, second in pairs.tolist()]
    write_atomic(out / SUMMARY, json.dumps(summary, indent=1, sort_keys=True, allow_nan=False).encode())
    write_atomic(out / PAGE, render(summary, sheet, alike).encode())
    return PoolPage(images=reader.pool.images, shown=len(sheet))


def describe(reader: PoolReader) -> dict[str, Any]:
    """Counts and histograms of a pool, as `pool-summary.json` holds them."""
    pool = reader.pool
    good = reader.index.filter(pc.equal(reader.index["status"], GOOD))
    bad = reader.index.filter(pc.not_equal(reader.index["status"], GOOD))
    sides = pc.min_element_wise(good["width"], good["height"]).to_numpy()
    described = to_json(pool)
    return {
        **{name: value for name, value in described.items() if name != "shards"},
        "shards": len(pool.shards),
        "formats": _counts(good["format"]),
        "short_side_pixels": doubling_histogram(sides),
        "bytes": doubling_histogram(good["size"].to_numpy()),
        "bad_reasons": _counts(bad["reason"], SHOWN_REASONS),
    }


def doubling_histogram(values: NDArray[np.integer]) -> list[dict[str, int]]:
    """Counts between powers of two, `least` inclusive, `below` exclusive, from the smallest value's to the largest's.

    Args:
        values: [N], each at least 1.
    """
    if not len(values):
        return []
    exponents = np.frexp(values.astype(np.float64))[1] - 1
    first = int(exponents.min())
    counts = np.bincount(exponents - first)
    return [{"least": 2 ** (first + i), "below": 2 ** (first + i + 1), "count": int(n)} for i, n in enumerate(counts)]


def near_pairs(reader: PoolReader) -> NDArray[np.int64]:
    """Rows of up to SHOWN_PAIRS images with those that they look like, [n, 2], spread evenly over the pool."""
    good = reader.index.filter(pc.equal(reader.index["status"], GOOD))
    alike = np.flatnonzero(np.asarray(pc.is_valid(good["near_duplicate_of"])))
    if not len(alike):
        return np.empty((0, 2), np.int64)
    chosen = alike[np.unique(np.linspace(0, len(alike) - 1, SHOWN_PAIRS).round().astype(np.int64))]
    leaders = good["near_duplicate_of"].take(pa.array(chosen))
    firsts = pc.index_in(leaders, value_set=good["key"].combine_chunks()).to_numpy()
    return np.stack([firsts, chosen], axis=1).astype(np.int64)


def render(summary: dict[str, Any], sheet: Sequence[Shown], alike: Sequence[tuple[Shown, Shown]]) -> str:
    """The page: one file without scripts or anything from outside."""
    return template(TEMPLATE).render(pool=summary, sheet=sheet, alike=alike)


def _counts(column: pa.ChunkedArray, limit: int | None = None) -> list[dict[str, Any]]:
    """Values with how often they come, the commonest first, then by name."""
    found = [(row["values"], row["counts"]) for row in pc.value_counts(column).to_pylist()]
    ordered = sorted(found, key=lambda item: (-item[1], item[0]))
    return [{"value": value, "count": count} for value, count in ordered[:limit]]
