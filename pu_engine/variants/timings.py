"""How fast teacher and student files are on this machine's CPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pu_engine.imaging.preprocessing import image_channels, model_input
from pu_engine.runtime.latency import measure_calls, measure_latency
from pu_engine.runtime.sessions import open_session
from pu_engine.teacher.fact_types import Latency
from pu_engine.types import Preprocessing, StudentSpec, Teacher, Variant
from pu_engine.variants.hops import File, open_file

BATCHES = (1, 32)
TEACHER_THREADS = 1
THREADS = (1, 2)  # of the student's files; two only where there are two cores
BUDGET_SECONDS = 0.5  # of one measurement of a file: all of them together stay under half a minute
MAX_RUNS = 200
CANONICAL = "canonical.onnx"


def measure_latencies(
    intake: Path, teacher: Teacher, export: Path, files: Sequence[Variant], spec: StudentSpec
) -> tuple[Latency, ...]:
    """Teacher and files at batches 1 and 32; what has a fixed batch at that one only.

    A teacher of fixed batch is compared at it: the files of free batch run that one too.
    The teacher's constants are not folded, for the model is a stranger's.
    """
    teacher_batches = BATCHES if teacher.batch is None else (teacher.batch,)
    session = open_session(intake / CANONICAL, threads=TEACHER_THREADS, fold_constants=False)
    found = [
        measure_latency(session, model_input(_pixels(batch, teacher.preprocessing), teacher.preprocessing),
                        subject="teacher", threads=TEACHER_THREADS)
        for batch in teacher_batches
    ]  # fmt: skip
    batches = tuple(sorted({*BATCHES, *teacher_batches}))
    for variant in files:
        for threads in usable_threads():
            file = open_file(export / variant.path, variant, spec.preprocessing, threads)
            found += measure_file(file, batches, threads)
    return tuple(found)


def measure_file(file: File, batches: Sequence[int], threads: int) -> list[Latency]:
    """One file at each batch that it can run, or at its fixed one."""
    most = file.largest_batch()
    wanted = [b for b in batches if most is None or b <= most] if file.free() else file.batches()
    found = []
    for batch in wanted:
        tensor = file.feed(_pixels(batch, file.preprocessing))
        found.append(
            measure_calls(partial(file.infer, tensor), batch=batch, subject=file.variant.name, threads=threads,
                          budget_seconds=BUDGET_SECONDS, max_runs=MAX_RUNS)
        )  # fmt: skip
    return found


def usable_threads() -> tuple[int, ...]:
    """Numbers of threads that this process has cores for."""
    return tuple(count for count in THREADS if count <= len(os.sched_getaffinity(0)))


def _pixels(batch: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    shape = (batch, preprocessing.height, preprocessing.width, image_channels(preprocessing))
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
