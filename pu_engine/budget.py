"""Stage budget: how many steps the training gets. The number of picked images follows from it, so it is set early.

Where it follows from minutes, it rests on a step that is timed once; the finished stage keeps it for every rerun.
"""

from __future__ import annotations

from pathlib import Path

from pu_engine.progress import Progress
from pu_engine.results import load
from pu_engine.training.distill_checks import check_options
from pu_engine.training.distill_types import EFFORT_STEPS, DistillationOptions
from pu_engine.types import Budget, BudgetInputs, Folder, Teacher

SCRATCH = ".timed"


def run(inputs: BudgetInputs, out: Path, progress: Progress) -> Budget:
    """The budget that the options name; a step is timed only where minutes are given.

    Raises:
        EngineError: REQUEST_INVALID, STUDENT_UNKNOWN, STUDENT_UNSUPPORTED.
    """
    options = inputs.distillation
    check_options(options)
    if options.minutes is None:
        return budget_of(options, 0.0)
    # Only now: a student imports torch.
    from pu_engine.planning.plan_samples import time_student

    teacher = load(Teacher, inputs.intake.path)
    side = inputs.student.size or max(teacher.preprocessing.height, teacher.preprocessing.width)
    timed = time_student(
        inputs.student, options, teacher, side, out / SCRATCH, seed=inputs.seed, threads=inputs.threads
    )
    progress.update(1, 1, "sample")
    return budget_of(options, timed.step.seconds_each)


def budget_of(options: DistillationOptions, step_seconds: float) -> Budget:
    """The budget, a step having been timed: as many steps as fit into the minutes, at least one and at most those that
    are named; without minutes those that are named.
    """
    if options.minutes is None:
        named = "named" if options.steps is not None else f"effort {options.effort}"
        return Budget(steps=stated_steps(options), why=f"{stated_steps(options):,} steps: {named}")
    fitting = max(1, int(60.0 * options.minutes / step_seconds))
    steps = fitting if options.steps is None else min(fitting, options.steps)
    why = f"{steps:,} steps: {fitting:,} fit into {options.minutes:g} minutes at {step_seconds:.3g} s a step, measured"
    return Budget(steps=steps, why=why, step_seconds=step_seconds)


def stated_steps(options: DistillationOptions) -> int:
    """The steps that the options name themselves, or those of their effort."""
    return EFFORT_STEPS[options.effort] if options.steps is None else options.steps


def steps_of(folder: Folder | None, options: DistillationOptions) -> Budget:
    """The budget of a finished stage; without one, what the options name."""
    if folder is not None:
        return load(Budget, folder.path)
    return Budget(steps=stated_steps(options), why="stated")
