"""Stage: the teacher on every pool image and labelled image, shard by shard.

The clean view gives logits and features; the matched view (the image as the labelled images' JPEG would show it)
gives features only, because it ruins the teacher's own scores; photographs much larger than the teacher's input
have none. A shard whose files are whole is not scored again, nor one that an earlier scoring of the same teacher has.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

import numpy as np
from numpy.typing import NDArray

from pu_engine.array_file import ArrayWriter, is_whole
from pu_engine.errors import EngineError
from pu_engine.imaging import labelled
from pu_engine.imaging.images import decode, jpeg_quality
from pu_engine.jsonform import from_json
from pu_engine.pools.pool import open_pool
from pu_engine.pools.pool_types import Pool, Shard
from pu_engine.prefetch import prefetched
from pu_engine.progress import Progress
from pu_engine.results import file_sha256, load
from pu_engine.runtime.providers import choose_provider
from pu_engine.scores.int8_copy import INT8_MODEL
from pu_engine.scores.precision import Task, settle
from pu_engine.scores.score_types import INT8, Scores, ScoringInputs
from pu_engine.scores.scorer import TAPPED_MODEL, MatchedJpeg, Scorer, open_scorer
from pu_engine.scores.shard_reuse import EarlierScoring, copy_verified, read_earlier, shard_keys
from pu_engine.types import Folder, LabelledEntry, LabelledImages, Teacher

LABELLED = "labelled"
COMPILED = ".compiled"  # what a provider made of the model; hidden files are scratch
BATCH_BYTES = 16 * 2**20  # several batches wait in memory; photographs have megabytes each
# JPEG's blocks of 8 pixels become smaller than 4 beyond it, and the resize averages their traces away: an image
# encoded anew at the teacher's size would then have artefacts that no labelled one shows.
MOST_SHRINKING = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledJpeg:
    """What a labelled image's file says of it; `side` is the longer one in pixels."""

    quality: int
    chroma: str
    side: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What is scored into files of its own: the labelled images, or a shard, whose scores its key names."""

    name: str
    images: int
    key: str = ""


@dataclass(slots=True)
class _Counts:
    """Images by where their scores come from."""

    scored: int = 0
    taken_over: int = 0


def run(inputs: ScoringInputs, out: Path, progress: Progress) -> Scores:
    """Score the labelled images, then the pool's shards in order; a part of a scoring, the shards that it names.

    Raises:
        EngineError: POOL_INVALID, IMAGE_REJECTED, MODEL_NONFINITE, STAGE_PROTOCOL.
    """
    pool = open_pool(inputs.pool)
    count, matched = survey(inputs.images, inputs.intake)
    provider = choose_provider(inputs.provider)
    for text in provider.warnings:
        progress.warn(text)
    earlier = read_earlier(inputs.kept)
    shards = chosen_shards(pool.pool, inputs.only)
    scorer = open_scorer(inputs.intake, provider.name, matched, cache=out / COMPILED)
    task = Task(inputs=inputs, pool=pool, entries=_entries(inputs.intake), matched=matched)
    precision = settle(task, scorer, earlier, out, progress)
    teacher = model = file_sha256(Path(inputs.intake.path) / TAPPED_MODEL)
    if precision.name == INT8:
        scorer = open_scorer(inputs.intake, provider.name, matched, model=out / INT8_MODEL)
        model = file_sha256(out / INT8_MODEL)
    keys = shard_keys(scorer, shards, teacher=teacher, model=model)
    parts = [Part(name=s.name, images=s.entries, key=key) for s, key in zip(shards, keys, strict=True)]
    if inputs.only is None:
        parts.insert(0, Part(name=LABELLED, images=count))

    started = time.monotonic()
    counts = _score_all(task, out, progress, scorer=scorer, parts=parts, earlier=earlier)
    seconds = time.monotonic() - started
    return Scores(
        shards=tuple(shard.name for shard in shards),
        shard_keys=keys,
        images=sum(shard.entries for shard in shards),
        labelled=count if inputs.only is None else 0,
        classes=scorer.teacher.classes,
        views=scorer.views,
        taps=scorer.teacher.taps,
        provider=provider.name,
        precision=precision.name,
        precision_why=precision,
        images_per_second=counts.scored / seconds if counts.scored else 0.0,
        taken_over=counts.taken_over,
        matched_quality=matched.quality if matched else None,
        matched_chroma=matched.chroma if matched else None,
        warnings=provider.warnings,
    )


def chosen_shards(pool: Pool, only: tuple[str, ...] | None) -> list[Shard]:
    """The shards to score, in the pool's order; raises EngineError STAGE_PROTOCOL for a name that the pool lacks."""
    unknown = set(only or ()) - {shard.name for shard in pool.shards}
    if unknown:
        raise EngineError(
            "STAGE_PROTOCOL",
            f"The pool {pool.name!r} has no shard {min(unknown)!r}.",
            "Run the job again from its start.",
        )
    return [shard for shard in pool.shards if only is None or shard.name in only]


