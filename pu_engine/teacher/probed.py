"""What a teacher said of the labelled images that its conventions were tested on: rows and logits beside each other."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pu_engine.jsonform import from_json, to_json
from pu_engine.results import write_atomic
from pu_engine.teacher.labels import ClassOrder
from pu_engine.teacher.probe import Catalogue

ROWS, LOGITS = "probed.json", "probed.logits.npy"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedImage:
    """One row of `probed.json`."""

    key: str
    label: str
    index: int  # the teacher's output index


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probed:
    """Images that are not held out, with the teacher's logits [n, K] float32 under the preprocessing found."""

    rows: tuple[ProbedImage, ...]
    logits: NDArray[np.float32]


def write(out: Path, found: Catalogue, chosen: Sequence[int], scores: NDArray[np.floating], order: ClassOrder) -> None:
    """Keep the scores [n, K] of the chosen images."""
    rows = [ProbedImage(key=found.keys[i], label=found.labels[i], index=order.index[found.labels[i]]) for i in chosen]
    write_atomic(out / ROWS, json.dumps([to_json(row) for row in rows], indent=1).encode())
    buffer = io.BytesIO()
    np.save(buffer, scores.astype(np.float32))
    write_atomic(out / LOGITS, buffer.getvalue())


def read(folder: Path) -> Probed:
    """What `write` kept in a finished intake."""
    rows = json.loads((folder / ROWS).read_text())
    return Probed(rows=tuple(from_json(ProbedImage, row) for row in rows), logits=np.load(folder / LOGITS))
