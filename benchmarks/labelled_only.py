"""A student trained on the labelled images alone: what a user without a pool would get.

The service always picks from a pool. So the engine's own stages make the training set from a pool of one small
shard, and the picks are then taken out of it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pu_engine import distillation, export, ingest
from pu_engine.compression import run_stages
from pu_engine.imaging.archive import Limits, read_members
from pu_engine.jsonform import to_json
from pu_engine.pipeline import BUDGET, GATHERING, INTAKE, SCORING, SELECTION
from pu_engine.pools.pool import pool_folder
from pu_engine.pools.pool_types import IngestInputs
from pu_engine.progress import SilentProgress
from pu_engine.results import build_manifest, file_sha256, load, write_atomic
from pu_engine.training.distill_types import DistillationOptions
from pu_engine.types import (
    DistillationInputs,
    ExportInputs,
    ExportOptions,
    File,
    Folder,
    LabelledFile,
    LabelledImages,
    StudentOptions,
    TrainingSet,
)
from punnet.archive import Member, write_tar

POOL_IMAGES = 300  # parity needs some; none is trained on
THREADS = 1
LIMITS = Limits(members=100_000, total_bytes=2**32, member_bytes=2**24)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledOnlyStudent:
    """The student's file and how it sees an image."""

    onnx: Path
    preprocessing: dict[str, Any]


def train_labelled_only(
    teacher: Path, images: Mapping[str, Sequence[bytes]], pool: Path, work: Path, *, student: str, steps: int,
    batch_size: int, seed: int,
) -> LabelledOnlyStudent:  # fmt: skip
    """Intake to gathering on a small pool, then distillation and export without its picks.

    Args:
        images: label -> encoded images.
        pool: folder of plain tars.
        work: emptied first.
    """
    shutil.rmtree(work, ignore_errors=True)
    for name in ("images", "pool", "arrays", "distillation", "export"):
        (work / name).mkdir(parents=True)
    training = DistillationOptions(steps=steps, batch_size=batch_size)
    spec = {
        "teacher": to_json(_file(teacher)),
        "display_name": teacher.name,
        "images": to_json(_labelled(images, work / "images")),
        "pool": to_json(_small_pool(pool, work)),
        "selection": {"score": "random", "count": POOL_IMAGES // 2},
        "distillation": {"steps": steps, "batch_size": batch_size},
        "seed": seed,
    }
    stages = (INTAKE, SCORING, BUDGET, SELECTION, GATHERING)
    folders = dict(run_stages(stages, spec, work / "stages", threads=THREADS, progress=SilentProgress()))
    gathering = without_picks(Path(folders["gathering"]["path"]), work / "arrays")
    inputs = DistillationInputs(
        intake=Folder(**folders["intake"]), gathering=gathering, student=StudentOptions(name=student),
        distillation=training, seed=seed, threads=THREADS,
    )  # fmt: skip
    trained = distillation.run(inputs, work / "distillation", SilentProgress())
    exported = ExportInputs(
        distillation=_finish(work / "distillation", trained),
        gathering=gathering,
        export=ExportOptions(targets=("cpu",)),
    )
    export.run(exported, work / "export", SilentProgress())
    return LabelledOnlyStudent(onnx=work / "export" / "student.onnx", preprocessing=to_json(trained.spec.preprocessing))


def without_picks(gathering: Path, out: Path) -> Folder:
    """A copy of a training set that has no picked images."""
    arrays = load(TrainingSet, gathering)
    for file in gathering.glob("*.npy"):
        if file.name.startswith("picked."):
            np.save(out / file.name, np.load(file)[:0])
        else:
            shutil.copyfile(file, out / file.name)
    return _finish(out, replace(arrays, picked=0))


def _finish(folder: Path, result: Any) -> Folder:
    manifest = build_manifest(folder, result, {})
    write_atomic(folder / "manifest.json", json.dumps(manifest).encode())
    return Folder(path=str(folder), sha256=manifest["digest"])


def _file(path: Path) -> File:
    return File(path=str(path.resolve()), sha256=file_sha256(path))


def _labelled(images: Mapping[str, Sequence[bytes]], folder: Path) -> LabelledImages:
    files = []
    for label, contents in images.items():
        for number, content in enumerate(contents):
            path = folder / f"{label}-{number}.jpg"
            path.write_bytes(content)
            files.append(LabelledFile(label=label, image=_file(path)))
    return LabelledImages(files=tuple(files))


def _small_pool(pool: Path, work: Path) -> Folder:
    with sorted(pool.glob("*.tar"))[0].open("rb") as stream:
        members = [m for _, m in zip(range(POOL_IMAGES), read_members(stream, LIMITS), strict=False)]
    write_tar([Member(name=m.name, source=m.data or b"") for m in members], work / "pool.tar")
    ingest.run(IngestInputs(name="small", tars=(_file(work / "pool.tar"),)), work / "pool", SilentProgress())
    return pool_folder(work / "pool")
