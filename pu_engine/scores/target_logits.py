"""The teacher's fp32 logits that the student learns from: as scored or, after a scoring in int8, made now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pu_engine.errors import EngineError
from pu_engine.imaging import labelled
from pu_engine.pools.pool import PoolReader
from pu_engine.prefetch import prefetched
from pu_engine.results import load
from pu_engine.scores.score_types import INT8, Scores
from pu_engine.scores.scorer import Scorer, open_scorer
from pu_engine.scoring import LABELLED, batches, logits_path
from pu_engine.types import GatheringInputs, LabelledEntry

CHUNK_ROWS = 512  # with 10,000 classes 40 MB

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetLogits:
    """The teacher's logits of image and mirror; `scorer` runs it again where the scoring was in int8."""

    inputs: GatheringInputs
    pool: PoolReader
    entries: tuple[LabelledEntry, ...]
    scorer: Scorer | None

    def of_pool(self, rows: NDArray[np.int64]) -> Iterator[Logits]:
        """Chunks [n, 2, K] of ascending pool rows."""
        if self.scorer is not None:
            yield from self._scored(self.scorer, (data for _, data in self.pool.read(rows)))
            return
        for shard in self.pool.pool.shards:
            span = self.pool.rows(shard.name)
            inside = rows[(rows >= span.start) & (rows < span.stop)]
            if inside.size:
                path = logits_path(Path(self.inputs.scoring.path), shard.name)
                yield from _in_chunks(np.load(path, mmap_mode="r"), inside - span.start)

    def of_labelled(self, held_out: bool) -> Iterator[Logits]:
        """Chunks [n, 2, K] of the labelled images on one side of the split, in reading order."""
        if self.scorer is not None:
            yield from self._scored(self.scorer, labelled_data(self.inputs, self.entries, held_out))
            return
        kept = np.array([i for i, entry in enumerate(self.entries) if entry.held_out == held_out], np.int64)
        path = logits_path(Path(self.inputs.scoring.path), LABELLED)
        yield from _in_chunks(np.load(path, mmap_mode="r"), kept)

    def _scored(self, scorer: Scorer, images: Iterator[bytes]) -> Iterator[Logits]:
        def logits(batch: list[bytes]) -> Logits:
            return scorer.score(batch, labelled=True)[0]

        yield from prefetched(logits, batches(images, scorer.batch), self.inputs.threads)


def open_targets(inputs: GatheringInputs, pool: PoolReader, entries: tuple[LabelledEntry, ...]) -> TargetLogits:
    """The targets of one scoring.

    Raises:
        EngineError: STAGE_PROTOCOL where the scoring is of another pool or of other labelled images.
    """
    scores = load(Scores, inputs.scoring.path)
    if scores.images != pool.pool.images:
        raise mismatch("the scores are of another pool")
    if scores.labelled != len(entries):
        raise mismatch(f"{scores.labelled} labelled images were scored, {len(entries)} were read by intake")
    scorer = open_scorer(inputs.intake, scores.provider, None) if scores.precision == INT8 else None
    return TargetLogits(inputs=inputs, pool=pool, entries=entries, scorer=scorer)


def labelled_data(inputs: GatheringInputs, entries: tuple[LabelledEntry, ...], held_out: bool) -> Iterator[bytes]:
    """Bytes of the labelled images on one side of the split, in reading order; raises EngineError STAGE_PROTOCOL."""
    for image, entry in zip(labelled.read(inputs.images), entries, strict=True):
        if image.key != entry.key:
            raise mismatch(f"labelled image {image.key!r} comes where intake read {entry.key!r}")
        if entry.held_out == held_out:
            yield image.data


def mismatch(message: str) -> EngineError:
    """The error of stages that do not belong together."""
    return EngineError(
        "STAGE_PROTOCOL",
        f"Stages do not fit together: {message}.",
        "Run the job again from intake.",
    )


def _in_chunks(array: Logits, rows: NDArray[np.int64]) -> Iterator[Logits]:
    for start in range(0, rows.size, CHUNK_ROWS):
        yield array[rows[start : start + CHUNK_ROWS]]
