"""The stage that writes what intake found: `inspection.json`, the form of `punnet inspect --json`, and a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pu_engine.jsonform import to_json
from pu_engine.pages import inspection_page, inspection_samples
from pu_engine.pages.inspection_samples import Confusion
from pu_engine.pages.inspection_types import Inspection, InspectionInputs
from pu_engine.progress import Progress
from pu_engine.results import load, write_atomic
from pu_engine.teacher import probed
from pu_engine.teacher.conventions import scaling_name
from pu_engine.types import Teacher

FILE, PAGE = "inspection.json", "inspection.html"
NOTES = (
    "The teacher may have been trained on some of these labelled images: its accuracy on them then flatters it.",
    "Log loss and agreement tell conventions apart; how good the teacher is, images that it never saw say better.",
)


def run(inputs: InspectionInputs, out: Path, progress: Progress) -> Inspection:
    """Write `inspection.json`, whose keys are stable, and `inspection.html`.

    Raises:
        EngineError: what reading says of a labelled image.
    """
    teacher = load(Teacher, inputs.intake.path)
    found = probed.read(Path(inputs.intake.path))
    document = as_json(teacher, inspection_samples.confusions(found, teacher.class_names))
    write_atomic(out / FILE, json.dumps(document, indent=1, allow_nan=False).encode())
    progress.update(1, 2, "file")
    shown = [
        inspection_samples.samples(rows, found, inputs.images, teacher.preprocessing, teacher.class_names)
        for rows in inspection_samples.chosen_rows(found)
    ]
    page = inspection_page.render(document, teacher.preprocessing, right=shown[0], wrong=shown[1])
    write_atomic(out / PAGE, page.encode())
    progress.update(2, 2, "file")
    return Inspection(artifacts=(FILE, PAGE))


def as_json(teacher: Teacher, confusions: Sequence[Confusion]) -> dict[str, Any]:
    """The findings by their stable keys."""
    found, facts = teacher.preprocessing, teacher.facts
    return {
        "name": teacher.display_name,
        "layout": found.layout,
        "channels": found.channels,
        "scale": found.scale,
        "mean": list(found.mean),
        "std": list(found.std),
        "scaling": scaling_name(found),
        "dtype": found.dtype,
        "size": [found.height, found.width],
        "fit": found.fit,
        "scalar_inputs": dict(teacher.scalar_inputs),
        "batch": "dynamic" if teacher.batch is None else teacher.batch,
        "output": teacher.output,
        "classes": teacher.classes,
        "class_names": list(teacher.class_names),
        "class_order": dict(teacher.class_order),
        "accuracy": teacher.accuracy,
        "accuracy_low": teacher.accuracy_low,
        "accuracy_high": teacher.accuracy_high,
        "images": teacher.images,
        "warnings": list(teacher.warnings),
        "notes": list(NOTES),
        "hypotheses": [to_json(row) for row in teacher.hypotheses],
        "confusions": [to_json(pair) for pair in confusions],
        "taps": [to_json(tap) for tap in teacher.taps],
        "taps_stated": teacher.taps_stated,
        "tap_candidates": [to_json(row) for row in teacher.tap_candidates],
        "bytes": teacher.teacher_bytes,
        "sha256": teacher.teacher_sha256,
        "parameters": teacher.parameters,
        "macs": teacher.macs,
        "activation_bytes": facts.activation_bytes,
        "opset": teacher.opset,
        "opsets": dict(facts.opsets),
        "ir_version": facts.ir_version,
        "producer": teacher.producer,
        "operators": dict(facts.operators),
        "tensorrt": to_json(facts.tensorrt),
        "latencies": [to_json(row) for row in facts.latencies],
        "twin": None if teacher.twin is None else to_json(teacher.twin),
    }
