"""Reading a finished scoring: the teacher's logits and features of the pool, in chunks of bounded memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pu_engine.errors import EngineError
from pu_engine.jsonform import from_json
from pu_engine.results import load
from pu_engine.scores.score_types import Scores
from pu_engine.scoring import LABELLED, features_path, logits_path
from pu_engine.types import LabelledEntry

# Of one row as float64; a few such chunks are held at a time.
CHUNK_BYTES = 32 * 2**20
CLEAN_VIEW = 0

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreFiles:
    """One scoring with the rows of its labelled images that may be used as positives."""

    folder: Path
    scores: Scores
    positive_rows: tuple[int, ...]  # of the labelled files: not held out
    positive_classes: tuple[int, ...]  # the teacher's output index of each
    held_out_digests: tuple[str, ...]  # sha256 of the held-out images

    @property
    def matched_view(self) -> int:
        """The view that looks most like the labelled images' files: the last one."""
        return len(self.scores.views) - 1

    @property
    def last_tap_width(self) -> int:
        """Columns at the end of the taps that are the last one's; the logits stand in for missing taps."""
        return self.scores.taps[-1].width if self.scores.taps else self.scores.classes

    def pool_logits(self) -> Iterator[Array]:
        """Logits of image and mirror, chunks [n, 2, K] in pool order."""
        for shard in self.scores.shards:
            yield from _chunks(np.load(logits_path(self.folder, shard), mmap_mode="r"))

    @property
    def taps_width(self) -> int:
        """Columns at the start of the features that are the taps' own; their spreads follow."""
        return sum(tap.width for tap in self.scores.taps) or self.scores.classes

    def pool_features(self, view: int) -> Iterator[Array]:
        """The taps of one view without their spreads, chunks [n, T] in pool order."""
        return (features[:, : self.taps_width] for features, _ in self.pool_rows(view))

    def pool_rows(self, view: int) -> Iterator[tuple[Array, Array]]:
        """All features of one view [n, D] with the logits of image and mirror [n, 2, K], chunks in pool order."""
        for shard in self.scores.shards:
            yield from self._rows(shard, view)

    def positive_features(self, view: int) -> Array:
        """The taps of the positives without their spreads, [P, T]."""
        return self.positive_rows_of(view)[0][:, : self.taps_width]

    def positive_rows_of(self, view: int) -> tuple[Array, Array]:
        """All features [P, D] and logits [P, 2, K] of the positives."""
        rows = list(self.positive_rows)
        logits = np.asarray(np.load(logits_path(self.folder, LABELLED), mmap_mode="r")[rows], dtype=np.float32)
        if not self.scores.taps:
            return logits.mean(axis=1), logits
        features = np.load(features_path(self.folder, LABELLED), mmap_mode="r")
        return np.asarray(features[rows, view], dtype=np.float32), logits

    def _rows(self, shard: str, view: int) -> Iterator[tuple[Array, Array]]:
        logits = np.load(logits_path(self.folder, shard), mmap_mode="r")
        if not self.scores.taps:
            yield from ((chunk.mean(axis=1), chunk) for chunk in _chunks(logits))
            return
        features = np.load(features_path(self.folder, shard), mmap_mode="r")[:, view]
        start = 0
        for chunk in _chunks(features):
            stop = start + len(chunk)
            yield chunk, np.asarray(logits[start:stop], dtype=np.float32)
            start = stop


def open_score_files(intake: Path, scoring: Path) -> ScoreFiles:
    """The scoring of one intake's teacher.

    Raises:
        EngineError: STAGE_PROTOCOL where the two do not belong together; IMAGES_MISSING where all labelled images
            are held out.
    """
    scores = load(Scores, scoring)
    rows = json.loads((intake / "labelled.json").read_text())
    entries = [from_json(LabelledEntry, row) for row in rows]
    if len(entries) != scores.labelled:
        raise EngineError(
            "STAGE_PROTOCOL",
            f"Intake read {len(entries)} labelled images, scoring {scores.labelled}.",
            "Run the job again from intake.",
        )
    used = tuple(i for i, entry in enumerate(entries) if not entry.held_out)
    if not used:
        raise EngineError(
            "IMAGES_MISSING",
            f"All {len(entries)} labelled images are held out for the verdict; selection needs at least 1 more.",
            "Give more labelled images, 20 a class or more.",
            labelled=len(entries),
        )
    return ScoreFiles(
        folder=scoring,
        scores=scores,
        positive_rows=used,
        positive_classes=tuple(entries[i].index for i in used),
        held_out_digests=tuple(entry.sha256 for entry in entries if entry.held_out),
    )


def _chunks(array: NDArray[np.floating]) -> Iterator[Array]:
    width = int(np.prod(array.shape[1:])) * np.dtype(np.float64).itemsize
    rows = max(1, CHUNK_BYTES // max(width, 1))
    for start in range(0, len(array), rows):
        yield np.asarray(array[start : start + rows], dtype=np.float32)
