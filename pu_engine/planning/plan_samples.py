"""Small timed samples of scoring, gathering and distillation, for the plan."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pu_engine.errors import EngineError
from pu_engine.imaging.images import decode_resized
from pu_engine.imaging.preprocessing import image_channels
from pu_engine.peak_memory import peak_bytes
from pu_engine.pools.pool import PoolReader
from pu_engine.prefetch import prefetched
from pu_engine.scores.scorer import Scorer
from pu_engine.scoring import batches
from pu_engine.training.distill_types import DistillationOptions
from pu_engine.types import StudentOptions, Teacher, TrainingSet

SAMPLE_IMAGES = 64
BATCHES_A_WORKER = 2  # fewer would not show workers beside each other
TIMED_STEPS, UNTIMED_STEPS = 8, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A measured rate and the process's peak memory after it."""

    seconds_each: float
    peak_bytes: int
    sample: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedStudent:
    """The student that would be trained, and its steps."""

    name: str
    parameters: int
    macs: int
    step: Timed


class StepClock:
    """A progress that notes when each training step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def update(self, done: int, total: int, unit: str, metrics: Mapping[str, float] | None = None) -> None:
        self.ends.append(time.perf_counter())

    def warn(self, text: str) -> None:
        """A timed training's warnings say nothing of the real one."""


def sample_size(pool_images: int, batch: int, threads: int) -> int:
    """Images to time: whole batches for every worker where the pool has them."""
    return min(pool_images, max(SAMPLE_IMAGES, BATCHES_A_WORKER * threads * batch))


def read_sample(pool: PoolReader, count: int) -> list[bytes]:
    """Images spread evenly over the pool.

    Raises:
        EngineError: POOL_TOO_POOR for an empty pool.
    """
    if not count:
        raise EngineError("POOL_TOO_POOR", f"The pool {pool.pool.name!r} has no images.", "Choose another pool.")
    rows = np.linspace(0, pool.pool.images - 1, count).round().astype(int).tolist()
    return [data for _, data in pool.read(rows)]


def time_scoring(scorer: Scorer, sample: list[bytes], threads: int) -> Timed:
    """Seconds an image of scoring with as many workers: decoding, image, mirror and the matched view."""

    def score(batch: list[bytes]) -> int:
        return len(scorer.score(batch, labelled=False)[0])

    score(sample[: scorer.batch])  # the first run also plans memory
    started = time.perf_counter()
    done = sum(prefetched(score, batches(sample, scorer.batch), threads))
    return Timed(seconds_each=(time.perf_counter() - started) / done, peak_bytes=peak_bytes(), sample=done)


def time_decoding(sample: list[bytes], side: int, channels: int) -> Timed:
    """Seconds an image of bringing pool images to training size."""
    started = time.perf_counter()
    for data in sample:
        decode_resized(data, side, side, channels)
    return Timed(
        seconds_each=(time.perf_counter() - started) / len(sample), peak_bytes=peak_bytes(), sample=len(sample)
    )


def time_student(
    student: StudentOptions, training: DistillationOptions, teacher: Teacher, side: int, scratch: Path, *, seed: int,
    threads: int,
) -> TimedStudent:  # fmt: skip
    """Build the student that the options ask for and time steps of its real training loop on noise.

    Raises:
        EngineError: STUDENT_UNKNOWN, STUDENT_UNSUPPORTED, REQUEST_INVALID.
    """
    import torch

    from pu_engine.student.catalogue import build
    from pu_engine.student.choice import largest, shortlist
    from pu_engine.student.spec import describe
    from pu_engine.training.batches import Part
    from pu_engine.training.distill_checks import check_options
    from pu_engine.training.loop import Task, repeatable, train, training_device

    check_options(training)
    shutil.rmtree(scratch, ignore_errors=True)  # a killed run's
    scratch.mkdir(parents=True)
    channels, classes = image_channels(teacher.preprocessing), teacher.classes
    generator = np.random.default_rng(seed)
    count = min(training.batch_size, SAMPLE_IMAGES)
    noise = Part(
        images=generator.integers(0, 256, (count, side, side, channels), np.uint8),
        targets=generator.normal(size=(count, 2, classes)).astype(np.float32),
        labels=generator.integers(0, classes, count),
    )
    arrays = TrainingSet(
        size=side,
        fit=teacher.preprocessing.fit,
        channels=channels,
        classes=classes,
        labelled=count,
        picked=count,
        held_out=count,
        parity=count,
        parity_unpicked=0,
    )
    with repeatable(threads):
        name = largest(shortlist(student, size=side, channels=channels, classes=classes, scratch=scratch))
        torch.manual_seed(seed)
        module = build(name, side, channels, classes)
        spec = describe(name, module, arrays, teacher.class_names)
        task = Task(
            labelled=noise, picked=noise, held_out=noise, preprocessing=spec.preprocessing,
            options=replace(training, targets="cached"), steps=UNTIMED_STEPS + TIMED_STEPS, seed=seed,
            checkpoint_steps=UNTIMED_STEPS + TIMED_STEPS, key="plan",
        )  # fmt: skip
        clock = StepClock()
        train(module.to(training_device()), task, scratch, clock)
    shutil.rmtree(scratch)
    gaps = np.diff(clock.ends)[UNTIMED_STEPS - 1 :]
    step = Timed(seconds_each=statistics.median(gaps.tolist()), peak_bytes=peak_bytes(), sample=len(gaps))
    return TimedStudent(name=name, parameters=spec.parameters, macs=spec.macs, step=step)
