"""Stage distillation: train the student on what the teacher says of the labelled and the picked images."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from exporters.errors import ExportError
from pu_engine.budget import steps_of
from pu_engine.errors import EngineError
from pu_engine.jsonform import to_json
from pu_engine.pages.differences import differences
from pu_engine.progress import Progress
from pu_engine.results import canonical_json, load, write_atomic
from pu_engine.student.catalogue import build
from pu_engine.student.choice import AUTO, Candidate, largest, shortlist
from pu_engine.student.files import write_student
from pu_engine.student.search import search
from pu_engine.student.spec import describe
from pu_engine.training.batches import CPU, Part, Sampler, load_part
from pu_engine.training.distill_checks import check_options
from pu_engine.training.evaluation import agreement_with_teacher, predict
from pu_engine.training.hint_features import hint_features
from pu_engine.training.joint_training import process_count, train_together
from pu_engine.training.live_teacher import choose_targets, live_teacher, needs_resize
from pu_engine.training.loop import Task, checkpoint_steps, repeatable, train, training_device
from pu_engine.training.own_weights import load_own
from pu_engine.training.processes import ALONE, Processes
from pu_engine.training.target_scale import target_scale
from pu_engine.training.targets import LiveTargets, PrefetchedTargets, TargetSource
from pu_engine.training.tensorboard_file import write_events
from pu_engine.types import Budget, DistillationInputs, Student, StudentSpec, Teacher, TrainingSet
from pu_engine.variants.agreement import accuracy

CHECKPOINTS = ".checkpoints"
CURVE, EVENTS, DIFFERENCES = "curve.jsonl", "events.tfevents", "differences.json"


def run(inputs: DistillationInputs, out: Path, progress: Progress) -> Student:
    """Train the student that the options name; a killed run goes on from its last checkpoint.

    Raises:
        EngineError: STUDENT_UNKNOWN, STUDENT_UNSUPPORTED, REQUEST_INVALID, TRAINING_DIVERGED; STAGE_CRASHED where one
            of several processes did.
    """
    options = inputs.distillation
    check_options(options)
    budget = steps_of(inputs.budget, options)
    arrays = load(TrainingSet, inputs.gathering.path)
    count = process_count(inputs, progress)
    with repeatable(inputs.threads):
        name, candidates = _choose(inputs, arrays, budget, out, progress)
        device = training_device()
        how, why = choose_targets(options.targets, Path(inputs.intake.path), device)
        prepared = prepare(inputs, name, how, device)
        module, spec, task = prepared.module, prepared.spec, prepared.task
        started = time.perf_counter()
        if count > 1:
            given = {
                "inputs": inputs, "student": name, "targets": how, "checkpoints": str((out / CHECKPOINTS).absolute()),
                "threads": max(1, inputs.threads // count),
            }  # fmt: skip
            curve = train_together(module, given, count, out, progress)
        else:
            curve = train(module, task, out / CHECKPOINTS, progress)
        seconds = time.perf_counter() - started
        held_out = predict(module, task.held_out.images, spec.preprocessing).numpy()
        agreement = agreement_with_teacher(module, task.held_out, spec.preprocessing)
        parity = load_part(Path(inputs.gathering.path), "parity", labelled=False)
        differs = differences(parity.targets[:, 0], predict(module, parity.images, spec.preprocessing).numpy())
    write_student(out, spec, module.cpu())
    write_atomic(out / CURVE, "".join(json.dumps(row) + "\n" for row in curve).encode())
    write_events(out / EVENTS, curve)
    write_atomic(out / DIFFERENCES, json.dumps(to_json(differs), indent=1).encode())
    shutil.rmtree(out / CHECKPOINTS)
    return Student(
        spec=spec,
        steps=budget.steps,
        final_loss=curve[-1]["loss"],
        held_out_accuracy=accuracy(held_out, task.held_out.labels),
        held_out_agreement=agreement,
        target_scale=task.target_scale,
        targets=f"{how}: {why}",
        budget=budget.why,
        images_per_second=budget.steps * options.batch_size / seconds,
        candidates=candidates,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A student that is yet to be trained, on its device, and how."""

    module: nn.Module
    spec: StudentSpec
    task: Task


