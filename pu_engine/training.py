"""The distillation loop: SGD with momentum under a cosine rate, resumable to the bit on a CPU."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pu_engine import averaging, checkpoints
from pu_engine.averaging import averaged
from pu_engine.batches import DROPOUT_STREAM, Batch, Part, derived_seed
from pu_engine.checkpoints import TrainingState
from pu_engine.class_weighting import class_weighting
from pu_engine.distill_types import DistillationOptions
from pu_engine.errors import EngineError
from pu_engine.evaluation import agreement_with_teacher, model_input
from pu_engine.objective import Losses, Objective
from pu_engine.progress import Progress
from pu_engine.student_features import FeatureTap
from pu_engine.targets import CachedTargets, TargetSource
from pu_engine.types import Preprocessing

MOMENTUM = 0.9
ROLL_BACK_SCALE = 0.5
# A loss that keeps at ten times that of a student which knows nothing will not come back.
EXPLODED, RECENT_DECAY = 10.0, 0.9
CURVE_ROWS = 200
ROWS_PER_EVALUATION = 10
# A checkpoint about every 20 s, by count: a clock would make a roll-back's place depend on the machine.
CHECKPOINT_SECONDS = 20
ASSUMED_MACS_PER_SECOND = 5e9  # a step counts three forwards; measured 17e9 on a core of its own, 7e9 on a shared one
MOST_STEPS_BETWEEN = 100
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """What to train on, and how."""

    labelled: Part
    picked: Part
    held_out: Part  # watched, never trained on
    preprocessing: Preprocessing
    options: DistillationOptions
    steps: int
    seed: int
    checkpoint_steps: int
    key: str  # of the checkpoints
    target_scale: float = 1.0  # of the teacher's logits
    teacher_accuracy: float = 1.0
    source: TargetSource | None = None  # None: the targets of the parts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """One training under way; `TrainingState` holds what changes with the steps."""

    module: nn.Module
    network: nn.Module  # the module, compiled or spread over processes where asked for
    trained: nn.ModuleDict  # the module and what the objective learns
    optimiser: torch.optim.Optimizer
    objective: Objective
    features: FeatureTap | None
    source: TargetSource
    scaler: torch.amp.GradScaler
    dtype: torch.dtype
    device: torch.device
    task: Task
    folder: Path
    progress: Progress


def train(module: nn.Module, task: Task, folder: Path, progress: Progress) -> list[dict[str, float]]:
    """Train in place and return the curve; checkpoints go to `folder`, and an earlier run's are picked up.

    Raises:
        EngineError: TRAINING_DIVERGED where the loss is not finite or explodes a second time, at half the rate.
    """
    run = start(module, task, folder, progress)
    options, state = task.options, begin(run)
    module.train()
    while state.step < task.steps:
        if state.step % task.checkpoint_steps == 0:
            if not all_finite(module):
                state = roll_back(run, state, "not finite")
            checkpoints.save(folder, task.key, run.trained, run.optimiser, state)

        # Dropout and stochastic depth draw from torch's own generator.
        torch.manual_seed(derived_seed(task.seed, DROPOUT_STREAM, state.step))
        rate = learning_rate(state.step, task.steps, options) * state.rate_scale
        for group in run.optimiser.param_groups:
            group["lr"] = rate
        batch = run.source.batch(state.step)
        losses = forward(run, batch, state)
        trouble = divergence(losses.value, state)
        if trouble:
            state = roll_back(run, state, trouble)
            continue

        run.optimiser.zero_grad(set_to_none=True)
        run.scaler.scale(losses.total).backward()  # type: ignore[no-untyped-call]
        if options.clip_norm:
            run.scaler.unscale_(run.optimiser)
            torch.nn.utils.clip_grad_norm_(run.trained.parameters(), options.clip_norm)
        run.scaler.step(run.optimiser)
        run.scaler.update()

        advance(run, state, losses)
        log(run, state, rate, losses)
    if not all_finite(module):
        raise diverged(state)
    if run.features is not None:
        run.features.remove()
    if state.average:
        module.load_state_dict(state.average)
    module.eval()
    return state.curve


def start(module: nn.Module, task: Task, folder: Path, progress: Progress) -> Run:
    """Everything that a training needs, on its device."""
    options, device = task.options, device_of(module)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weighting = class_weighting(task.labelled, task.picked, options, task.seed, task.target_scale)
    tap, widths = None, None
    if options.loss.hints and task.labelled.features is not None:
        tap = FeatureTap(module)
        widths = tap.width, int(task.labelled.features.shape[1])
    torch.manual_seed(derived_seed(task.seed, DROPOUT_STREAM))  # the projection's first weights
    objective = Objective(options.loss, weighting, teacher_accuracy=task.teacher_accuracy, widths=widths).to(device)
    trained = nn.ModuleDict({"student": module, "objective": objective})
    optimiser = torch.optim.SGD(
        [
            {"params": list(module.parameters()), "weight_decay": options.weight_decay},
            *([{"params": own, "weight_decay": 0.0}] if (own := list(objective.parameters())) else []),
        ],
        lr=1.0, momentum=MOMENTUM, nesterov=True,
    )  # fmt: skip
    dtype = PRECISIONS[precision(options.precision, device)]
    return Run(
        module=module,
        network=torch.compile(module) if options.compiled else module,  # type: ignore[arg-type]
        trained=trained,
        optimiser=optimiser,
        objective=objective,
        features=tap,
        source=task.source or CachedTargets(task.labelled, task.picked, options, task.seed, task.target_scale),
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        dtype=dtype,
        device=device,
        task=task,
        folder=folder,
        progress=progress,
    )


def begin(run: Run) -> TrainingState:
    """Where a training stands: at its last checkpoint, or at the first step."""
    state = checkpoints.restore(run.folder, run.task.key, run.trained, run.optimiser)
    if state is None:
        classes = len(run.objective.weighting.shares)
        average = averaging.start(run.module) if run.task.options.average_decay else {}
        state = TrainingState(class_loss=torch.zeros(classes, dtype=torch.float64), average=average)
    return on_device(run, state)


def on_device(run: Run, state: TrainingState) -> TrainingState:
    """A restored state beside the module, and its gradient scale in the scaler."""
    state.average = {name: value.to(run.device) for name, value in state.average.items()}
    if state.gradient_scale:
        run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": state.gradient_scale})
    return state


def forward(run: Run, batch: Batch, state: TrainingState) -> Losses:
    """The student on a batch, and what its answers cost; the first time also what knowing nothing costs."""
    batch = batch.to(run.device)
    with torch.autocast(run.device.type, dtype=run.dtype, enabled=run.dtype != torch.float32):
        logits = run.network(model_input(batch.images, run.task.preprocessing))
    features = None if run.features is None else run.features.taken().float()
    logits, first = logits.float(), state.step == 0
    if first:
        nothing = run.objective(torch.zeros_like(logits), features, batch, state.class_loss, first=True)
        state.ignorant_loss = nothing.value
    losses: Losses = run.objective(logits, features, batch, state.class_loss, first=first)
    return losses


def advance(run: Run, state: TrainingState, losses: Losses) -> None:
    """Count a finished step."""
    state.class_loss = losses.class_loss
    recent = state.recent_loss if state.step else losses.value
    state.recent_loss = RECENT_DECAY * recent + (1.0 - RECENT_DECAY) * losses.value
    state.step += 1
    if state.average:
        averaging.move(state.average, run.module, run.task.options.average_decay, state.step)
    if run.scaler.is_enabled():
        state.gradient_scale = run.scaler.get_scale()


def learning_rate(step: int, steps: int, options: DistillationOptions) -> float:
    """Linear warm-up to the peak, then half a cosine to 0."""
    warm_up = max(1, round(steps * options.warmup_share))
    if step < warm_up:
        return options.learning_rate * (step + 1) / warm_up
    share = (step - warm_up) / max(1, steps - warm_up)
    return options.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))


def checkpoint_steps(macs: int, batch_size: int) -> int:
    """Steps between checkpoints, from the work of one step alone."""
    seconds = 3 * macs * batch_size / ASSUMED_MACS_PER_SECOND
    return max(1, min(MOST_STEPS_BETWEEN, round(CHECKPOINT_SECONDS / seconds)))


def precision(asked: str, device: torch.device) -> str:
    """The arithmetic of the forward: what was asked for, or fp32 on a CPU and bf16 (else fp16) on a GPU."""
    if asked != "auto":
        return asked
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are."""
    return next(module.parameters()).device


