"""`auto`: students within the limits are trained briefly, the better half longer, until one is left.

Every trial starts anew, on the labelled and most of the picked images, with a schedule of its own; it is scored by how
often it answers like the teacher on picked images that it was not trained on. What is finished is kept, so that a
killed search goes on, and the choice is the same on a CPU.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pu_engine.progress import Progress, SilentProgress
from pu_engine.results import write_atomic
from pu_engine.student.catalogue import build
from pu_engine.student.choice import Candidate
from pu_engine.training.batches import Part
from pu_engine.training.evaluation import agreement_with_teacher
from pu_engine.training.loop import Task, train, training_device
from pu_engine.types import TrainingSet

MOST_TRIED = 4  # the largest within the limits: larger ones are rarely worse for their time
FIRST_STEPS_SHARE = 0.04  # of the training; four candidates then cost a third of it
LEAST_STEPS = 20
WATCHED = 512  # picked images that trials are scored on
TRIAL_BYTES = 256 * 2**20  # of picked images that trials are trained on: they are held in memory
KEPT, TRIAL = ".trials.json", ".trial"

Score = Callable[[str, int], float]


def halving(names: Sequence[str], first_steps: int, score: Score) -> tuple[str, dict[str, list[tuple[int, float]]]]:
    """Successive halving: all for `first_steps`, the better half for twice as long, and so on.

    Source: Jamieson and Talwalkar 2016.

    Args:
        names: candidates, the preferred first: of equal scores the earlier wins.
        score: of a candidate after so many steps; higher is better.

    Returns:
        The last one left, and each candidate's (steps, score).
    """
    left, steps = list(names), first_steps
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
    while len(left) > 1:
        for name in left:
            found[name].append((steps, score(name, steps)))
        left = sorted(left, key=lambda name: -found[name][-1][1])[: (len(left) + 1) // 2]
        steps *= 2
    return left[0], found


def search(
    candidates: Sequence[Candidate], task: Task, arrays: TrainingSet, scratch: Path, progress: Progress
) -> tuple[str, tuple[Candidate, ...]]:
    """The candidate to train out, and all of them with what their trials gave.

    Args:
        candidates: by `student.choice.shortlist`; those with a verdict are over a limit.
    """
    fitting = [c["name"] for c in candidates if not c["verdict"]][:MOST_TRIED]
    trained, watched = _apart(task.picked, task.seed)
    kept = _read(scratch / KEPT)

    def score(name: str, steps: int) -> float:
        key = f"{name}/{steps}"
        if key not in kept:
            torch.manual_seed(task.seed)
            module = build(name, arrays.size, arrays.channels, arrays.classes).to(training_device())
            trial = replace(
                task, picked=trained, held_out=watched, steps=steps, checkpoint_steps=steps, key=key, source=None
            )
            train(module, trial, scratch / TRIAL, SilentProgress())
            shutil.rmtree(scratch / TRIAL)
            kept[key] = agreement_with_teacher(module, watched, task.preprocessing)
            write_atomic(scratch / KEPT, json.dumps(kept).encode())
        progress.update(len(kept), 2 * len(fitting), "trial", {"agreement": kept[key]})
        return kept[key]

    first = min(task.steps, max(LEAST_STEPS, round(FIRST_STEPS_SHARE * task.steps)))
    chosen, found = halving(fitting, first, score) if len(watched) else (fitting[0], {})
    return chosen, tuple(_told(c, chosen, found, fitting) for c in candidates)


def _told(
    candidate: Candidate, chosen: str, found: Mapping[str, list[tuple[int, float]]], fitting: Sequence[str]
) -> Candidate:
    name = candidate["name"]
    trials = found.get(name, [])
    curve = {"trials": ", ".join(f"{score:.3f} after {steps} steps" for steps, score in trials)} if trials else {}
    if candidate["verdict"]:
        verdict = candidate["verdict"]
    elif name == chosen:
        verdict = "chosen"
    else:
        verdict = "not as good" if name in fitting else "smaller than those that were tried"
    return {**candidate, **curve, "verdict": verdict}


def _apart(picked: Part, seed: int) -> tuple[Part, Part]:
    """Picked images to train trials on, and others, at most a fifth, to score them on."""
    order = np.random.default_rng(seed).permutation(len(picked))
    count = min(WATCHED, len(picked) // 5)
    most = max(1, TRIAL_BYTES // max(1, picked.images[:1].nbytes))
    return _rows(picked, np.sort(order[count : count + most])), _rows(picked, np.sort(order[:count]))


def _rows(part: Part, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Part:
    images, targets = part.images[rows], part.targets[rows]
    return Part(
        images=images if images.ndim == 4 else images[:, 0],
        targets=targets,
        labels=part.labels,
        weights=None if part.weights is None else part.weights[rows],
        features=None if part.features is None else part.features[rows],
    )


def _read(path: Path) -> dict[str, float]:
    return dict(json.loads(path.read_text())) if path.exists() else {}
