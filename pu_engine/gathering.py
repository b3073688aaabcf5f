"""Stage: the picked images, the labelled images and a parity set as frozen arrays at training size.

Pixels come from the original bytes by the one resize kernel, targets from the teacher's fp32 scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pu_engine.array_file import ArrayWriter
from pu_engine.imaging.images import Pixels, decode_resized
from pu_engine.imaging.preprocessing import image_channels
from pu_engine.jsonform import from_json
from pu_engine.pools.pool import PoolReader, open_pool
from pu_engine.prefetch import prefetched
from pu_engine.progress import Progress
from pu_engine.results import load, write_atomic
from pu_engine.scores.target_logits import labelled_data, mismatch, open_targets
from pu_engine.scoring import batches
from pu_engine.training.view_bank import write_banks
from pu_engine.types import GatheringInputs, LabelledEntry, Teacher, TrainingSet

PARITY_IMAGES = 256
BATCH_IMAGES = 64


def run(inputs: GatheringInputs, out: Path, progress: Progress) -> TrainingSet:
    """Write the four parts; a repeated run overwrites them with the same bytes.

    Raises:
        EngineError: POOL_INVALID, IMAGE_REJECTED, and STAGE_PROTOCOL where the stages' rows do not fit together.
    """
    teacher = load(Teacher, inputs.intake.path)
    pool = open_pool(inputs.pool)
    size = inputs.size or max(teacher.preprocessing.height, teacher.preprocessing.width)
    channels = image_channels(teacher.preprocessing)
    entries = _labelled_entries(Path(inputs.intake.path))
    targets = open_targets(inputs, pool, entries)
    picked, weights = _picked_rows(Path(inputs.selection.path) / "selection.parquet", pool)
    parity = parity_rows(picked, pool.pool.images, inputs.seed)
    total = len(entries) + picked.size + parity.size
    writer = _PartWriter(
        out, (size, size, channels), teacher.preprocessing.fit, workers=inputs.threads, total=total, progress=progress
    )
    for part, rows in (("picked", picked), ("parity", parity)):
        writer.write(part, rows.size, (data for _, data in pool.read(rows)))
        _write_targets(out, part, (rows.size, teacher.classes), targets.of_pool(rows))
    np.save(out / "picked.weights.npy", weights)
    write_atomic(out / "picked.keys.json", json.dumps([pool.keys[row] for row in picked], indent=0).encode())

    for part, held_out in (("labelled", False), ("held_out", True)):
        kept = np.array([i for i, entry in enumerate(entries) if entry.held_out == held_out], np.int64)
        writer.write(part, kept.size, labelled_data(inputs, entries, held_out))
        _write_targets(out, part, (kept.size, teacher.classes), targets.of_labelled(held_out))
        np.save(out / f"{part}.labels.npy", np.array([entries[i].index for i in kept], np.int64))
    if inputs.targets == "views":
        write_banks(inputs, out, teacher, progress)
    held_out_count = sum(entry.held_out for entry in entries)
    return TrainingSet(
        size=size,
        fit=teacher.preprocessing.fit,
        channels=channels,
        classes=teacher.classes,
        labelled=len(entries) - held_out_count,
        picked=picked.size,
        held_out=held_out_count,
        parity=parity.size,
        parity_unpicked=int(np.isin(parity, picked, invert=True).sum()),
    )


def parity_rows(picked: NDArray[np.int64], pool_images: int, seed: int) -> NDArray[np.int64]:
    """Up to 256 pool rows drawn by seed, ascending: unpicked ones, filled up with picked ones where they run out.

    Args:
        picked: [n] rows of the selection.
        pool_images: rows of the pool.
    """
    generator = np.random.default_rng(seed)
    unpicked = np.setdiff1d(np.arange(pool_images), picked)
    drawn = generator.permutation(unpicked)[:PARITY_IMAGES]
    filling = generator.permutation(picked)[: PARITY_IMAGES - len(drawn)]
    return np.sort(np.concatenate([drawn, filling])).astype(np.int64)


class _PartWriter:
    """Writes the images of one part after another, with one progress over all."""

    def __init__(
        self, out: Path, shape: tuple[int, int, int], fit: str, *, workers: int, total: int, progress: Progress
    ) -> None:
        self._out = out
        self._shape = shape
        self._fit = fit
        self._workers = workers
        self._progress = progress
        self._done, self._total = 0, total

    def write(self, part: str, count: int, data: Iterator[bytes]) -> None:
        """Decode `count` images into `<part>.images.npy`, [count, size, size, channels] uint8."""
        with ArrayWriter(self._out / f"{part}.images.npy", (count, *self._shape), np.uint8) as file:
            for images in prefetched(self._decode, batches(data, BATCH_IMAGES), self._workers):
                file.append(images)
                self._done += len(images)
                self._progress.update(self._done, self._total, "images")

    def _decode(self, batch: list[bytes]) -> Pixels:
        return np.stack([decode_resized(data, *self._shape, self._fit) for data in batch])


def _labelled_entries(intake: Path) -> tuple[LabelledEntry, ...]:
    rows = json.loads((intake / "labelled.json").read_text())
    return tuple(from_json(LabelledEntry, row) for row in rows)


def _picked_rows(path: Path, pool: PoolReader) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows of the pool that the selection picked, ascending, and how often each is drawn in training."""
    table = pq.read_table(path, columns=["key", "picked", "weight"])
    if tuple(table["key"].to_pylist()) != pool.keys:
        raise mismatch("the selection's keys are not the pool's")
    rows = np.flatnonzero(table["picked"].to_numpy()).astype(np.int64)
    return rows, table["weight"].to_numpy()[rows].astype(np.float32)


def _write_targets(out: Path, part: str, shape: tuple[int, int], chunks: Iterator[NDArray[np.float32]]) -> None:
    """Write `<part>.targets.npy` from chunks [n, 2, K]; `shape` is all rows and K."""
    rows, classes = shape
    with ArrayWriter(out / f"{part}.targets.npy", (rows, 2, classes), np.float32) as file:
        for chunk in chunks:
            file.append(chunk)
