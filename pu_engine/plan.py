"""Stage plan: what a compression would take, from small measured samples of its stages."""

from __future__ import annotations

import json
from math import log2
from pathlib import Path

from pu_engine.budget import budget_of
from pu_engine.imaging.preprocessing import image_channels
from pu_engine.jsonform import to_json
from pu_engine.planning.plan_samples import (
    Timed,
    TimedStudent,
    read_sample,
    sample_size,
    time_decoding,
    time_scoring,
    time_student,
)
from pu_engine.planning.plan_types import Outlook, PickForecast, Plan, StageEstimate
from pu_engine.pools.pool import PoolReader, open_pool
from pu_engine.progress import Progress
from pu_engine.results import load, read_manifest, write_atomic
from pu_engine.runtime.providers import choose_provider
from pu_engine.scores.scorer import Scorer, features_width, open_scorer
from pu_engine.scoring import survey
from pu_engine.training.distill_types import EFFORT_STEPS
from pu_engine.types import PlanInputs, SelectionOptions, Teacher

FILE = "plan.json"
PARITY_IMAGES = 256
SCRATCH, SCORED = ".timed", ".scored"
MIB = 2**20
PROCESS_BYTES = 350 * MIB  # a process that has imported torch and onnxruntime
# Measured on a busy two-core AMD EPYC server, one thread: CIFAR-10 (40,000 pool images) and handwritten digits (4,800).
# Only selection grows with the pool, and little: training the PU classifiers has a fixed number of steps.
SELECTION_SECONDS, SELECTION_SECONDS_AN_IMAGE = 30.0, 5e-4
SELECTION_BYTES_AN_IMAGE = 256  # a key, and a dozen numbers
CHUNKS_HELD = 4  # as float16, as float64, standardised, whitened
MATRICES_HELD = 8  # covariances and whitenings of pool and classes, with what computes them
LABELLED_COPIES = 3
FLOAT32_BYTES, FLOAT64_BYTES = 4, 8
EXPORT_SECONDS, EXPORT_BYTES = 25.0, 800 * MIB
VERIFICATION_SECONDS, VERIFICATION_BYTES = 15.0, 500 * MIB
BUNDLING_SECONDS, BUNDLING_BYTES = 6.0, 500 * MIB
REPORT_SECONDS, REPORT_BYTES = 4.0, 200 * MIB
# Of accuracy, for twice the steps: CIFAR-10, from 1,500 to 6,000 steps 8 to 10 points, by the kind of picks.
POINTS_A_DOUBLING = 4.5


def run(inputs: PlanInputs, out: Path, progress: Progress) -> Plan:
    """Time a sample of the pool and a few training steps, and write `plan.json`.

    Raises:
        EngineError: POOL_INVALID, IMAGE_REJECTED, STUDENT_UNKNOWN, STUDENT_UNSUPPORTED, REQUEST_INVALID,
            POOL_TOO_POOR where the pool is empty.
    """
    pool = open_pool(inputs.pool)
    labelled, matched = survey(inputs.images, inputs.intake)
    scorer = open_scorer(inputs.intake, choose_provider("auto").name, matched)
    sample = read_sample(pool, sample_size(pool.pool.images, scorer.batch, inputs.threads))
    scoring = time_scoring(scorer, sample, inputs.threads)
    progress.update(1, 4, "sample")
    side = inputs.student.size or max(scorer.teacher.preprocessing.height, scorer.teacher.preprocessing.width)
    decoding = time_decoding(sample, side, image_channels(scorer.teacher.preprocessing))
    progress.update(2, 4, "sample")
    # Only now: selection and students import torch, which scoring's memory does not hold.
    student = time_student(
        inputs.student, inputs.distillation, scorer.teacher, side, out / SCRATCH,
        seed=inputs.seed, threads=inputs.threads,
    )  # fmt: skip
    budget = budget_of(inputs.distillation, student.step.seconds_each)
    progress.update(3, 4, "sample")
    forecast = forecast_of(inputs, scorer, pool, out, scoring=scoring, steps=budget.steps)
    progress.update(4, 4, "sample")
    stages = estimate_stages(
        inputs, steps=budget.steps, pool_images=pool.pool.images, labelled=labelled, picked=forecast.picked,
        passes=len(scorer.views) + 1, scoring=scoring, decoding=decoding, student=student,
    )  # fmt: skip
    plan = Plan(
        steps=budget.steps,
        budget=budget.why,
        targets=targets_in_words(inputs),
        outlook=outlook(budget.steps, student.step.seconds_each),
        picked=forecast.picked,
        pool_images=pool.pool.images,
        selection=forecast,
        student=student.name,
        parameters=student.parameters,
        macs=student.macs,
        stages=stages,
        seconds=sum(stage.seconds for stage in stages),
        artifacts=(FILE,),
    )
    write_atomic(out / FILE, json.dumps(to_json(plan), indent=1).encode())
    return plan


