"""The distillation loop: SGD with momentum, cosine rate, cached teacher logits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pu_engine import checkpoints
from pu_engine.batches import DROPOUT_STREAM, Part, derived_seed, draw
from pu_engine.checkpoints import TrainingState
from pu_engine.class_weighting import class_weighting, running_class_loss
from pu_engine.distill_loss import kd_rows
from pu_engine.errors import EngineError
from pu_engine.progress import Progress
from pu_engine.types import DistillationOptions, Preprocessing

MOMENTUM = 0.9
ROLL_BACK_SCALE = 0.5
CURVE_ROWS = 200
ROWS_PER_EVALUATION = 10
EVALUATION_BATCH = 256
# A checkpoint about every 20 s, by count: a clock would make a roll-back's place depend on the machine.
CHECKPOINT_SECONDS = 20
ASSUMED_MACS_PER_SECOND = 5e9  # a step counts three forwards; measured 17e9 on a core of its own, 7e9 on a shared one
MOST_STEPS_BETWEEN = 100


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """What to train on, and how."""

    labelled: Part
    picked: Part
    held_out: Part  # watched, never trained on
    preprocessing: Preprocessing
    options: DistillationOptions
    seed: int
    checkpoint_steps: int
    key: str  # of the checkpoints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """One training under way; `TrainingState` holds what changes with the steps."""

    module: nn.Module
    optimiser: torch.optim.Optimizer
    task: Task
    folder: Path
    progress: Progress


def train(module: nn.Module, task: Task, folder: Path, progress: Progress) -> list[dict[str, float]]:
    """Train in place and return the curve; checkpoints go to `folder`, and an earlier run's are picked up.

    Raises:
        EngineError: TRAINING_DIVERGED where the loss is not finite a second time, at half the rate.
    """
    options = task.options
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(
        module.parameters(), lr=1.0, momentum=MOMENTUM, nesterov=True, weight_decay=options.weight_decay
    )
    run = Run(module=module, optimiser=optimiser, task=task, folder=folder, progress=progress)
    weighting = class_weighting(task.labelled, task.picked, options, task.seed)
    nothing_yet = torch.zeros(len(weighting.shares), dtype=torch.float64)
    state = checkpoints.restore(folder, task.key, module, optimiser) or TrainingState(class_loss=nothing_yet)

    module.train()
    while state.step < options.steps:
        if state.step % task.checkpoint_steps == 0:
            if not all_finite(module):
                state = roll_back(run, state)
            checkpoints.save(folder, task.key, module, optimiser, state)

        # Dropout and stochastic depth draw from torch's own generator.
        torch.manual_seed(derived_seed(task.seed, DROPOUT_STREAM, state.step))
        rate = learning_rate(state.step, options) * state.rate_scale
        optimiser.param_groups[0]["lr"] = rate
        batch = draw(task.labelled, task.picked, state.step, options, task.seed)
        logits = module(model_input(batch.images, task.preprocessing))

        rows = kd_rows(logits, batch.targets, options.temperature)
        classes = batch.targets.argmax(dim=1)
        class_loss = running_class_loss(state.class_loss, rows.detach(), classes, first=state.step == 0)
        distillation = (weighting.weigh(classes, class_loss) * rows).mean(dim=1).max()
        labels = F.cross_entropy(logits[: len(batch.labels)], batch.labels) if len(batch.labels) else torch.zeros(())
        loss = distillation + options.label_weight * labels
        if not torch.isfinite(loss):
            state = roll_back(run, state)
            continue

        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        state.class_loss = class_loss
        state.step += 1
        log(run, state, rate, loss=loss.item(), distillation=distillation.item(), labels=labels.item())
    if not all_finite(module):
        raise diverged(state)
    module.eval()
    return state.curve


def learning_rate(step: int, options: DistillationOptions) -> float:
    """Linear warm-up to the peak, then half a cosine to 0."""
    warm_up = max(1, round(options.steps * options.warmup_share))
    if step < warm_up:
        return options.learning_rate * (step + 1) / warm_up
    share = (step - warm_up) / max(1, options.steps - warm_up)
    return options.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))


def checkpoint_steps(macs: int, batch_size: int) -> int:
    """Steps between checkpoints, from the work of one step alone."""
    seconds = 3 * macs * batch_size / ASSUMED_MACS_PER_SECOND
    return max(1, min(MOST_STEPS_BETWEEN, round(CHECKPOINT_SECONDS / seconds)))


def model_input(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 [N, S, S, C] to float32 [N, C, S, S] in channels-last memory, as the student takes it."""
    mean = torch.tensor(preprocessing.mean, dtype=torch.float32)
    std = torch.tensor(preprocessing.std, dtype=torch.float32)
    return ((images.float() * preprocessing.scale - mean) / std).permute(0, 3, 1, 2)


