"""One training of a distillation benchmark, measured on the test images; and the store that lets a benchmark go on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.distill_images import SIDE, TEST, Images
from pu_engine.progress import SilentProgress
from pu_engine.results import write_atomic
from pu_engine.student.catalogue import build
from pu_engine.student.spec import describe
from pu_engine.training.batches import Part
from pu_engine.training.checkpoints import KEPT
from pu_engine.training.distill_types import DistillationOptions
from pu_engine.training.evaluation import predict
from pu_engine.training.loop import Task, checkpoint_steps, repeatable, train
from pu_engine.training.target_scale import target_scale
from pu_engine.types import TrainingSet

Result = dict[str, Any]


class Store:
    """Finished runs, one JSON file each: what a benchmark has done before, it does not do again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def finished(self, key: Result) -> Result | None:
        """The result of a run, where it is finished."""
        path = self._path(key)
        return json.loads(path.read_text()) if path.is_file() else None

    def keep(self, key: Result, result: Result) -> Result:
        """Write a finished run; the row that is kept."""
        row = key | result
        write_atomic(self._path(key), json.dumps(row, indent=1).encode())
        return row

    def scratch(self, key: Result) -> Path:
        """Where a run under way keeps its checkpoints."""
        return self._path(key).with_suffix(".checkpoints")

    def _path(self, key: Result) -> Path:
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
        return self._folder / f"{name}.json"


def in_time(keys: Iterable[Result], minutes: float | None) -> Iterator[Result]:
    """The keys of runs to start, until the minutes are over; the rest is for another call."""
    started = time.monotonic()
    for key in keys:
        if minutes is not None and time.monotonic() - started > 60 * minutes:
            return
        yield key


def measured(
    images: Images, labelled: Part, held_out: Part, picked: Part, options: DistillationOptions, *, steps: int,
    seed: int, folder: Path, threads: int, student: str, device: str,
) -> Result:  # fmt: skip
    """Train a student and measure it on the test images; a killed run goes on from its last checkpoint in `folder`.

    Returns:
        `accuracy, agreement` (with the teacher, on the test images), `per_class`, `n, steps, seconds, loss`.
    """
    started, facts, test = time.perf_counter(), images.facts, images.arrays[TEST]
    with repeatable(threads):
        torch.manual_seed(seed)
        module = STUDENTS[student]()
        arrays = TrainingSet(
            size=SIDE, fit="stretch", channels=3, classes=facts.classes, labelled=len(labelled), picked=len(picked),
            held_out=len(held_out), parity=0, parity_unpicked=0,
        )  # fmt: skip
        spec = describe(student, module, arrays, facts.class_names)
        task = Task(
            labelled=labelled, picked=picked, held_out=held_out, preprocessing=spec.preprocessing, options=options,
            steps=steps, seed=seed, key=folder.name,
            checkpoint_steps=checkpoint_steps(spec.macs, options.batch_size, torch.device(device)),
            target_scale=target_scale(labelled.targets[:, 0], labelled.labels), teacher_accuracy=facts.accuracy,
        )  # fmt: skip
        curve = train(module.to(device), task, folder, SilentProgress())
        answers = predict(module, test.images, spec.preprocessing).argmax(dim=1).numpy()
    for file in sorted(folder.glob("step-*"))[: 2 * KEPT]:
        file.unlink()
    folder.rmdir()
    right = answers == test.labels
    return {
        "accuracy": float(right.mean()),
        "agreement": float((answers == test.targets[:, 0].argmax(axis=1)).mean()),
        "per_class": [float(right[test.labels == k].mean()) for k in range(facts.classes)],
        "n": len(picked),
        "steps": steps,
        "seconds": round(time.perf_counter() - started, 1),
        "loss": curve[-1]["loss"],
        "curve": [[row["step"], row["held_out_agreement"]] for row in curve if "held_out_agreement" in row],
    }


def small_student() -> nn.Module:
    """CIFAR ResNet-14 whose stem halves the image: a quarter of the work, so that many runs can be paired."""
    module = build("cifar_resnet14", SIDE, 3, 10)
    stem = module.get_submodule("stem")
    if not isinstance(stem, nn.Conv2d):
        raise ValueError("the student has no convolution as its stem")
    stem.stride = (2, 2)
    return module


STUDENTS: dict[str, Callable[[], nn.Module]] = {
    "small": small_student,
    "cifar_resnet20": partial(build, "cifar_resnet20", SIDE, 3, 10),
}


def interval(differences: Iterable[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of paired differences."""
    values = np.array(list(differences))
    rows = np.random.default_rng(seed).integers(0, len(values), (4000, len(values)))
    low, high = np.quantile(values[rows].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def ratio_interval(above: Iterable[float], below: Iterable[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio of two means over the same seeds."""
    top, bottom = np.array(list(above)), np.array(list(below))
    rows = np.random.default_rng(seed).integers(0, len(top), (4000, len(top)))
    ratios = top[rows].mean(axis=1) / bottom[rows].mean(axis=1)
    low, high = np.quantile(ratios[np.isfinite(ratios)], [0.025, 0.975])
    return float(low), float(high)
