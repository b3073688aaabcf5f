"""Intake: a stranger's ONNX file and labelled images become a Teacher whose conventions were tested."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pu_engine.errors import EngineError
from pu_engine.guard import limits, static_guard
from pu_engine.imaging.preprocessing import model_input
from pu_engine.jsonform import to_json
from pu_engine.progress import Progress
from pu_engine.results import write_atomic
from pu_engine.runtime import forward
from pu_engine.teacher import (
    canonicalisation,
    class_columns,
    convention_search,
    conventions,
    graph_surgery,
    labels,
    probe,
    probed,
    scalar_inputs,
    teacher_facts,
    trials,
)
from pu_engine.teacher.canonicalisation import Canonical
from pu_engine.teacher.convention_search import Answer, Families, Question
from pu_engine.teacher.labels import ClassOrder
from pu_engine.teacher.scalar_inputs import Binding
from pu_engine.teacher.trials import Trial
from pu_engine.twin.report import TwinReport
from pu_engine.types import IntakeInputs, LabelledEntry, StatedPreprocessing, Teacher
from pu_engine.variants.agreement import wilson_interval

CANONICAL = "canonical.onnx"
STEPS = 5
LOW_ACCURACY = 0.5  # an interval that ends below it is worth a warning


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One way to bind the teacher's scalar inputs, and what the labelled images say of it."""

    values: Mapping[str, float]  # of the scalar inputs
    original: Any  # the guarded model with the image as its only input
    source: graph_surgery.ModelInput
    canonical: Canonical
    answer: Answer
    rivals: tuple[Trial, ...]  # without what the user stated


def run(inputs: IntakeInputs, out: Path, progress: Progress) -> Teacher:
    """Vet the model, free it of its conventions, and find them out with the labelled images.

    Writes `canonical.onnx`, `tapped.onnx`, `labelled.json`, `probed.json`, `probed.logits.npy` and the
    twin's files, where there is one.

    Raises:
        EngineError: what the guard, the images or the probe refuse.
    """
    vetted = _vetted(inputs)
    progress.update(1, STEPS, "step")
    found = probe.catalogue(inputs.images, inputs.seed)
    progress.update(2, STEPS, "step")
    chosen = _best_attempt(vetted, found, inputs)
    progress.update(3, STEPS, "step")
    canonical, answer = chosen.canonical, chosen.answer
    best, hypotheses = answer.trials[0], trials.table(_shown(chosen), answer.labels)
    rival = _better_than_stated(chosen)
    few = trials.check_above_chance(
        best.scores, best.order, answer.labels, hypotheses, better=rival.preprocessing if rival else None
    )
    trials.check_costly_ties(answer.trials, answer.labels)
    labels.check_seen(best.scores, answer.labels, best.order)
    values = model_input(answer.pixels, best.preprocessing)
    canonicalisation.check_parity(chosen.original, canonical, values, best.scores, inputs.threads)
    progress.update(4, STEPS, "step")
    _write(out, canonical, found, best.order)
    probed.write(out, found, probe.choose(found, len(answer.labels), inputs.seed), best.scores, best.order)
    warnings = (*found.warnings, *few, *_warnings(chosen, found))
    for text in warnings:
        progress.warn(text)
    progress.update(STEPS, STEPS, "step")
    low, high = wilson_interval(hypotheses[0].accuracy, len(answer.labels))
    return Teacher(
        preprocessing=best.preprocessing,
        output=canonical.output.kind,
        batch=canonical.batch,
        classes=canonical.output.classes,
        class_order=dict(best.order.index),
        class_names=_class_names(best.order, inputs.class_names, canonical.output.classes),
        taps=canonical.taps,
        taps_stated=bool(inputs.taps),
        tap_candidates=canonical.tap_candidates,
        accuracy=hypotheses[0].accuracy,
        accuracy_low=low,
        accuracy_high=high,
        images=len(answer.labels),
        hypotheses=hypotheses,
        scalar_inputs=chosen.values,
        parameters=canonical.parameters,
        macs=canonical.macs,
        opset=graph_surgery.opset(vetted),
        producer=f"{vetted.producer_name} {vetted.producer_version}".strip(),
        facts=teacher_facts.measure(inputs, vetted, canonical, out / CANONICAL, best.preprocessing),
        teacher_sha256=inputs.teacher.sha256,
        teacher_bytes=Path(inputs.teacher.path).stat().st_size,
        display_name=inputs.display_name,
        warnings=warnings,
        twin=_twin(out, canonical, values, best.scores, inputs.threads),
    )


