"""The distillation loop: SGD with momentum under a cosine rate, resumable to the bit on a CPU.

Several processes may run it together (`Task.processes`): each computes its rows of every batch, gradients, batch
statistics and the classes' losses are those of the whole batch, and the first one keeps checkpoints and reports.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pu_engine.errors import EngineError
from pu_engine.progress import Progress
from pu_engine.student.features import FeatureTap
from pu_engine.training import averaging, checkpoints
from pu_engine.training.averaging import averaged
from pu_engine.training.batches import CPU, DROPOUT_STREAM, Batch, Part, derived_seed
from pu_engine.training.checkpoints import StepValues, TrainingState
from pu_engine.training.class_weighting import class_weighting
from pu_engine.training.distill_types import DistillationOptions
from pu_engine.training.evaluation import agreement_with_teacher, model_input
from pu_engine.training.objective import Losses, Objective
from pu_engine.training.processes import ALONE, Processes
from pu_engine.training.synchronised_norm import synchronise
from pu_engine.training.targets import CachedTargets, TargetSource
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
# A GPU waits for kernels to be started where networks are small: a CIFAR ResNet-20 is expected at 1e12 on any.
ASSUMED_GPU_MACS_PER_SECOND = 1e12
MOST_GPU_STEPS_BETWEEN = 500
UNREAD_ON_A_GPU = 20  # steps: well under a second of small students
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
    processes: Processes = ALONE  # that train together, this one among them


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
            if run.scaler.is_enabled():
                state.gradient_scale = run.scaler.get_scale()
            if task.processes.first:
                checkpoints.save(folder, task.key, run.trained, run.optimiser, state)

        # Dropout and stochastic depth draw from torch's own generator, in each process otherwise.
        own = () if task.processes.first else (task.processes.rank,)
        torch.manual_seed(derived_seed(task.seed, DROPOUT_STREAM, state.step, *own))
        rate = learning_rate(state.step, task.steps, options) * state.rate_scale
        for group in run.optimiser.param_groups:
            group["lr"] = rate
        losses = forward(run, run.source.batch(state.step), state)
        run.optimiser.zero_grad(set_to_none=True)
        run.scaler.scale(losses.total).backward()  # type: ignore[no-untyped-call]
        task.processes.average_gradients(run.objective.parameters())
        if options.clip_norm:
            run.scaler.unscale_(run.optimiser)
            torch.nn.utils.clip_grad_norm_(run.trained.parameters(), options.clip_norm)
        run.scaler.step(run.optimiser)
        run.scaler.update()
        advance(run, state, rate, losses)

        if due(run, state) and (trouble := read(run, state)):
            state = roll_back(run, state, trouble)
    if not all_finite(module):
        raise diverged(state)
    if run.features is not None:
        run.features.remove()
    if state.average:
        module.load_state_dict(state.average)
    module.eval()
    return state.curve


def start(module: nn.Module, task: Task, folder: Path, progress: Progress) -> Run:
    """Everything that a training needs, on its device.

    With several processes the module's batch normalisations are replaced by ones that use the whole batch's statistics.
    """
    options, device, processes = task.options, device_of(module), task.processes
    if processes.count > 1:
        synchronise(module, device)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weighting = class_weighting(task.labelled, task.picked, options, task.seed, task.target_scale)
    tap, widths = None, None
    if options.loss.hints and task.labelled.features is not None:
        tap = FeatureTap(module)
        widths = tap.width, int(task.labelled.features.shape[1])
    torch.manual_seed(derived_seed(task.seed, DROPOUT_STREAM))  # the projection's first weights
    objective = Objective(
        options.loss, weighting, teacher_accuracy=task.teacher_accuracy, widths=widths, processes=processes
    ).to(device)
    trained = nn.ModuleDict({"student": module, "objective": objective})
    optimiser = torch.optim.SGD(
        [
            {"params": list(module.parameters()), "weight_decay": options.weight_decay},
            *([{"params": own, "weight_decay": 0.0}] if (own := list(objective.parameters())) else []),
        ],
        lr=1.0, momentum=MOMENTUM, nesterov=True,
    )  # fmt: skip
    # Statistics stay the same in all processes: no step has to broadcast them.
    network = DistributedDataParallel(module, forward_sync_buffers=False) if processes.count > 1 else module
    if options.compiled:
        network = torch.compile(network)  # type: ignore[assignment]
    dtype = PRECISIONS[precision(options.precision, device)]
    return Run(
        module=module,
        network=network,
        trained=trained,
        optimiser=optimiser,
        objective=objective,
        features=tap,
        source=task.source
        or CachedTargets(
            task.labelled, task.picked, options, task.seed, task.target_scale, device=device, processes=processes
        ),
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
    run.task.processes.wait()  # before the first one writes a checkpoint that another is reading
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
        state.ignorant_loss = run.task.processes.mean(nothing.total.detach()).item()
    losses: Losses = run.objective(logits, features, batch, state.class_loss, first=first)
    return losses


def advance(run: Run, state: TrainingState, rate: float, losses: Losses) -> None:
    """Count a finished step; its numbers are kept where they are, to be read later."""
    numbers = {"loss": losses.total.detach(), **losses.parts}
    if run.task.options.class_weights != "none":
        weights = losses.class_weights
        numbers |= {"class_weight_low": weights.min(), "class_weight_high": weights.max()}
    values = torch.stack(list(numbers.values()))
    state.unread.append(StepValues(step=state.step, rate=rate, names=tuple(numbers), values=values))
    state.class_loss = losses.class_loss
    state.step += 1
    if state.average:
        averaging.move(state.average, run.module, run.task.options.average_decay, state.step)


def learning_rate(step: int, steps: int, options: DistillationOptions) -> float:
    """Linear warm-up to the peak, then half a cosine to 0."""
    warm_up = max(1, round(steps * options.warmup_share))
    if step < warm_up:
        return options.learning_rate * (step + 1) / warm_up
    share = (step - warm_up) / max(1, steps - warm_up)
    return options.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))


def checkpoint_steps(macs: int, batch_size: int, device: torch.device = CPU) -> int:
    """Steps between checkpoints, from the work of one step and the kind of device alone."""
    on_gpu = device.type == "cuda"
    rate = ASSUMED_GPU_MACS_PER_SECOND if on_gpu else ASSUMED_MACS_PER_SECOND
    most = MOST_GPU_STEPS_BETWEEN if on_gpu else MOST_STEPS_BETWEEN
    return max(1, min(most, round(CHECKPOINT_SECONDS * rate / (3 * macs * batch_size))))


def precision(asked: str, device: torch.device) -> str:
    """The arithmetic of the forward: what was asked for, or fp32 on a CPU and bf16 (else fp16) on a GPU."""
    if asked != "auto":
        return asked
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def training_device() -> torch.device:
    """Where students are trained here: on a GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are."""
    return next(module.parameters()).device


def due(run: Run, state: TrainingState) -> bool:
    """Whether the numbers of the last steps are to be read: on a CPU always, on a GPU now and then, for it makes the
    host wait; everywhere before a checkpoint, a row of the curve and the end.
    """
    task = run.task
    between = UNREAD_ON_A_GPU if run.device.type == "cuda" else 1
    return (
        any(state.step % count == 0 for count in (between, row_steps(task), task.checkpoint_steps))
        or state.step == task.steps
    )


def read(run: Run, state: TrainingState) -> str:
    """Read the numbers of the steps since the last time, in order, and report the last ones.

    Returns:
        What is wrong with a step's loss, in words; `state.step` is then that step's. Empty where nothing is.
    """
    unread, state.unread = state.unread, []
    numbers: list[list[float]] = run.task.processes.mean(torch.stack([one.values for one in unread])).tolist()
    metrics: dict[str, float] = {}
    for one, values in zip(unread, numbers, strict=True):
        trouble = divergence(one.step, values[0], state)
        if trouble:
            state.step = one.step
            return trouble
        state.recent_loss = recent_loss(one.step, values[0], state)
        metrics = dict(zip(one.names, values, strict=True))
        add_to_curve(run, state, one, metrics)
    metrics["learning_rate"] = unread[-1].rate
    agreements = [
        row["held_out_agreement"] for row in state.curve[-ROWS_PER_EVALUATION:] if "held_out_agreement" in row
    ]
    if agreements:
        metrics["held_out_agreement"] = agreements[-1]
    run.progress.update(state.step, run.task.steps, "step", metrics)
    return ""


def add_to_curve(run: Run, state: TrainingState, one: StepValues, metrics: dict[str, float]) -> None:
    """Add a step to the curve: means since the last row, and now and then the agreement on the held-out images."""
    task, done = run.task, one.step + 1
    for name, value in {**metrics, "steps": 1.0}.items():
        state.sums[name] = state.sums.get(name, 0.0) + value
    last = done == task.steps
    if done % row_steps(task) and not last:
        return
    taken = state.sums.pop("steps")
    row = {"step": float(done), **{n: total / taken for n, total in state.sums.items()}, "learning_rate": one.rate}
    if task.processes.first and (done % (row_steps(task) * ROWS_PER_EVALUATION) == 0 or last):
        with averaged(run.module, state.average):
            row["held_out_agreement"] = agreement_with_teacher(run.module, task.held_out, task.preprocessing)
    state.curve.append(row)
    state.sums = {}


def row_steps(task: Task) -> int:
    """Steps that a row of the curve stands for."""
    return max(1, task.steps // CURVE_ROWS)


def divergence(step: int, loss: float, state: TrainingState) -> str:
    """What is wrong with a step's loss, in words; empty where nothing is."""
    if not math.isfinite(loss):
        return "not finite"
    recent = recent_loss(step, loss, state)
    if step and recent > EXPLODED * state.ignorant_loss:
        return f"{recent:.3g}, more than {EXPLODED:g} times that of a student which knows nothing,"
    return ""


def recent_loss(step: int, loss: float, state: TrainingState) -> float:
    """The decayed mean of the losses, a step's own included."""
    before = state.recent_loss if step else loss
    return RECENT_DECAY * before + (1.0 - RECENT_DECAY) * loss


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
    return bool(torch.stack([torch.isfinite(value).all() for value in module.state_dict().values()]).all())


@contextmanager
def repeatable(threads: int) -> Iterator[None]:
    """Torch with a fixed number of threads and deterministic algorithms; what was set before comes back."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic  # it sets itself up by a class, whose property no checker sees
    filled = memory.fill_uninitialized_memory
    torch.set_num_threads(threads)
    # On a GPU some layers of timm's have no deterministic backward: there it is asked for, not insisted on.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    # It fills what every layer is about to write: a kernel more for each.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        memory.fill_uninitialized_memory = filled
