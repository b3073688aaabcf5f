"""The student in int8: found after the training where that meets the budget, trained a little more where not."""

from __future__ import annotations

from typing import Any

from exporters.calibration import observe
from exporters.errors import ExportError
from exporters.inference import logits_of, open_model
from exporters.int8_search import SEARCH_SECONDS, VALIDATION_BATCH, Budget, Found, Trials, search
from exporters.quantisation import FORMS, quantise
from pu_engine.variants.int8_task import Int8Task
from pu_engine.variants.quantisation_training import steps_of, trained_graph

VALIDATION_AGREEMENT = 0.97  # of int8 with fp32; less is another network


def int8(task: Int8Task, form: str) -> tuple[Any, dict[str, str]]:
    """The int8 graph of a form, with how it was found.

    Raises:
        ExportError: the graph can't be quantised.
    """
    options = task.inputs.export
    session = open_model(task.base, threads=task.inputs.threads)
    trials = Trials(
        batches=task.validation.batches,
        reference=logits_of(session, task.validation.batches(VALIDATION_BATCH)),
        labels=task.validation.teacher_answers(),
        threads=task.inputs.threads,
        report=lambda done, total: task.progress.update(done, total, "node"),
    )
    budget = Budget(accuracy=options.accuracy_budget, agreement=VALIDATION_AGREEMENT)
    found = search(task.base, task.observed, form, trials, budget)
    training: dict[str, str] = {}
    steps = steps_of(options.quantisation_training_steps, task.spec.macs, task.inputs.batch_size)
    if not found.within and steps:
        found, training = trained(task, form, found, trials=trials, budget=budget, steps=steps)
    details = found_details(found, task.observed.images, len(task.validation))
    return found.model, {**details, **training, "accuracy_budget": f"{budget.accuracy:g}"}


def trained(
    task: Int8Task, form: str, before: Found, *, trials: Trials, budget: Budget, steps: int
) -> tuple[Found, dict[str, str]]:
    """What a training against the form's rounding gives, searched for anew; the better of both is kept.

    A graph that can't be trained leaves what there was, and says why.
    """
    ranges = task.observed.ranges(before.method, symmetric=FORMS[form].symmetric)
    try:
        base = trained_graph(task, quantise(task.base, ranges, form), steps)
        observed = observe(base, task.calibration.batches, threads=task.inputs.threads)
        after = search(base, observed, form, trials, budget)
    except ExportError as error:
        return before, {"training_steps": "0", "training": error.message}
    kept = after.within or after.kept.rank() < before.kept.rank()
    words = f"agreement {before.kept.agreement:.4f} before, {after.kept.agreement:.4f} after"
    lost = f"{100 * before.kept.accuracy_lost:.1f} points lost before, {100 * after.kept.accuracy_lost:.1f} after"
    return after if kept else before, {
        "training_steps": str(steps),
        "training": f"{words}; {lost}; {'kept' if kept else 'not kept'}",
    }


def found_details(found: Found, calibrated: int, validated: int) -> dict[str, str]:
    """How a file was found, for the report."""
    tried = "; ".join(f"{method} {kept.agreement:.4f}" for method, kept in found.tried)
    details = {
        "calibration": found.method,
        "calibration_images": str(calibrated),
        "calibrations_tried": tried,  # with their agreement
        "validation_images": str(validated),
        "validation_agreement": f"{found.kept.agreement:.4f}",
        "validation_accuracy_lost": f"{found.kept.accuracy_lost:.4f}",
        "within_budget": "yes" if found.within else "no",
        "nodes_in_float": ", ".join(found.taken_out),
    }
    if found.cut_short():
        details["search_ended"] = f"{found.measured} of {found.nodes} nodes measured in {SEARCH_SECONDS:g} s"
    return details
