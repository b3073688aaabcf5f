"""Stage export: the trained student as ONNX, in the precisions that the targets use."""

from __future__ import annotations

from pathlib import Path

from exporters.runtimes import runtime_names
from exporters.targets import targets
from pu_engine.errors import EngineError
from pu_engine.progress import Progress
from pu_engine.types import ExportInputs, ExportOptions, Variants
from pu_engine.variants.onnx_variants import FILES, write_variants

MAX_BATCH_LIMIT, TRAINING_STEPS_LIMIT = 1024, 100_000


def run(inputs: ExportInputs, out: Path, progress: Progress) -> Variants:
    """Write `student.onnx` always, its other precisions and runtimes; what can't be made is a warning.

    Raises:
        EngineError: REQUEST_INVALID for an unknown target or batch; EXPORT_FAILED where there is no ONNX.
    """
    options = inputs.export
    check_options(options)
    variants, not_made = write_variants(inputs, out, progress)
    warnings = tuple(f"No {row.name} file: {row.reason}" for row in not_made)
    for text in warnings:
        progress.warn(text)
    return Variants(variants=tuple(variants), targets=options.targets, warnings=warnings, not_made=tuple(not_made))


def check_options(options: ExportOptions) -> None:
    """Refuse targets, variants, runtimes, batches and budgets that nothing can meet."""
    for what, asked, known in (
        ("target", options.targets, tuple(targets())),
        ("variant", options.variants, tuple(FILES)),
        ("runtime", options.runtimes, runtime_names()),
    ):
        for name in asked:
            if name not in known:
                raise EngineError(
                    "REQUEST_INVALID",
                    f"There is no export {what} {name!r}.",
                    f"Choose from {', '.join(known)}.",
                    **{what: name},
                )
    for field, batch in (("max_batch", options.max_batch), ("fixed_batch", options.fixed_batch)):
        if batch is not None and not 1 <= batch <= MAX_BATCH_LIMIT:
            raise EngineError(
                "REQUEST_INVALID",
                f"export.{field} must be from 1 to {MAX_BATCH_LIMIT}, got {batch}.",
                f"Set export.{field} within its bounds.",
                **{field: batch},
            )
    steps = options.quantisation_training_steps
    if steps is not None and not 0 <= steps <= TRAINING_STEPS_LIMIT:
        raise EngineError(
            "REQUEST_INVALID",
            f"export.quantisation_training_steps must be from 0 to {TRAINING_STEPS_LIMIT}, got {steps}.",
            "Set it within its bounds, or leave it out.",
            quantisation_training_steps=steps,
        )
    if not 0.0 <= options.accuracy_budget <= 1.0:
        raise EngineError(
            "REQUEST_INVALID",
            f"export.accuracy_budget must be from 0 to 1, got {options.accuracy_budget:g}.",
            "Give the share of right answers that int8 may lose, for instance 0.006.",
            accuracy_budget=options.accuracy_budget,
        )
