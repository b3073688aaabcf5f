"""Intake: a stranger's ONNX file and labelled images become a Teacher whose conventions were tested."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pu_engine import conventions, facts, forward, graph_surgery, guard, guard_limits, labels, probe, score_output, taps
from pu_engine.conventions import Trial
from pu_engine.errors import EngineError
from pu_engine.graph_surgery import INPUT, LOGITS
from pu_engine.jsonform import to_json
from pu_engine.labels import ClassOrder
from pu_engine.preprocessing import image_channels
from pu_engine.progress import Progress
from pu_engine.results import write_atomic
from pu_engine.score_output import ScoreOutput
from pu_engine.types import IntakeInputs, LabelledEntry, Preprocessing, Tap, Teacher

STEPS = 6
# A probe's cost is bounded in multiply-accumulates, not seconds: the same file gets the same images on any machine.
PROBE_MACS = 60e9
SCREENED_IMAGES, PROBED_IMAGES = (20, 60), (40, 200)  # fewest and most
FINALISTS = 6
PROOF_IMAGES = 5
BATCH_ERROR = {"float32": 1e-4, "float16": 5e-3, "uint8": 1e-4, "int8": 1e-4}  # relative to the largest score
PARITY_ERROR = 2e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Canonical:
    """The canonical model, with what was measured on the way to it."""

    model: Any
    batch: int | None
    output: ScoreOutput
    taps: tuple[Tap, ...]
    parameters: int
    macs: int


def run(inputs: IntakeInputs, out: Path, progress: Progress) -> Teacher:
    """Vet the model, free it of its conventions, and find them out with the labelled images.

    Writes `canonical.onnx`, `tapped.onnx` and `labelled.json`.

    Raises:
        EngineError: what the guard, the images or the probe refuse.
    """
    original = _read_model(inputs)
    progress.update(1, STEPS, "step")
    found = probe.catalogue(inputs.images, inputs.seed)
    warnings = list(found.warnings)
    source = graph_surgery.image_input(original)
    layout = conventions.layout(original, source, inputs.preprocessing.layout)
    shape = conventions.image_shape(source, layout, inputs.preprocessing, found.native)
    candidates = conventions.hypotheses(layout, source.dtype, shape, inputs.preprocessing)
    progress.update(2, STEPS, "step")
    canonical = _canonical(original, source.dims[0], candidates[0], found, inputs)
    if canonical.batch is not None:
        warnings.append(f"The teacher's scores depend on its batch size; it is always run at {canonical.batch}.")
    progress.update(3, STEPS, "step")
    images, image_labels, trials = _probe(canonical, candidates, found, inputs)
    order = labels.settle(trials[0].scores, image_labels, _orders(found, canonical, inputs))
    hypotheses = conventions.table(trials, image_labels)
    conventions.check_above_chance(trials[0].scores, order, image_labels, hypotheses)
    warnings += _tie_warnings(trials)
    progress.update(4, STEPS, "step")
    preprocessing = trials[0].preprocessing
    _check_parity(original, source.dims[0], canonical, images, trials[0], inputs.threads)
    progress.update(5, STEPS, "step")
    right = int((trials[0].scores.argmax(axis=1) == order.of(image_labels)).sum())
    low, high = conventions.wilson(right, len(image_labels))
    _write(out, canonical, found, order)
    for text in warnings:
        progress.warn(text)
    progress.update(STEPS, STEPS, "step")
    return Teacher(
        preprocessing=preprocessing,
        output=canonical.output.kind,
        batch=canonical.batch,
        classes=canonical.output.classes,
        class_order=dict(order.index),
        class_names=_class_names(order, inputs.class_names, canonical.output.classes),
        taps=canonical.taps,
        accuracy=right / len(image_labels),
        accuracy_low=low,
        accuracy_high=high,
        images=len(image_labels),
        hypotheses=hypotheses,
        parameters=canonical.parameters,
        macs=canonical.macs,
        opset=graph_surgery.opset(original),
        producer=f"{original.producer_name} {original.producer_version}".strip(),
        teacher_sha256=inputs.teacher.sha256,
        teacher_bytes=Path(inputs.teacher.path).stat().st_size,
        display_name=inputs.display_name,
        warnings=tuple(warnings),
    )


def _read_model(inputs: IntakeInputs) -> Any:
    size = Path(inputs.teacher.path).stat().st_size
    if size > guard_limits.MODEL_BYTES:
        raise guard.too_large(size, guard_limits.MODEL_BYTES)
    blobs = {name: Path(file.path).read_bytes() for name, file in inputs.external_data.items()}
    model = guard.vet(Path(inputs.teacher.path).read_bytes(), blobs)
    graph_surgery.hoist_constants(model)
    return model


def _canonical(
    original: Any, declared: int | None, any_of: Preprocessing, found: probe.Catalogue, inputs: IntakeInputs
) -> Canonical:
    """Surgery on the score output, then the proof of the batch, taps and facts; noise images answer all of it."""
    generator = np.random.default_rng(inputs.seed)
    batch = declared or 1
    rows = conventions.random_images(batch, any_of, generator)
    found_tails = score_output.tails(original)
    names = list(dict.fromkeys(name for tail in found_tails for name in (tail.output, tail.logits)))
    values = forward.observe(original, names, rows, inputs.threads)
    output = score_output.choose(original, found_tails, values, batch, len(found.names), len(inputs.class_names))
    fixed = graph_surgery.canonical(
        original, output.tail, values[output.tail.logits], rows.shape, probabilities=output.logarithm
    )
    proof_rows = conventions.random_images(PROOF_IMAGES, any_of, generator)
    freed = graph_surgery.free_batch(fixed, rewrite=declared is not None)
    free = _batch_is_free(fixed, freed, batch, proof_rows, any_of.dtype, inputs.threads)
    cut_names = taps.candidates(fixed)
    wanted = list(dict.fromkeys([*cut_names, *facts.shape_names(fixed), LOGITS]))
    observed = {**forward.observe(fixed, wanted, rows, inputs.threads), INPUT: rows}
    return Canonical(
        model=freed if free else fixed,
        batch=None if free else batch,
        output=output,
        taps=tuple(taps.choose(fixed, cut_names, observed)),
        parameters=facts.parameters(fixed),
        macs=facts.macs(fixed, observed, batch),
    )


def _batch_is_free(fixed: Any, freed: Any, batch: int, rows: NDArray[Any], dtype: str, threads: int) -> bool:
    """Whether several images at once get the scores that each gets alone."""
    alone = forward.run_rows(forward.stranger_session(fixed, threads), rows, batch)[0]
    try:
        together = forward.run_rows(forward.stranger_session(freed, threads), rows, None)[0]
    except EngineError:
        return False  # a reshape that could not be rewritten
    if together.shape != alone.shape or not np.isfinite(alone).all():
        return together.shape == alone.shape
    return bool(np.abs(together - alone).max() <= BATCH_ERROR[dtype] * max(1e-30, float(np.abs(alone).max())))


def _orders(found: probe.Catalogue, canonical: Canonical, inputs: IntakeInputs) -> list[ClassOrder]:
    return labels.candidate_orders(found.names, inputs.class_names, canonical.output.classes)


def _probe(
    canonical: Canonical, candidates: Sequence[Preprocessing], found: probe.Catalogue, inputs: IntakeInputs
) -> tuple[NDArray[np.uint8], list[str], list[Trial]]:
    """Screen all hypotheses on few images, then rank the best on more."""
    session = forward.stranger_session(canonical.model, inputs.threads)

    def run_scores(values: NDArray[Any]) -> NDArray[Any]:
        return forward.run_rows(session, values, canonical.batch)[0]

    few = _affordable(canonical.macs, len(candidates), SCREENED_IMAGES, len(found.names))
    many = max(few, _affordable(canonical.macs, FINALISTS, PROBED_IMAGES, len(found.names)))
    chosen = probe.choose(found, many, inputs.seed)
    first = candidates[0]
    images = probe.decode(inputs.images, chosen, first.height, first.width, image_channels(first))
    image_labels = [found.labels[index] for index in chosen]
    orders = _orders(found, canonical, inputs)
    screened = conventions.try_all(run_scores, images[:few], image_labels[:few], candidates, orders)
    finalists = [trial.preprocessing for trial in screened[:FINALISTS]]
    return images, image_labels, conventions.try_all(run_scores, images, image_labels, finalists, orders)


def _affordable(macs: int, hypotheses: int, bounds: tuple[int, int], classes: int) -> int:
    """Images for each hypothesis; two a class where the bounds allow."""
    fewest, most = bounds
    return int(np.clip(PROBE_MACS / max(1, macs * hypotheses), fewest, max(most, min(2 * classes, 4 * most))))


def _tie_warnings(trials: Sequence[Trial]) -> list[str]:
    best = trials[0].scores.argmax(axis=1)
    return [
        f"The images can't tell {conventions.describe(tied.preprocessing)} from the preprocessing found; "
        f"predictions agree on {(tied.scores.argmax(axis=1) == best).mean():.1%}."
        for tied in conventions.ties(trials)
    ]


def _check_parity(
    original: Any, declared: int | None, canonical: Canonical, images: NDArray[np.uint8], best: Trial, threads: int
) -> None:
    """The canonical model, put back into the file's own kind of scores, must say what the file says."""
    output = canonical.output
    session = forward.stranger_session(forward.with_outputs(original, [output.tail.output]), threads)
    values = conventions.model_input(images, best.preprocessing)
    theirs = forward.run_rows(session, values, declared or canonical.batch)[0].reshape(len(images), -1)
    theirs = (theirs.astype(np.float64) - output.tail.zero_point) * output.tail.scale
    ours = score_output.as_in_file(best.scores, output)
    error = float(np.abs(ours - theirs).max())
    bound = PARITY_ERROR * float(np.abs(theirs).max()) + output.tail.step
    if not error <= bound:
        raise EngineError(
            "PARITY_FAILED",
            f"The canonical copy's scores differ from the file's by up to {error:.3g}; {bound:.3g} is allowed.",
            "Export the teacher with its logits as output.",
            hop="teacher -> canonical",
            error=error,
            bound=bound,
        )


def _class_names(order: ClassOrder, stated: Sequence[str], classes: int) -> tuple[str, ...]:
    names = [str(index) for index in range(classes)]
    for index, name in enumerate(stated):
        names[index + order.offset] = name
    for name, index in order.index.items():
        names[index] = name
    return tuple(names)


def _write(out: Path, canonical: Canonical, found: probe.Catalogue, order: ClassOrder) -> None:
    write_atomic(out / "canonical.onnx", guard.canonical_bytes(canonical.model))
    write_atomic(out / "tapped.onnx", guard.canonical_bytes(taps.tapped(canonical.model, canonical.taps)))
    rows = [
        LabelledEntry(key=key, label=label, index=order.index[label], held_out=put_aside)
        for key, label, put_aside in zip(found.keys, found.labels, found.held_out, strict=True)
    ]
    write_atomic(out / "labelled.json", json.dumps([to_json(row) for row in rows], indent=1).encode())
