"""In which precision the pool is scored: int8 only where a sample proves it, written down before the work.

The choice rests on a timing, so a rerun takes it from its file and never makes it again; a scoring whose shards an
earlier one has already takes that one's choice over, with its int8 copy, because its shards would not fit otherwise.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pu_engine.imaging import labelled
from pu_engine.imaging.preprocessing import model_input
from pu_engine.jsonform import from_json, to_json
from pu_engine.pools.pool import PoolReader
from pu_engine.prefetch import prefetched
from pu_engine.progress import Progress
from pu_engine.results import file_sha256, write_atomic
from pu_engine.scores import int8_copy
from pu_engine.scores.int8_copy import INT8_MODEL, Int8Unavailable
from pu_engine.scores.score_types import FP32, INT8, Int8Trial, Precision, ScoringInputs
from pu_engine.scores.scorer import TAPPED_MODEL, MatchedJpeg, Scorer, open_scorer
from pu_engine.scores.shard_reuse import EarlierScoring, copy_verified, read_earlier, shard_keys
from pu_engine.types import LabelledEntry

FILE = "precision.timing.json"
SCRATCH = ".int8"
LEAST_POOL = 10_000  # below, the trial would cost more than int8 saves
SAMPLE_SHARE, LEAST_SAMPLE, MOST_SAMPLE = 0.05, 512, 1024
CALIBRATION_IMAGES = 256  # half of them labelled
LABELLED_SAMPLE = 512
PICKED_SHARE = 0.2
# The fp32 targets of a fifth of the pool come on top, and must be won back.
LEAST_SPEEDUP = 1.5
LEAST_AGREEMENT, LEAST_JACCARD = 0.95, 0.90


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is scored, and how; `entries` are intake's rows of the labelled images."""

    inputs: ScoringInputs
    pool: PoolReader
    entries: tuple[LabelledEntry, ...]
    matched: MatchedJpeg | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outputs:
    """One network's logits [N, 2, K] and clean features of the last tap [N, D], and its seconds of CPU."""

    logits: NDArray[np.float32]
    features: NDArray[np.float32]
    seconds: float


def settle(task: Task, fp32: Scorer, earlier: Sequence[EarlierScoring], out: Path, progress: Progress) -> Precision:
    """The precision of this scoring, with `int8.onnx` in `out` where it is int8."""
    path = out / FILE
    if path.exists():
        return from_json(Precision, json.loads(path.read_text()))
    chosen = _settled(task, out) or _taken_over(task, fp32, earlier, out) or _tried(task, fp32, out, progress)
    if chosen.name == FP32:
        (out / INT8_MODEL).unlink(missing_ok=True)
    write_atomic(path, json.dumps(to_json(chosen), indent=1).encode())
    return chosen


def judge(trial: Int8Trial) -> Precision:
    """int8 where the trial holds every bar; the reason names the first that it misses."""
    bars = (
        (trial.speedup >= LEAST_SPEEDUP, f"it is only {trial.speedup:.2f} times as fast; {LEAST_SPEEDUP} are asked"),
        (
            trial.agreement >= LEAST_AGREEMENT,
            f"it gives fp32's class for {trial.agreement:.1%} of the images; {LEAST_AGREEMENT:.0%} are asked",
        ),
        (
            trial.jaccard >= LEAST_JACCARD,
            f"its picks overlap with fp32's by a Jaccard index of {trial.jaccard:.2f}; {LEAST_JACCARD:.2f} is asked",
        ),
    )
    for holds, why in bars:
        if not holds:
            return Precision(name=FP32, why=f"the int8 copy was tried on {trial.images} images: {why}", trial=trial)
    why = f"the int8 copy holds all bars on {trial.images} images of the pool"
    return Precision(name=INT8, why=why, trial=trial)


def _settled(task: Task, out: Path) -> Precision | None:
    """The choice of the part that was scored first, with its int8 copy; None where there is no such part."""
    found = read_earlier([task.inputs.settled] if task.inputs.settled else [])
    if not found:
        return None
    chosen = found[0].scores.precision_why
    if chosen.name == INT8 and not copy_verified(found[0], INT8_MODEL, out / INT8_MODEL):
        return None
    return chosen


