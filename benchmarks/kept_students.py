"""Students that `benchmarks.exports --keep` leaves for other benchmarks: ONNX files, and images as input tensors.

A folder a student: its ONNX files and `student.json`; `calibration.npy` [n, C, S, S] float32, what int8 was calibrated
on; likewise `validation.npy`, what its candidates were compared on, with the teacher's classes [n] int64 in
`validation.answers.npy`; `compared.npy`, the images of the gates; `measured.npy`, test images, their true classes in
`measured.labels.npy`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.export_students import Trained
from pu_engine.imaging.preprocessing import model_input
from pu_engine.jsonform import from_json, to_json
from pu_engine.student.files import load_student
from pu_engine.training.batches import load_part
from pu_engine.types import Variants
from pu_engine.variants.sample_images import calibration_and_validation

FACTS = "student.json"
BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFile:
    """An ONNX file that a job's export stage made."""

    path: str  # below the student's folder
    size: int  # bytes
    seconds: float  # what finding it took; int8's calibration is shared and not in it
    passed: bool  # its gate
    details: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptStudent:
    """What `student.json` says."""

    name: str
    size: int  # pixels
    steps: int
    files: Mapping[str, KeptFile]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """Input tensors [n, C, S, S] float32, read from the disk as they are used, and classes [n]."""

    calibration: NDArray[np.float32]
    validation: NDArray[np.float32]
    compared: NDArray[np.float32]
    measured: NDArray[np.float32]
    answers: NDArray[np.int64]  # the teacher's, of the validation images
    labels: NDArray[np.int64]  # true ones, of the measured images


def keep(
    trained: Trained, exported: Variants, passed: Mapping[str, bool], pixels: NDArray[np.uint8],
    labels: NDArray[np.int64], *, export: Path, folder: Path,
) -> None:  # fmt: skip
    """Write a student's folder; `student.json` comes last, so that one which has it is whole.

    Args:
        pixels: test images [n, S, S, C] with their classes [n].
        export: the folder of the export stage.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec, _ = load_student(Path(trained.distillation.path))
    gathered = Path(trained.gathering.path)
    calibration, validation = calibration_and_validation(gathered, spec.preprocessing)
    seen = [load_part(gathered, name, labelled=False).images for name in ("parity", "held_out")]
    for name, sample in (("calibration", calibration), ("validation", validation)):
        np.save(folder / f"{name}.npy", np.concatenate(list(sample.batches(BATCH))))
    for name, images in (("compared", np.concatenate(seen)), ("measured", pixels)):
        np.save(folder / f"{name}.npy", np.asarray(model_input(images, spec.preprocessing), np.float32))
    np.save(folder / "validation.answers.npy", validation.teacher_answers())
    np.save(folder / "measured.labels.npy", labels)
    files = {}
    for variant in (v for v in exported.variants if v.format == "onnx"):
        shutil.copyfile(export / variant.path, folder / variant.path)
        files[variant.name] = KeptFile(
            path=variant.path, size=variant.size, seconds=variant.seconds, passed=passed[variant.name],
            details=variant.details,
        )  # fmt: skip
    recipe = trained.recipe
    facts = KeptStudent(name=recipe.name, size=recipe.size, steps=recipe.steps, files=files)
    (folder / FACTS).write_text(json.dumps(to_json(facts), indent=1) + "\n")


def kept_students(folder: Path) -> dict[str, KeptStudent]:
    """The students of a folder by name; none where there is no such folder."""
    found: list[KeptStudent] = [_read(path) for path in sorted(folder.glob(f"*/{FACTS}"))]
    return {student.name: student for student in found}


def inputs_of(folder: Path) -> Inputs:
    """A student's arrays."""
    load: Any = lambda name: np.load(folder / name, mmap_mode="r", allow_pickle=False)  # noqa: E731
    return Inputs(
        calibration=load("calibration.npy"), validation=load("validation.npy"), compared=load("compared.npy"),
        measured=load("measured.npy"), answers=load("validation.answers.npy"), labels=load("measured.labels.npy"),
    )  # fmt: skip


def _read(path: Path) -> KeptStudent:
    return from_json(KeptStudent, json.loads(path.read_text()))
