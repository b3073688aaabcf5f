"""Intake: a stranger's ONNX file and labelled images become a Teacher whose conventions were tested."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pu_engine import canonicalisation, conventions, forward, graph_surgery, guard, guard_limits, labels, probe
from pu_engine.agreement import wilson_interval
from pu_engine.canonicalisation import Canonical
from pu_engine.conventions import Trial
from pu_engine.jsonform import to_json
from pu_engine.labels import ClassOrder
from pu_engine.preprocessing import image_channels, model_input
from pu_engine.progress import Progress
from pu_engine.results import write_atomic
from pu_engine.types import IntakeInputs, LabelledEntry, Preprocessing, Teacher

STEPS = 5
# A probe's cost is bounded in multiply-accumulates, not seconds: the same file gets the same images on any machine.
PROBE_MACS = 60e9
SCREENED_IMAGES, PROBED_IMAGES = (20, 60), (40, 200)  # fewest and most
FINALISTS = 6
IMAGES_PER_CLASS = 3  # tried for teachers of many classes, beyond the usual most


def run(inputs: IntakeInputs, out: Path, progress: Progress) -> Teacher:
    """Vet the model, free it of its conventions, and find them out with the labelled images.

    Writes `canonical.onnx`, `tapped.onnx` and `labelled.json`.

    Raises:
        EngineError: what the guard, the images or the probe refuse.
    """
    original = _vetted(inputs)
    progress.update(1, STEPS, "step")
    found = probe.catalogue(inputs.images, inputs.seed)
    source = graph_surgery.image_input(original)
    candidates = _candidates(original, source, found, inputs)
    progress.update(2, STEPS, "step")
    canonical = canonicalisation.canonicalise(
        original,
        candidates[0],
        labels=len(found.names),
        stated=len(inputs.class_names),
        seed=inputs.seed,
        threads=inputs.threads,
    )
    progress.update(3, STEPS, "step")
    images, image_labels, trials = _probe(canonical, candidates, found, inputs)
    best, hypotheses = trials[0], conventions.table(trials, image_labels)
    few = conventions.check_above_chance(best.scores, best.order, image_labels, hypotheses)
    labels.check_seen(best.scores, image_labels, best.order)
    progress.update(4, STEPS, "step")
    values = model_input(images, best.preprocessing)
    canonicalisation.check_parity(original, canonical, values, best.scores, inputs.threads)
    _write(out, canonical, found, best.order)
    warnings = (*found.warnings, *few, *_warnings(canonical, source, found, trials))
    for text in warnings:
        progress.warn(text)
    progress.update(STEPS, STEPS, "step")
    low, high = wilson_interval(hypotheses[0].accuracy, len(image_labels))
    return Teacher(
        preprocessing=best.preprocessing,
        output=canonical.output.kind,
        batch=canonical.batch,
        classes=canonical.output.classes,
        class_order=dict(best.order.index),
        class_names=_class_names(best.order, inputs.class_names, canonical.output.classes),
        taps=canonical.taps,
        accuracy=hypotheses[0].accuracy,
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
        warnings=warnings,
    )


def _vetted(inputs: IntakeInputs) -> Any:
    """The guarded model; sizes are asked before anything is read."""
    paths = [Path(inputs.teacher.path), *(Path(file.path) for file in inputs.external_data.values())]
    size = sum(path.stat().st_size for path in paths)
    if size > guard_limits.MODEL_BYTES:
        raise guard.too_large(size, guard_limits.MODEL_BYTES)
    blobs = {name: Path(file.path).read_bytes() for name, file in inputs.external_data.items()}
    model = guard.vet(paths[0].read_bytes(), blobs)
    graph_surgery.hoist_constants(model)
    return model


def _candidates(
    original: Any, source: graph_surgery.ModelInput, found: probe.Catalogue, inputs: IntakeInputs
) -> list[Preprocessing]:
    layout = conventions.layout(original, source, inputs.preprocessing)
    shape = conventions.image_shape(source, layout, inputs.preprocessing, found.native)
    return conventions.hypotheses(layout, source.dtype, shape, inputs.preprocessing)


def _probe(
    canonical: Canonical, candidates: Sequence[Preprocessing], found: probe.Catalogue, inputs: IntakeInputs
) -> tuple[NDArray[np.uint8], list[str], list[Trial]]:
    """Screen all hypotheses on few images, then rank the best of them on more."""
    session = forward.stranger_session(canonical.model, inputs.threads)

    def run_scores(values: NDArray[Any]) -> NDArray[Any]:
        return forward.run_rows(session, values, canonical.batch)[0]

    few = _affordable(canonical.macs * len(candidates), SCREENED_IMAGES, len(found.names))
    many = max(few, _affordable(canonical.macs * FINALISTS, PROBED_IMAGES, len(found.names)))
    chosen = probe.choose(found, many, inputs.seed)
    first = candidates[0]
    images = probe.decode(inputs.images, chosen, first.height, first.width, image_channels(first))
    image_labels = [found.labels[index] for index in chosen]
    orders = labels.candidate_orders(found.names, inputs.class_names, canonical.output.classes)
    screened = conventions.try_all(run_scores, images[:few], image_labels[:few], candidates, orders)
    finalists = [trial.preprocessing for trial in screened[:FINALISTS]]
    return images, image_labels, conventions.try_all(run_scores, images, image_labels, finalists, orders)


def _affordable(macs: int, bounds: tuple[int, int], classes: int) -> int:
    """Images to run, for so many multiply-accumulates an image; more of them for many classes."""
    fewest, most = bounds
    return int(np.clip(PROBE_MACS / max(1, macs), fewest, max(most, min(IMAGES_PER_CLASS * classes, 4 * most))))


def _warnings(
    canonical: Canonical, source: graph_surgery.ModelInput, found: probe.Catalogue, trials: Sequence[Trial]
) -> list[str]:
    """What the user should know, though the teacher can be used."""
    best = trials[0]
    warnings = []
    if canonical.batch is not None:
        warnings.append(f"The teacher can't be run at any batch size; it is always run at {canonical.batch}.")
    if None in source.dims[1:]:
        size = f"{best.preprocessing.height} x {best.preprocessing.width}"
        warnings.append(f"The teacher leaves its image size open; {size} is used. State height and width to change it.")
    without = canonical.output.classes - len(found.names) - max(0, best.order.offset)
    if without:
        warnings.append(f"{without} of the teacher's {canonical.output.classes} classes have no labelled image.")
    if without == 1 and best.order.source == "sorted":
        (gap,) = set(range(canonical.output.classes)) - set(best.order.index.values())
        warnings.append(f"Output {gap} is taken for the class without labelled images; state class_names to fix it.")
    if best.order.source == "assigned":
        warnings.append("Which output belongs to which label was found from the images; state class_names to fix it.")
    predictions = best.scores.argmax(axis=1)
    for tied in conventions.ties(trials):
        agreement = (tied.scores.argmax(axis=1) == predictions).mean()
        warnings.append(
            f"The images can't tell {conventions.describe(tied.preprocessing)} from the preprocessing found; "
            f"predictions agree on {agreement:.1%}."
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
    write_atomic(out / "canonical.onnx", guard.canonical_bytes(canonical.model))
    write_atomic(out / "tapped.onnx", guard.canonical_bytes(canonical.tapped))
    rows = [
        LabelledEntry(key=key, label=label, index=order.index[label], held_out=put_aside, sha256=digest)
        for key, label, put_aside, digest in zip(found.keys, found.labels, found.held_out, found.digests, strict=True)
    ]
    write_atomic(out / "labelled.json", json.dumps([to_json(row) for row in rows], indent=1).encode())