def _vetted(inputs: IntakeInputs) -> Any:
    """The guarded model; sizes are asked before anything is read."""
    paths = [Path(inputs.teacher.path), *(Path(file.path) for file in inputs.external_data.values())]
    size = sum(path.stat().st_size for path in paths)
    if size > limits.MODEL_BYTES:
        raise static_guard.too_large(size, limits.MODEL_BYTES)
    blobs = {name: Path(file.path).read_bytes() for name, file in inputs.external_data.items()}
    model = static_guard.vet(paths[0].read_bytes(), blobs)
    graph_surgery.hoist_constants(model)
    return model


def _best_attempt(vetted: Any, found: probe.Catalogue, inputs: IntakeInputs) -> Attempt:
    """The most likely attempt; there is only one for a model whose image is its only input.

    Raises:
        EngineError: of the first binding, where none works.
    """
    attempts, errors = [], []
    for binding in scalar_inputs.bindings(vetted):
        try:
            attempts.append(_attempt(binding, found, inputs))
        except EngineError as error:
            errors.append(error)
    if not attempts:
        raise errors[0]
    return min(attempts, key=lambda attempt: attempt.answer.trials[0].cost)


def _attempt(binding: Binding, found: probe.Catalogue, inputs: IntakeInputs) -> Attempt:
    source = graph_surgery.image_input(binding.model)
    original = class_columns.joined(binding.model)
    stated = inputs.preprocessing
    families = _families(original, source, found, stated)
    example = families[0][0]
    canonical = canonicalisation.canonicalise(
        original,
        example,
        labels=len(found.names),
        stated=len(inputs.class_names),
        stated_taps=inputs.taps,
        seed=inputs.seed,
        threads=inputs.threads,
    )
    session = forward.stranger_session(canonical.model, inputs.threads)

    def run_scores(values: NDArray[Any]) -> NDArray[Any]:
        scores = forward.run_rows(session, values, canonical.batch)[0]
        if scores.shape[1:] != (canonical.output.classes,):
            raise graph_surgery.not_a_classifier(
                f"On noise the teacher gave {canonical.output.classes} scores, on images {list(scores.shape[1:])}."
            )
        return scores

    question = Question(
        run=run_scores,
        macs=canonical.macs,
        images=inputs.images,
        found=found,
        orders=labels.candidate_orders(found.names, inputs.class_names, canonical.output.classes),
        seed=inputs.seed,
    )
    resized = found.sizes > 1 or found.native != (example.height, example.width)
    answer = convention_search.search(question, families, crops=resized and stated.fit is None)
    rivals: tuple[Trial, ...] = ()
    if conventions.is_stated(stated):
        open_question = _families(original, source, found, _only_shape(stated, example.layout))
        rivals = convention_search.search(question, open_question, crops=resized).trials
    return Attempt(
        values=binding.values, original=original, source=source, canonical=canonical, answer=answer, rivals=rivals
    )


def _families(
    model: Any, source: graph_surgery.ModelInput, found: probe.Catalogue, stated: StatedPreprocessing
) -> Families:
    layout = conventions.layout(model, source, stated)
    shape = conventions.image_shape(source, layout, stated, found.native)
    return conventions.hypotheses(layout, source.dtype, shape, stated)


def _only_shape(stated: StatedPreprocessing, layout: str) -> StatedPreprocessing:
    """The statement less what the images can contradict; gray stays gray, as it is a matter of shape."""
    gray = "GRAY" if stated.channels == "GRAY" else None
    return StatedPreprocessing(layout=layout, channels=gray, height=stated.height, width=stated.width)


def _shown(attempt: Attempt) -> list[Trial]:
    """The trials, then those without what the user stated."""
    shown = list(attempt.answer.trials)
    there = {trial.preprocessing for trial in shown}
    return shown + [trial for trial in attempt.rivals if trial.preprocessing not in there]


def _warnings(attempt: Attempt, found: probe.Catalogue) -> list[str]:
    """What the user should know, though the teacher can be used."""
    canonical, best = attempt.canonical, attempt.answer.trials[0]
    warnings = _batch_warnings(attempt)
    if attempt.values:
        values = scalar_inputs.described(attempt.values)
        warnings.append(f"The teacher has inputs beside the image; they are set to what suits the images: {values}.")
    if None in attempt.source.dims[1:]:
        size = f"{best.preprocessing.height} x {best.preprocessing.width}"
        warnings.append(f"The teacher leaves its image size open; {size} is used. State height and width to change it.")
    without = canonical.output.classes - len(found.names) - max(0, best.order.offset)
    if without:
        warnings.append(f"{without} of the teacher's {canonical.output.classes} classes have no labelled image.")
    if without == 1 and best.order.source == "sorted":
        (gap,) = set(range(canonical.output.classes)) - set(best.order.index.values())
        warnings.append(f"Output {gap} is taken for the class without labelled images; state class names to fix it.")
    if best.order.source == "assigned":
        warnings.append("Which output belongs to which label was found from the images; state class names to fix it.")
    return warnings + _accuracy_warnings(attempt) + _tie_warnings(attempt)


