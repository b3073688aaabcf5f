"""Stage distillation: train the student on the teacher's cached logits."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch
from torch import nn

from exporters.errors import ExportError
from pu_engine.agreement import accuracy
from pu_engine.batches import load_part
from pu_engine.class_weighting import DEFAULT_RADIUS
from pu_engine.errors import EngineError
from pu_engine.progress import Progress
from pu_engine.results import canonical_json, load, write_atomic
from pu_engine.student_choice import choose
from pu_engine.student_files import write_student
from pu_engine.students import build, count_macs, count_parameters
from pu_engine.training import Task, agreement_with_teacher, checkpoint_steps, predict, repeatable, train
from pu_engine.types import (
    DistillationInputs,
    DistillationOptions,
    Preprocessing,
    Student,
    StudentSpec,
    Teacher,
    TrainingSet,
)

CHECKPOINTS = ".checkpoints"
CURVE = "curve.jsonl"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GRAY_MEAN, GRAY_STD = (0.5,), (0.5,)


def run(inputs: DistillationInputs, out: Path, progress: Progress) -> Student:
    """Train the student that the options name; a killed run goes on from its last checkpoint.

    Raises:
        EngineError: STUDENT_UNKNOWN, STUDENT_UNSUPPORTED, REQUEST_INVALID, TRAINING_DIVERGED.
    """
    check_options(inputs.distillation)
    teacher, arrays = load(Teacher, inputs.intake.path), load(TrainingSet, inputs.gathering.path)
    with repeatable(inputs.threads):
        name, candidates = _choose(inputs, arrays, out)
        torch.manual_seed(inputs.seed)
        module = build(name, arrays.size, arrays.channels, arrays.classes)
        spec = describe(name, module, arrays, teacher.class_names)
        task = build_task(inputs, spec)
        curve = train(module, task, out / CHECKPOINTS, progress)
        held_out = predict(module, task.held_out.images, spec.preprocessing).numpy()
        agreement = agreement_with_teacher(module, task.held_out, spec.preprocessing)
    write_student(out, spec, module)
    write_atomic(out / CURVE, "".join(json.dumps(row) + "\n" for row in curve).encode())
    shutil.rmtree(out / CHECKPOINTS)
    return Student(
        spec=spec,
        steps=inputs.distillation.steps,
        final_loss=curve[-1]["loss"],
        held_out_accuracy=accuracy(held_out, task.held_out.labels),
        held_out_agreement=agreement,
        candidates=candidates if inputs.student.name == "auto" else (),
    )


def describe(name: str, module: nn.Module, arrays: TrainingSet, class_names: tuple[str, ...]) -> StudentSpec:
    """What is needed to build the network again and to feed it."""
    gray = arrays.channels == 1
    return StudentSpec(
        name=name,
        size=arrays.size,
        channels=arrays.channels,
        classes=arrays.classes,
        parameters=count_parameters(module),
        macs=count_macs(module, arrays.size, arrays.channels),
        preprocessing=Preprocessing(
            layout="NCHW",
            channels="GRAY" if gray else "RGB",
            scale=1 / 255,
            mean=GRAY_MEAN if gray else IMAGENET_MEAN,
            std=GRAY_STD if gray else IMAGENET_STD,
            dtype="float32",
            height=arrays.size,
            width=arrays.size,
            fit=arrays.fit,
        ),
        class_names=class_names,
    )


def build_task(inputs: DistillationInputs, spec: StudentSpec) -> Task:
    """The training that inputs and student amount to."""
    folder, options = Path(inputs.gathering.path), inputs.distillation
    identity = {"spec": spec, "options": options, "data": inputs.gathering.sha256, "seed": inputs.seed}
    return Task(
        labelled=load_part(folder, "labelled", labelled=True),
        picked=load_part(folder, "picked", labelled=False),
        held_out=load_part(folder, "held_out", labelled=True),
        preprocessing=spec.preprocessing,
        options=options,
        seed=inputs.seed,
        checkpoint_steps=checkpoint_steps(spec.macs, options.batch_size),
        key=hashlib.sha256(canonical_json(identity).encode()).hexdigest(),
    )


def check_options(options: DistillationOptions) -> None:
    """Refuse options that no training can follow."""
    checks = (
        ("steps", options.steps >= 1, "at least 1"),
        ("batch_size", options.batch_size >= 2, "at least 2"),  # BatchNorm has no variance of one image
        ("learning_rate", options.learning_rate > 0, "above 0"),
        ("temperature", options.temperature > 0, "above 0"),
        ("labelled_share", 0 <= options.labelled_share <= 1, "from 0 to 1"),
        ("label_weight", options.label_weight >= 0, "at least 0"),
        ("weight_decay", options.weight_decay >= 0, "at least 0"),
        ("warmup_share", 0 <= options.warmup_share <= 1, "from 0 to 1"),
        ("class_weights", options.class_weights in DEFAULT_RADIUS, f"one of {', '.join(DEFAULT_RADIUS)}"),
        ("radius", options.radius is None or options.radius >= 0, "at least 0"),
    )
    for name, holds, bound in checks:
        if not holds:
            value = getattr(options, name)
            raise EngineError(
                "REQUEST_INVALID",
                f"distillation.{name} must be {bound}, got {value}.",
                f"Set distillation.{name} within its bounds.",
                name=name,
                value=value,
            )


def _choose(inputs: DistillationInputs, arrays: TrainingSet, out: Path) -> tuple[str, tuple[dict[str, str], ...]]:
    try:
        name, candidates = choose(
            inputs.student, size=arrays.size, channels=arrays.channels, classes=arrays.classes, scratch=out
        )
    except ExportError as error:
        raise EngineError(error.code, error.message, error.remedy, **error.details) from error
    return name, tuple(dict(c) for c in candidates)