def estimate_stages(
    inputs: PlanInputs, *, steps: int, pool_images: int, labelled: int, picked: int, passes: int, scoring: Timed,
    decoding: Timed, student: TimedStudent,
) -> tuple[StageEstimate, ...]:  # fmt: skip
    """Seconds and memory of each stage of a compression, in its order."""
    intake = read_manifest(Path(inputs.intake.path))
    width = features_width(load(Teacher, inputs.intake.path).taps)
    gathered = picked + labelled + min(PARITY_IMAGES, pool_images)
    fixed = "an allowance measured on another machine; it does not grow with the pool or the training"
    rows = (
        ("intake", intake["seconds"], intake["peak_memory_bytes"], "measured: this teacher's intake"),
        (
            "scoring", scoring.seconds_each * (pool_images + labelled), scoring.peak_bytes,
            f"{scoring.sample} pool images timed, {passes} passes of the teacher each",
        ),
        (
            "selection", SELECTION_SECONDS + SELECTION_SECONDS_AN_IMAGE * pool_images,
            PROCESS_BYTES + selection_bytes(pool_images, labelled, width),
            "an allowance measured on another machine, growing with the pool",
        ),
        (
            "gathering", decoding.seconds_each * gathered / inputs.threads, scoring.peak_bytes,
            f"{decoding.sample} pool images decoded",
        ),
        (
            "distillation", student.step.seconds_each * steps, student.step.peak_bytes,
            f"{student.step.sample} training steps timed, {steps} planned",
        ),
        ("export", EXPORT_SECONDS, EXPORT_BYTES, fixed),
        ("verification", VERIFICATION_SECONDS, VERIFICATION_BYTES, fixed),
        ("bundling", BUNDLING_SECONDS, BUNDLING_BYTES, fixed),
        ("report", REPORT_SECONDS, REPORT_BYTES, fixed),
    )  # fmt: skip
    return tuple(
        StageEstimate(stage=stage, seconds=float(seconds), memory_bytes=int(memory), how=how)
        for stage, seconds, memory, how in rows
    )


def outlook(steps: int, step_seconds: float) -> tuple[Outlook, ...]:
    """What other efforts would take, and how their accuracy should compare."""
    return tuple(
        Outlook(
            effort=effort, steps=other, seconds=other * step_seconds, points=POINTS_A_DOUBLING * log2(other / steps)
        )
        for effort, other in EFFORT_STEPS.items()
        if other != steps
    )


def targets_in_words(inputs: PlanInputs) -> str:
    """Where the targets will come from, and why."""
    import torch

    from pu_engine.training.live_teacher import choose_targets

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return ": ".join(choose_targets(inputs.distillation.targets, Path(inputs.intake.path), device))


def forecast_of(
    inputs: PlanInputs, scorer: Scorer, pool: PoolReader, out: Path, *, scoring: Timed, steps: int
) -> PickForecast:
    """What selection would pick for a training of so many steps."""
    from pu_engine.planning.plan_forecast import forecast_picks
    from pu_engine.selection import check_options, default_count

    check_options(inputs.selection)
    training, images = inputs.distillation, pool.pool.images
    draws = int(steps * training.batch_size * (1.0 - training.labelled_share))
    default = max(default_count(images, draws), scorer.teacher.classes)
    picked = expected_picks(inputs.selection, images, default)
    return forecast_picks(inputs, scorer, pool, out / SCORED, scoring=scoring, picked=picked, draws=draws)


def expected_picks(options: SelectionOptions, pool_images: int, default: int) -> int:
    """Picks by the options' count or threshold, else `default`; never more than the pool has."""
    if options.rule == "threshold" and options.threshold is not None:
        above = round((1.0 - options.threshold) * pool_images)
        return above if options.count is None else min(above, options.count)
    return min(pool_images, default if options.count is None else options.count)


def selection_bytes(pool_images: int, labelled: int, width: int) -> int:
    """What selection holds beside its libraries: the pool's features are streamed, a sample of them is trained on.

    Args:
        width: of the features, the spreads among them.
    """
    from pu_engine.picking.pu_classifier import EXPANDED_BYTES, MOST_LOGITS, SMOOTH_FUNCTIONS
    from pu_engine.picking.pu_folds import TRAINING_BYTES
    from pu_engine.scores.score_files import CHUNK_BYTES

    inputs = width + MOST_LOGITS + 1
    training = min(TRAINING_BYTES, FLOAT32_BYTES * inputs * pool_images)
    expanded = min(EXPANDED_BYTES, FLOAT32_BYTES * (inputs + SMOOTH_FUNCTIONS) * pool_images)
    chunks = CHUNKS_HELD * min(CHUNK_BYTES, FLOAT64_BYTES * inputs * pool_images)
    positives = LABELLED_COPIES * FLOAT64_BYTES * (inputs + SMOOTH_FUNCTIONS) * labelled
    matrices = MATRICES_HELD * FLOAT64_BYTES * inputs**2
    # A fold's part of the training images is a copy, and so is what their smooth functions are joined to.
    return 2 * training + 2 * expanded + chunks + positives + matrices + SELECTION_BYTES_AN_IMAGE * pool_images