def _taken_over(task: Task, fp32: Scorer, earlier: Sequence[EarlierScoring], out: Path) -> Precision | None:
    """The choice of the earlier scoring that has most of this pool's shards; None where none has any."""
    teacher = file_sha256(Path(task.inputs.intake.path) / TAPPED_MODEL)
    best: tuple[int, EarlierScoring] | None = None
    for scoring in earlier:
        model = scoring.digests.get(INT8_MODEL, "") if scoring.scores.precision == INT8 else teacher
        keys = shard_keys(fp32, task.pool.pool.shards, teacher=teacher, model=model)
        shared = len(set(keys).intersection(scoring.scores.shard_keys))
        if shared and (best is None or shared > best[0]):
            best = shared, scoring
    if best is None:
        return None
    shared, chosen = best
    name = chosen.scores.precision
    if name == INT8 and not copy_verified(chosen, INT8_MODEL, out / INT8_MODEL):
        return None
    why = f"an earlier scoring of {shared} of the {len(task.pool.pool.shards)} shards chose it"
    return Precision(name=name, why=why, trial=chosen.scores.precision_why.trial)


def _tried(task: Task, fp32: Scorer, out: Path, progress: Progress) -> Precision:
    tapped = Path(task.inputs.intake.path) / TAPPED_MODEL
    images, how = task.pool.pool.images, fp32.teacher.preprocessing
    reasons = (
        (fp32.provider != "cpu", "int8 is for the CPU"),
        (images < LEAST_POOL, f"the pool has {images} images; int8 is tried from {LEAST_POOL} on"),
        (fp32.teacher.batch is not None, "the teacher runs at one batch size only"),
        (how.dtype != "float32", f"the teacher takes {how.dtype}"),
    )
    why = next((text for holds, text in reasons if holds), "") or int8_copy.why_not(tapped)
    if why:
        return Precision(name=FP32, why=why)
    scratch = out / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)  # a killed run's
    scratch.mkdir()
    try:
        int8_copy.write_int8(tapped, calibration(task, fp32), out / INT8_MODEL, scratch)
        copy = open_scorer(task.inputs.intake, "cpu", task.matched, model=out / INT8_MODEL)
        return judge(try_out(task, fp32, copy, progress))
    except Int8Unavailable as error:
        return Precision(name=FP32, why=str(error))
    finally:
        shutil.rmtree(scratch)


def try_out(task: Task, fp32: Scorer, int8: Scorer, progress: Progress) -> Int8Trial:
    """Both networks on a sample of the pool, batch by batch in turns."""
    count = sample_size(task.pool.pool.images)
    # The odd places: calibration has the even ones.
    rows = np.linspace(0, task.pool.pool.images - 1, 2 * count).round().astype(np.int64)[1::2]
    networks = (fp32, int8)
    pool = _outputs(networks, (data for _, data in task.pool.read(rows)), task.inputs.threads, progress)
    chosen = _labelled_sample(task.entries)
    positives = _outputs(networks, _labelled_data(task, chosen), task.inputs.threads, progress)
    classes = np.array([task.entries[i].index for i in chosen])
    picks = [_picks(p, q, classes, fp32.teacher.classes) for p, q in zip(pool, positives, strict=True)]
    answers = [p.logits.mean(axis=1).argmax(axis=1) for p in pool]
    return Int8Trial(
        images=len(answers[0]),
        speedup=pool[0].seconds / pool[1].seconds,
        agreement=float((answers[0] == answers[1]).mean()),
        jaccard=float((picks[0] & picks[1]).sum() / (picks[0] | picks[1]).sum()),
    )


def sample_size(pool_images: int) -> int:
    """Images of a trial: a twentieth of the pool, 512 to 1,024."""
    return min(max(round(SAMPLE_SHARE * pool_images), LEAST_SAMPLE), MOST_SAMPLE)


