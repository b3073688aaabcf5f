"""The stage that writes what intake found as `inspection.json`, the form of `punnet inspect --json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pu_engine.jsonform import to_json
from pu_engine.progress import Progress
from pu_engine.results import load, write_atomic
from pu_engine.types import Inspection, InspectionInputs, Teacher

FILE = "inspection.json"


def run(inputs: InspectionInputs, out: Path, progress: Progress) -> Inspection:
    """Write `inspection.json`; its keys are stable."""
    teacher = load(Teacher, inputs.intake.path)
    write_atomic(out / FILE, json.dumps(as_json(teacher), indent=1, allow_nan=False).encode())
    progress.update(1, 1, "file")
    return Inspection(artifacts=(FILE,))


def as_json(teacher: Teacher) -> dict[str, Any]:
    """The findings by their stable keys."""
    found = teacher.preprocessing
    return {
        "layout": found.layout,
        "channels": found.channels,
        "scale": found.scale,
        "mean": list(found.mean),
        "std": list(found.std),
        "dtype": found.dtype,
        "size": [found.height, found.width],
        "batch": "dynamic" if teacher.batch is None else teacher.batch,
        "output": teacher.output,
        "classes": teacher.classes,
        "class_order": dict(teacher.class_order),
        "accuracy": teacher.accuracy,
        "accuracy_low": teacher.accuracy_low,
        "accuracy_high": teacher.accuracy_high,
        "images": teacher.images,
        "warnings": list(teacher.warnings),
        "hypotheses": [to_json(row) for row in teacher.hypotheses],
        "taps": [to_json(tap) for tap in teacher.taps],
        "parameters": teacher.parameters,
        "macs": teacher.macs,
        "opset": teacher.opset,
        "producer": teacher.producer,
    }