def _score_all(
    task: Task,
    out: Path,
    progress: Progress,
    *,
    scorer: Scorer,
    parts: Sequence[Part],
    earlier: Sequence[EarlierScoring],
) -> _Counts:
    """Each part in order: as it is, taken over, or scored."""
    counts = _Counts()
    done, total = 0, sum(part.images for part in parts)
    for part in parts:
        name, rows = part.name, part.images
        if _is_scored(out, name, rows, scorer):
            done += rows
            continue
        if part.key and _take_over(out, name, part.key, earlier) and _is_scored(out, name, rows, scorer):
            done, counts.taken_over = done + rows, counts.taken_over + rows
            progress.update(done, total, "images")
            continue
        if name == LABELLED:
            images: Iterator[bytes] = (image.data for image in labelled.read(task.inputs.images))
        else:
            images = (data for _, _, data in task.pool.scan(name))
        for finished in _score_part(out, name, rows, images, scorer=scorer, workers=task.inputs.threads):
            counts.scored += finished
            done += finished
            progress.update(done, total, "images")
    progress.update(total, total, "images")
    return counts


def survey(images: LabelledImages, intake: Folder) -> tuple[int, MatchedJpeg | None]:
    """How many labelled images there are, and the usual JPEG of those that are not held out.

    Every image is decoded once, for intake looks at a few only: a damaged one is named before hours of scoring.

    Raises:
        EngineError: IMAGE_REJECTED, naming the image, and as `labelled.read`.
    """
    entries = json.loads((Path(intake.path) / "labelled.json").read_text())
    held_out = {entry["key"] for entry in entries if entry["held_out"]}
    count, looked_at = 0, 0
    found: list[LabelledJpeg] = []
    for image in labelled.read(images):
        count += 1
        try:
            jpeg = jpeg_quality(image.data)
            height, width, _ = decode(image.data, channels=3).shape
        except EngineError as error:
            message = f"Labelled image {image.key!r} is not taken. {error.message}"
            raise EngineError(error.code, message, error.remedy, key=image.key) from error
        if image.key in held_out:
            continue
        looked_at += 1
        if jpeg is not None:
            found.append(LabelledJpeg(quality=jpeg[0], chroma=jpeg[1], side=max(height, width)))
    teacher = load(Teacher, intake.path).preprocessing
    return count, usual_jpeg(found, looked_at, max(teacher.height, teacher.width))


def usual_jpeg(found: Sequence[LabelledJpeg], images: int, teacher_side: int) -> MatchedJpeg | None:
    """Median quality and commonest chroma; None where no matched view is to be made.

    That is where at most half of the images are JPEG, and where they are shrunk so much that no trace of their
    JPEG is left to match.

    Args:
        images: the labelled images that the JPEGs are among.
        teacher_side: in pixels.
    """
    if 2 * len(found) <= images or median_low([jpeg.side for jpeg in found]) > MOST_SHRINKING * teacher_side:
        return None
    chromas = Counter(jpeg.chroma for jpeg in found)
    commonest = min(chromas, key=lambda chroma: (-chromas[chroma], chroma))
    return MatchedJpeg(quality=median_low([jpeg.quality for jpeg in found]), chroma=commonest)


def logits_path(folder: Path, name: str) -> Path:
    """`<name>.logits.npy` of a finished scoring."""
    return folder / f"{name}.logits.npy"


def features_path(folder: Path, name: str) -> Path:
    """`<name>.features.npy` of a finished scoring."""
    return folder / f"{name}.features.npy"


def _entries(intake: Folder) -> tuple[LabelledEntry, ...]:
    rows = json.loads((Path(intake.path) / "labelled.json").read_text())
    return tuple(from_json(LabelledEntry, row) for row in rows)


def _take_over(out: Path, name: str, key: str, earlier: Sequence[EarlierScoring]) -> bool:
    """Copy a shard's files from the first earlier scoring that has them as its manifest says."""
    for scoring in earlier:
        source = scoring.name_of(key)
        if source is None:
            continue
        pairs = [(f(Path(), source).name, f(out, name)) for f in (logits_path, features_path)]
        if all(copy_verified(scoring, file, target) for file, target in pairs):
            return True
    return False


def _shapes(rows: int, scorer: Scorer) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Shapes of one part's logits and features."""
    return (rows, 2, scorer.teacher.classes), (rows, len(scorer.views), scorer.width)


def _is_scored(out: Path, name: str, rows: int, scorer: Scorer) -> bool:
    logits, features = _shapes(rows, scorer)
    return is_whole(logits_path(out, name), logits, np.float32) and is_whole(
        features_path(out, name), features, np.float16
    )


def _score_part(
    out: Path, name: str, rows: int, images: Iterator[bytes], *, scorer: Scorer, workers: int
) -> Iterator[int]:
    """Write one part's files, and say after each batch how many images it had."""
    logits_shape, features_shape = _shapes(rows, scorer)

    def score(batch: list[bytes]) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        return scorer.score(batch, labelled=name == LABELLED)

    with (
        ArrayWriter(logits_path(out, name), logits_shape, np.float32) as logits_file,
        ArrayWriter(features_path(out, name), features_shape, np.float16) as features_file,
    ):
        for logits, features in prefetched(score, batches(images, scorer.batch), workers):
            logits_file.append(logits)
            features_file.append(features)
            yield len(logits)


def batches(images: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """Lists of at most `size` encoded images in order, cut earlier where they are large.

    The cut depends on the images alone, so that a repeated run has the same batches.
    """
    batch: list[bytes] = []
    held = 0
    for data in images:
        if len(batch) == size or (batch and held + len(data) > BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(data)
        held += len(data)
    if batch:
        yield batch
