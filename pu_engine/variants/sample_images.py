"""Which gathered images int8 is calibrated on, and which its candidates are compared on: disjoint, evenly spaced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pu_engine.imaging.preprocessing import model_input
from pu_engine.training.batches import Part, load_part
from pu_engine.types import Preprocessing

CALIBRATION_IMAGES = 512
VALIDATION_IMAGES = 512
FEW_PICKED = 128  # with fewer the labelled images help out


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """Rows of gathered parts; images are read from disk batch by batch."""

    parts: tuple[Part, ...]
    rows: NDArray[np.int64]  # counted over the parts, one after the other
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int) -> Iterator[NDArray[np.float32]]:
        """Input tensors [<= size, C, S, S], always in the same order."""
        for start in range(0, len(self.rows), size):
            images = np.stack([self._row(row)[0] for row in self.rows[start : start + size]])
            yield np.asarray(model_input(images, self.preprocessing), np.float32)

    def teacher_answers(self) -> NDArray[np.int64]:
        """The class that the teacher names for each image."""
        return np.array([self._row(row)[1].argmax() for row in self.rows], np.int64)

    def _row(self, row: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        for part in self.parts:
            if row < len(part):
                return part.images[row], part.targets[row, 0]
            row -= len(part)
        raise IndexError(f"row {row} lies beyond the gathered images")


def calibration_and_validation(gathering: Path, preprocessing: Preprocessing) -> tuple[Sample, Sample]:
    """Two samples of the picked images, and of the labelled ones where few were picked.

    Both are the whole where there is only one image.
    """
    picked = load_part(gathering, "picked", labelled=False)
    parts = (picked,) if len(picked) >= FEW_PICKED else (picked, load_part(gathering, "labelled", labelled=True))
    count = sum(len(part) for part in parts)
    even, odd = np.arange(0, count, 2), np.arange(1 if count > 1 else 0, count, 2)
    return (
        Sample(parts=parts, rows=_spaced(even, CALIBRATION_IMAGES), preprocessing=preprocessing),
        Sample(parts=parts, rows=_spaced(odd, VALIDATION_IMAGES), preprocessing=preprocessing),
    )


def parts_without(sample: Sample, labelled: Part, picked: Part) -> tuple[Part, Part]:
    """Labelled and picked part without a sample's rows: its picked images are never drawn, its labelled ones left out.

    A part of which nothing remains comes back empty.
    """
    weights = np.ones(len(picked), np.float32) if picked.weights is None else picked.weights.astype(np.float32)
    weights[sample.rows[sample.rows < len(picked)]] = 0.0
    kept = np.ones(len(labelled), np.bool_)
    kept[sample.rows[sample.rows >= len(picked)] - len(picked)] = False
    if not kept.all():
        labelled = replace(
            labelled, images=labelled.images[kept], targets=labelled.targets[kept], labels=labelled.labels[kept]
        )
    if not weights.any():
        return labelled, replace(picked, images=picked.images[:0], targets=picked.targets[:0], weights=None)
    return labelled, replace(picked, weights=weights)


def _spaced(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(np.int64)
    return np.asarray(rows[places], np.int64)