def prepare(
    inputs: DistillationInputs, name: str, targets: str, device: torch.device, processes: Processes = ALONE
) -> Prepared:
    """Build the student by name, and the training that it gets in this process."""
    teacher, arrays = load(Teacher, inputs.intake.path), load(TrainingSet, inputs.gathering.path)
    torch.manual_seed(inputs.seed)
    module = build(name, arrays.size, arrays.channels, arrays.classes)
    if inputs.student.weights is not None:
        load_own(module, Path(inputs.student.weights.path))
    spec = describe(name, module, arrays, teacher.class_names)
    budget = steps_of(inputs.budget, inputs.distillation)
    task = replace(build_task(inputs, spec, budget, targets, device), processes=processes)
    if targets == "live":
        task = replace(task, source=live_source(inputs, task, teacher, device))
    return Prepared(module=module.to(device), spec=spec, task=task)


def build_task(
    inputs: DistillationInputs, spec: StudentSpec, budget: Budget, targets: str, device: torch.device = CPU
) -> Task:
    """The training that inputs and student amount to, but for a live teacher."""
    folder, options = Path(inputs.gathering.path), inputs.distillation
    identity = {
        "spec": spec, "options": options, "steps": budget.steps, "data": inputs.gathering.sha256, "seed": inputs.seed,
        "weights": inputs.student.weights, "targets": targets,
    }  # fmt: skip
    bank = targets == "views"
    labelled, picked = (
        load_part(folder, name, labelled=name == "labelled", bank=bank) for name in ("labelled", "picked")
    )
    if options.loss.hints:
        labelled, picked = with_features(inputs, labelled, picked)
    answers = load_part(folder, "labelled", labelled=True)
    return Task(
        labelled=labelled,
        picked=picked,
        held_out=load_part(folder, "held_out", labelled=True),
        preprocessing=spec.preprocessing,
        options=options,
        steps=budget.steps,
        seed=inputs.seed,
        checkpoint_steps=checkpoint_steps(spec.macs, options.batch_size, device),
        key=hashlib.sha256(canonical_json(identity).encode()).hexdigest(),
        target_scale=target_scale(answers.targets[:, 0], answers.labels),
        teacher_accuracy=load(Teacher, inputs.intake.path).accuracy,
    )


def live_source(inputs: DistillationInputs, task: Task, teacher: Teacher, device: torch.device) -> TargetSource:
    """The teacher asked for the student's own views.

    Where the host has work for it, beside the training if there is a second thread. A GPU that crops the teacher's own
    size does the whole of it, in its order.
    """
    on_gpu, resized = device.type == "cuda", needs_resize(task.labelled.images.shape[-2], teacher.preprocessing)
    sampler = Sampler(
        task.labelled, task.picked, task.options, task.seed, device=CPU if resized else device, processes=task.processes
    )
    ask = live_teacher(Path(inputs.intake.path), teacher.preprocessing, device)
    live = LiveTargets(sampler, ask, task.target_scale)
    beside = resized if on_gpu else inputs.threads > 1
    return PrefetchedTargets(live, task.steps) if beside else live


def with_features(inputs: DistillationInputs, labelled: Part, picked: Part) -> tuple[Part, Part]:
    """The parts with the teacher's features of their images."""
    features = hint_features(inputs)
    for part, own in zip((labelled, picked), features, strict=True):
        if len(part) != len(own):
            raise EngineError(
                "STAGE_PROTOCOL",
                f"The training set has {len(part)} images where the scoring has features of {len(own)}.",
                "Run the job again from scoring.",
            )
    return replace(labelled, features=features[0]), replace(picked, features=features[1])


def _choose(
    inputs: DistillationInputs, arrays: TrainingSet, budget: Budget, out: Path, progress: Progress
) -> tuple[str, tuple[Candidate, ...]]:
    try:
        candidates = shortlist(
            inputs.student, size=arrays.size, channels=arrays.channels, classes=arrays.classes, scratch=out
        )
    except ExportError as error:
        raise EngineError(error.code, error.message, error.remedy, **error.details) from error
    if inputs.student.name != AUTO:
        return largest(candidates), ()
    name = largest(candidates)
    spec = describe(name, build(name, arrays.size, arrays.channels, arrays.classes), arrays, ())
    return search(candidates, build_task(inputs, spec, budget, "cached"), arrays, out, progress)