def _outputs(
    networks: tuple[Scorer, Scorer], images: Iterator[bytes], workers: int, progress: Progress
) -> list[Outputs]:
    """What each network says of the images; the seconds are those of the thread that ran it."""
    widths = [tap.width for tap in networks[0].teacher.taps]
    last_tap = slice(sum(widths[:-1]), sum(widths))

    def run(batch: list[bytes]) -> list[Outputs]:
        clean, found = networks[0].pixels(batch), []
        for network in networks:
            started = time.thread_time()
            # Without the matched view, which both would encode alike.
            logits, features = network.outputs(clean, labelled=True)
            seconds = time.thread_time() - started
            tap = features[:, 0, last_tap].astype(np.float32) if widths else logits.mean(axis=1)
            found.append(Outputs(logits=logits, features=tap, seconds=seconds))
        return found

    parts: list[list[Outputs]] = []
    for found in prefetched(run, _lists(images, networks[0].batch), workers):
        parts.append(found)
        progress.update(len(parts), len(parts), "batches")
    return [_joined(part) for part in zip(*parts, strict=True)]


def _joined(parts: Sequence[Outputs]) -> Outputs:
    # The first batch also plans memory.
    timed = parts[1:] or parts
    return Outputs(
        logits=np.concatenate([p.logits for p in parts]),
        features=np.concatenate([p.features for p in parts]),
        seconds=sum(p.seconds for p in timed),
    )


def _picks(pool: Outputs, labelled: Outputs, classes: NDArray[np.int64], outputs: int) -> NDArray[np.bool_]:
    """The picks of the default score where the pool is not of the labelled images' source, with equal quotas, [N]."""
    # Here, so that a scoring without a trial does not hold torch, which they import.
    from pu_engine.picking.content_scores import (
        background_gaussian,
        class_gaussians,
        energy,
        moments,
        rank_sum,
        relative_mahalanobis,
    )
    from pu_engine.picking.quota import class_quotas, pick_balanced

    near = relative_mahalanobis(
        pool.features, class_gaussians(labelled.features, classes), background_gaussian(moments([pool.features]))
    )
    score = rank_sum(energy(pool.logits), near)
    answers = pool.logits.mean(axis=1).argmax(axis=1)
    eligible = np.ones(len(score), np.bool_)
    wanted = max(1, round(PICKED_SHARE * len(score)))
    has_labels = np.isin(np.arange(outputs), classes)
    quotas = class_quotas(np.bincount(answers, minlength=outputs), has_labels, wanted, 0)
    return pick_balanced(score, answers.astype(np.int32), quotas, eligible)


def calibration(task: Task, scorer: Scorer) -> Iterator[NDArray[Any]]:
    """Input tensors of labelled images that are not held out, then of pool images, a batch at a time."""
    half = CALIBRATION_IMAGES // 2
    chosen = _labelled_sample(task.entries)
    some = {chosen[i] for i in np.linspace(0, len(chosen) - 1, min(half, len(chosen))).round().astype(int)}
    count = CALIBRATION_IMAGES - len(some)
    rows = np.linspace(0, task.pool.pool.images - 1, 2 * sample_size(task.pool.pool.images)).round().astype(np.int64)
    spread = rows[::2][np.linspace(0, len(rows) // 2 - 1, count).round().astype(int)]

    def images() -> Iterator[bytes]:
        yield from _labelled_data(task, sorted(some))
        yield from (data for _, data in task.pool.read(spread))

    for batch in _lists(images(), scorer.batch):
        yield model_input(scorer.pixels(batch), scorer.teacher.preprocessing)


def _labelled_sample(entries: Sequence[LabelledEntry]) -> list[int]:
    """Rows of labelled images that are not held out, evenly spaced, at most LABELLED_SAMPLE."""
    usable = [i for i, entry in enumerate(entries) if not entry.held_out] or list(range(len(entries)))
    places = np.linspace(0, len(usable) - 1, min(LABELLED_SAMPLE, len(usable))).round().astype(int)
    return [usable[place] for place in places]


def _labelled_data(task: Task, rows: Sequence[int]) -> Iterator[bytes]:
    wanted = set(rows)
    for row, image in enumerate(labelled.read(task.inputs.images)):
        if row in wanted:
            yield image.data


def _lists(images: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    while batch := list(islice(images, size)):
        yield batch
