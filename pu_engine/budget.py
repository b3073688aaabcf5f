"""Stage budget: how many steps the training gets. The number of picked images follows from it, so it is set early.

Where it follows from minutes, it rests on a step that is timed once; the finished stage keeps it for every rerun.
"""

from __future__ import annotations

from pathlib import Path

from pu_engine.distill_checks import check_options
from pu_engine.distill_types import EFFORT_STEPS, DistillationOptions
from pu_engine.progress import Progress
from pu_engine.results import load
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
        named = "named" if options.steps is not None else f"effort {options.effort}"
        return Budget(steps=stated_steps(options), why=f"{stated_steps(options):,} steps: {named}")
    # Only now: a student imports torch.
    from pu_engine.plan_samples import time_student

    teacher = load(Teacher, inputs.intake.path)
    side = inputs.student.size or max(teacher.preprocessing.height, teacher.preprocessing.width)
    timed = time_student(
        inputs.student, options, teacher, side, out / SCRATCH, seed=inputs.seed, threads=inputs.threads
    )
    steps = fitting_steps(options, timed.step.seconds_each)
    progress.update(1, 1, "sample")
    return Budget(
        steps=steps,
        why=f"{steps:,} steps fit into {options.minutes:g} minutes at {timed.step.seconds_each:.3g} s a step, measured",
        step_seconds=timed.step.seconds_each,
    )


def stated_steps(options: DistillationOptions) -> int:
    """The steps that the options name themselves, or those of their effort."""
    return EFFORT_STEPS[options.effort] if options.steps is None else options.steps


def fitting_steps(options: DistillationOptions, step_seconds: float) -> int:
    """As many steps as fit into the minutes, at least one; never more than are named."""
    if options.minutes is None:
        return stated_steps(options)
    fitting = max(1, int(60.0 * options.minutes / step_seconds))
    return fitting if options.steps is None else min(fitting, options.steps)


def steps_of(folder: Folder | None, options: DistillationOptions) -> Budget:
    """The budget of a finished stage; without one, what the options name."""
    if folder is not None:
        return load(Budget, folder.path)
    return Budget(steps=stated_steps(options), why="stated")