def log(run: Run, state: TrainingState, rate: float, losses: Losses) -> None:
    """Add a step to the curve: means since the last row, and now and then the agreement on the held-out images."""
    task, steps = run.task, run.task.steps
    values = {"loss": losses.value} | {name: value.item() for name, value in losses.parts.items()}
    if task.options.class_weights != "none":
        weights = run.objective.weighting.class_weights(losses.class_loss)[losses.member]
        values |= {"class_weight_low": float(weights.min()), "class_weight_high": float(weights.max())}
    for name, value in {**values, "steps": 1.0}.items():
        state.sums[name] = state.sums.get(name, 0.0) + value
    between, last = max(1, steps // CURVE_ROWS), state.step == steps
    if state.step % between == 0 or last:
        taken = state.sums.pop("steps")
        row = {
            "step": float(state.step),
            **{n: total / taken for n, total in state.sums.items()},
            "learning_rate": rate,
        }
        if state.step % (between * ROWS_PER_EVALUATION) == 0 or last:
            with averaged(run.module, state.average):
                row["held_out_agreement"] = agreement_with_teacher(run.module, task.held_out, task.preprocessing)
        state.curve.append(row)
        state.sums = {}
    metrics = values | {"learning_rate": rate}
    agreements = [
        row["held_out_agreement"] for row in state.curve[-ROWS_PER_EVALUATION:] if "held_out_agreement" in row
    ]
    if agreements:
        metrics["held_out_agreement"] = agreements[-1]
    run.progress.update(state.step, steps, "step", metrics)


def divergence(loss: float, state: TrainingState) -> str:
    """What is wrong with a step's loss, in words; empty where nothing is."""
    if not math.isfinite(loss):
        return "not finite"
    recent = RECENT_DECAY * state.recent_loss + (1.0 - RECENT_DECAY) * loss
    if state.step and recent > EXPLODED * state.ignorant_loss:
        return f"{recent:.3g}, more than {EXPLODED:g} times that of a student which knows nothing,"
    return ""


def roll_back(run: Run, state: TrainingState, trouble: str) -> TrainingState:
    """Go back to the last checkpoint at half the rate, once."""
    restored = checkpoints.restore(run.folder, run.task.key, run.trained, run.optimiser)
    if state.rate_scale < 1.0 or restored is None or restored.rate_scale < 1.0:
        raise diverged(state)
    run.progress.warn(
        f"The loss was {trouble} at step {state.step}; training goes on from step {restored.step} at half the rate."
    )
    restored.rate_scale = ROLL_BACK_SCALE
    return on_device(run, restored)


def diverged(state: TrainingState) -> EngineError:
    """The error of a training that can't go on."""
    return EngineError(
        "TRAINING_DIVERGED",
        f"The loss exploded or was not finite at step {state.step}, at {state.rate_scale:g} of the learning rate.",
        "Lower distillation.learning_rate, for instance to a tenth, or bound the gradient by distillation.clip_norm.",
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
    # On a GPU some layers of timm's have no deterministic backward: there it is asked for, not insisted on.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