def _batch_warnings(attempt: Attempt) -> list[str]:
    batch = attempt.canonical.batch
    if batch is None:
        return []
    if any(node.op_type in graph_surgery.BATCH_DEPENDENT for node in attempt.canonical.model.graph.node):
        return [f"The teacher's quantisation follows the batch that it is given; it is always run at batch {batch}."]
    return [f"The teacher can't be run at any batch size; it is always run at {batch}."]


def _better_than_stated(attempt: Attempt) -> Trial | None:
    """What suits the images better than the user's statement; None where nothing clearly does."""
    rival = next(iter(attempt.rivals), None)
    return rival if rival is not None and trials.significantly_better(rival, attempt.answer.trials[0]) else None


def _accuracy_warnings(attempt: Attempt) -> list[str]:
    best, labelled = attempt.answer.trials[0], attempt.answer.labels
    share = labels.unfitted_accuracy(best.scores, best.order, labelled)
    if wilson_interval(share, len(labelled))[1] >= LOW_ACCURACY:
        return []
    text = f"The teacher is right on only {share:.1%} of {len(labelled)} labelled images."
    return [f"{text} Check that they are of its task and rightly labelled: a student learns what its teacher says."]


def _tie_warnings(attempt: Attempt) -> list[str]:
    best, count = attempt.answer.trials[0], len(attempt.answer.labels)
    predictions = best.scores.argmax(axis=1)
    tied = [
        f"{conventions.name(trial.preprocessing)} ({(trial.scores.argmax(axis=1) == predictions).mean():.1%})"
        for trial in trials.ties(attempt.answer.trials)
    ]
    warnings = []
    if tied:
        warnings.append(
            f"{count} labelled images can't tell the preprocessing found, {conventions.name(best.preprocessing)}, from "
            f"others whose predictions agree with it on so many of them: {', '.join(tied)}. State it if you know it."
        )
    rival = _better_than_stated(attempt)
    if rival is not None:
        warnings.append(
            f"The stated preprocessing is used, but {conventions.describe(rival.preprocessing)} suits the labelled "
            f"images better: log loss {rival.nll:.3f} against {best.nll:.3f}. Leave the statement out to use it."
        )
    return warnings


def _class_names(order: ClassOrder, stated: Sequence[str], classes: int) -> tuple[str, ...]:
    """A name for each output: stated, else its label, else its number counted as the labels are.

    Raises:
        EngineError: LABELS_UNMAPPABLE where two outputs would have one name.
    """
    known = {index + order.offset: name for index, name in enumerate(stated)}
    known |= {index: name for name, index in order.index.items()}
    taken = set(known.values())
    names = []
    for index in range(classes):
        number = "background" if index < order.offset else str(index - order.offset)
        names.append(known.get(index, f"output {index}" if number in taken else number))
    if len(set(names)) < classes:
        twice = next(name for name in names if names.count(name) > 1)
        raise labels.unmappable(f"Two of the teacher's outputs would be named {twice!r}.", name=twice)
    return tuple(names)


def _write(out: Path, canonical: Canonical, found: probe.Catalogue, order: ClassOrder) -> None:
    write_atomic(out / CANONICAL, static_guard.canonical_bytes(canonical.model))
    write_atomic(out / "tapped.onnx", static_guard.canonical_bytes(canonical.tapped))
    rows = [
        LabelledEntry(key=key, label=label, index=order.index[label], held_out=put_aside, sha256=digest)
        for key, label, put_aside, digest in zip(found.keys, found.labels, found.held_out, found.digests, strict=True)
    ]
    write_atomic(out / "labelled.json", json.dumps([to_json(row) for row in rows], indent=1).encode())


def _twin(out: Path, canonical: Canonical, values: NDArray[Any], logits: NDArray[Any], threads: int) -> TwinReport:
    """The teacher in torch, proved on the images of the probe."""
    from pu_engine.twin import proof as twin_proof  # imports torch: 2 s and 560 MiB of address space

    return twin_proof.prove(
        out, canonical.tapped, values, logits, macs=canonical.macs, batch=canonical.batch, threads=threads
    )