def predict(module: nn.Module, images: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """Logits [N, K] in eval mode; the module's mode is kept."""
    was_training = module.training
    module.eval()
    with torch.no_grad():
        parts = [
            module(model_input(torch.from_numpy(images[i : i + EVALUATION_BATCH].copy()), preprocessing))
            for i in range(0, len(images), EVALUATION_BATCH)
        ]
    module.train(was_training)
    return torch.cat(parts)


def log(run: Run, state: TrainingState, rate: float, **parts: float) -> None:
    """Add a step to the curve: means since the last row, and now and then the agreement on the held-out images."""
    steps = run.task.options.steps
    for name, value in {**parts, "steps": 1.0}.items():
        state.sums[name] = state.sums.get(name, 0.0) + value
    between, last = max(1, steps // CURVE_ROWS), state.step == steps
    if state.step % between == 0 or last:
        taken = state.sums.pop("steps")
        means = {name: total / taken for name, total in state.sums.items()}
        row = {"step": float(state.step), **means, "learning_rate": rate}
        if state.step % (between * ROWS_PER_EVALUATION) == 0 or last:
            row["held_out_agreement"] = agreement_with_teacher(run.module, run.task.held_out, run.task.preprocessing)
        state.curve.append(row)
        state.sums = {}
    metrics = {"loss": parts["loss"], "learning_rate": rate}
    agreements = [row["held_out_agreement"] for row in state.curve if "held_out_agreement" in row]
    if agreements:
        metrics["held_out_agreement"] = agreements[-1]
    run.progress.update(state.step, steps, "step", metrics)


def agreement_with_teacher(module: nn.Module, part: Part, preprocessing: Preprocessing) -> float:
    """Share of images on which student and teacher name the same class."""
    chosen = predict(module, part.images, preprocessing).argmax(dim=1).numpy()
    return float((chosen == part.targets[:, 0].argmax(axis=1)).mean())


def roll_back(run: Run, state: TrainingState) -> TrainingState:
    """Go back to the last checkpoint at half the rate, once."""
    restored = checkpoints.restore(run.folder, run.task.key, run.module, run.optimiser)
    if state.rate_scale < 1.0 or restored is None or restored.rate_scale < 1.0:
        raise diverged(state)
    run.progress.warn(
        f"The loss was not finite at step {state.step}; training goes on from step {restored.step} at half the rate."
    )
    restored.rate_scale = ROLL_BACK_SCALE
    return restored


def diverged(state: TrainingState) -> EngineError:
    """The error of a training that can't go on."""
    return EngineError(
        "TRAINING_DIVERGED",
        f"The loss or a weight was not finite at step {state.step}, at {state.rate_scale:g} of the learning rate.",
        "Lower distillation.learning_rate, for instance to a tenth.",
        step=state.step,
        rate_scale=state.rate_scale,
    )


def all_finite(module: nn.Module) -> bool:
    """Whether every weight and statistic is a number."""
    return all(bool(torch.isfinite(value).all()) for value in module.state_dict().values())


@contextmanager
def repeatable(threads: int) -> Iterator[None]:
    """Torch with a fixed number of threads and deterministic algorithms; what was set before comes back."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
