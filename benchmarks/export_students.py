"""Students for `benchmarks.exports`: briefly distilled from a real teacher whose answers are computed once."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.scoring_subjects import as_png, named, pool_members
from benchmarks.teacher_images import LabelledBytes, images_of, write_tar
from pu_engine import distillation
from pu_engine.compression import run_stages
from pu_engine.imaging.images import decode_resized, resize
from pu_engine.imaging.preprocessing import model_input
from pu_engine.pipeline import INTAKE
from pu_engine.progress import SilentProgress
from pu_engine.results import build_manifest, load, write_atomic
from pu_engine.runtime.sessions import open_session
from pu_engine.training.distill_types import DistillationOptions
from pu_engine.types import (
    DistillationInputs,
    Folder,
    StudentOptions,
    Teacher,
    TrainingSet,
)

TEACHER = "cifar10_resnet56.onnx"
SENT_PER_CLASS, PARITY = 20, 256
PICKED_NUMBERS, HELD_OUT_NUMBERS = range(400), range(400, 420)  # members of the train archive, of each class
BATCH, LEARNING_RATE = 64, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A student and how long it is trained."""

    name: str
    size: int
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A student with the stages that it came out of."""

    recipe: Recipe
    intake: Folder
    gathering: Folder
    distillation: Folder


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pixels:
    """Images [n, 32, 32, 3] with the teacher's logits of image and mirror [n, 2, K] and true classes [n]."""

    images: NDArray[np.uint8]
    targets: NDArray[np.float32]
    labels: NDArray[np.int64]


def take_in(data: Path, teachers: Path, work: Path) -> Folder:
    """The teacher's intake, as in a job."""
    work.mkdir(parents=True, exist_ok=True)
    sent = images_of("cifar10-jpeg", data).first(SENT_PER_CLASS)
    write_tar(
        work / "labelled.tar", [LabelledBytes(label=i.label, name=f"{i.name}.png", data=as_png(i.data)) for i in sent]
    )
    spec = {
        "teacher": named(teachers / TEACHER), "display_name": TEACHER, "images": {"tar": named(work / "labelled.tar")},
        "seed": 0,
    }  # fmt: skip
    folders = dict(run_stages((INTAKE,), spec, work / "stages", threads=1, progress=SilentProgress()))
    return Folder(**folders["intake"])


def ask_teacher(intake: Folder, data: Path, picked: int) -> dict[str, Pixels]:
    """The parts of a training set, with the teacher's answers."""
    found = images_of("cifar10-jpeg", data)
    sent = found.first(SENT_PER_CLASS)
    others = train_members(data, {f"{i.label}/{i.name}" for i in found.sent})
    parity = [m.data or b"" for m in islice(pool_members(data / "pool"), PARITY)]
    parts = {
        "labelled": sent,
        "picked": [i for i in others if _number(i) in PICKED_NUMBERS][:picked],
        "held_out": [i for i in others if _number(i) in HELD_OUT_NUMBERS],
    }
    answered = {
        name: _answered(intake, [i.data for i in images], [found.classes.index(i.label) for i in images])
        for name, images in parts.items()
    }
    return {**answered, "parity": _answered(intake, parity, [0] * len(parity))}


def train_members(data: Path, excluded: set[str]) -> list[LabelledBytes]:
    """Members of the train archive with small numbers, classes by turns, without those that were sent."""
    wanted = {*PICKED_NUMBERS, *HELD_OUT_NUMBERS}
    rows = []
    with tarfile.open(data / "cifar10-train.tar.gz", "r:gz") as tar:
        for member in tar:
            label, _, name = member.name.rpartition("/")
            label = label.rpartition("/")[2]
            if not member.isfile() or int(Path(name).stem) not in wanted or f"{label}/{name}" in excluded:
                continue
            file = tar.extractfile(member)
            rows.append(LabelledBytes(label=label, name=name, data=b"" if file is None else file.read()))
    return sorted(rows, key=lambda i: (i.name, i.label))


def train(recipe: Recipe, intake: Folder, parts: dict[str, Pixels], work: Path) -> Trained:
    """Distil a student on the parts, at its own size."""
    gathering, trained = work / "gathering", work / "distillation"
    for folder in (gathering, trained):
        folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        np.save(gathering / f"{name}.images.npy", sized(part.images, recipe.size))
        np.save(gathering / f"{name}.targets.npy", part.targets)
        if name in ("labelled", "held_out"):
            np.save(gathering / f"{name}.labels.npy", part.labels)
    classes = load(Teacher, intake.path).classes
    counts = {name: len(part.images) for name, part in parts.items()}
    arrays = TrainingSet(
        size=recipe.size, fit="stretch", channels=3, classes=classes, **counts, parity_unpicked=counts["parity"]
    )
    finished = _finish(gathering, arrays)
    inputs = DistillationInputs(
        intake=intake,
        gathering=finished,
        student=StudentOptions(name=recipe.name),
        distillation=DistillationOptions(steps=recipe.steps, batch_size=BATCH, learning_rate=LEARNING_RATE),
    )
    student = distillation.run(inputs, trained, SilentProgress())
    return Trained(recipe=recipe, intake=intake, gathering=finished, distillation=_finish(trained, student))


def measured_pixels(data: Path, per_class: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Test images [n, 32, 32, 3] with their classes [n]: they measure, nothing is chosen by them."""
    found = images_of("cifar10-jpeg", data)
    counts = dict.fromkeys(found.classes, 0)
    kept = []
    for image in found.measured:
        counts[image.label] += 1
        if counts[image.label] <= per_class:
            kept.append(image)
    return _pixels([i.data for i in kept]), np.array([found.classes.index(i.label) for i in kept])


def sized(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The images at a student's size."""
    return images if images.shape[1] == side else np.stack([resize(image, side, side) for image in images])


def _answered(intake: Folder, contents: Sequence[bytes], labels: Sequence[int]) -> Pixels:
    teacher = load(Teacher, intake.path)
    session = open_session(Path(intake.path) / "canonical.onnx", threads=1, fold_constants=False)
    images = _pixels(contents)
    views = [
        np.concatenate([
            session.run(None, {"input": model_input(view[start : start + BATCH], teacher.preprocessing)})[0]
            for start in range(0, len(view), BATCH)
        ])
        for view in (images, images[:, :, ::-1])
    ]  # fmt: skip
    return Pixels(images=images, targets=np.stack(views, axis=1), labels=np.array(labels, np.int64))


def _pixels(contents: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.stack([decode_resized(content, 32, 32, 3) for content in contents])


def _number(image: LabelledBytes) -> int:
    return int(Path(image.name).stem)


def _finish(folder: Path, result: object) -> Folder:
    manifest = build_manifest(folder, result, {})
    write_atomic(folder / "manifest.json", json.dumps(manifest).encode())
    return Folder(path=str(folder), sha256=manifest["digest"])
