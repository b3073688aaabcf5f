"""What does the distillation loop cost beside a bare torch loop with the same network, loss and targets?

`python -m benchmarks.step --out F.json [--student cifar_resnet20] [--size 32] [--batch-size 128] [--steps 40]`

bare: forward, KL, backward and SGD step on one batch that stays in memory. cached: the loop as it is, images and
targets drawn, cropped and mirrored anew each step, with its curve and its checks. live: the same with the teacher's
torch twin asked for each batch, beside the teacher's own seconds and the student's. Rounds alternate; medians.

On a GPU a round is timed as a whole, for there the host runs ahead: give it `--steps 1000`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.conditions import conditions
from benchmarks.table import bar, print_bars, print_table, write_json
from pu_engine.student.catalogue import build
from pu_engine.student.spec import describe
from pu_engine.training.batches import Part, Sampler
from pu_engine.training.distill_types import DistillationOptions
from pu_engine.training.evaluation import model_input
from pu_engine.training.loop import MOMENTUM, Task, repeatable, train
from pu_engine.training.targets import LiveTargets
from pu_engine.types import TrainingSet

CLASSES, IMAGES, WARM_UP = 10, 2000, 3
TEACHER = "cifar_resnet56"
CACHED_BAR, LIVE_BAR = 1.05, 1.10


class Clock:
    """A progress that notes when steps ended: those since the last note, together."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.done: list[int] = []

    def update(self, done: int, total: int, unit: str, metrics: Mapping[str, float] | None = None) -> None:
        self.ends.append(time.perf_counter())
        self.done.append(done)

    def step_seconds(self) -> list[float]:
        """Of each step on a CPU; on a GPU, where several are noted at once, the mean of all that were."""
        if not torch.cuda.is_available():
            return [float(gap) for gap in np.diff(self.ends)[WARM_UP - 1 :]]
        first = next((i for i, done in enumerate(self.done) if done >= WARM_UP), 0)
        return [(self.ends[-1] - self.ends[first]) / max(1, self.done[-1] - self.done[first])]

    def warn(self, text: str) -> None:
        """Noise has nothing to say."""


def main() -> int:
    """Time the loops in turns; 1 where a bar does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--student", default="cifar_resnet20")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = conditions(
        student=options.student, batch_size=options.batch_size, size=options.size, threads=options.threads,
        device=torch.cuda.get_device_name(0) if device.type == "cuda" else "cpu",
    )  # fmt: skip
    with repeatable(options.threads):
        found = rounds(options, device)
    medians = {name: statistics.median(values) for name, values in found.items()}
    cached, live = medians["cached"] / medians["bare"], medians["live"] / (medians["teacher"] + medians["cached"])
    bars = [
        bar("cached step / bare step", cached, CACHED_BAR, at_least=False),
        bar("live step / (teacher + student)", live, LIVE_BAR, at_least=False),
    ]
    cells = [[name, f"{1000 * value:.1f}", f"{options.batch_size / value:,.0f}"] for name, value in medians.items()]
    print_table("Step", ["loop", "ms", "images/s"], cells)
    print_bars(bars)
    rows = [{"loop": name, "seconds": medians[name], "rounds": values} for name, values in found.items()]
    write_json(options.out, {"conditions": facts, "rows": rows, "bars": bars})
    return 0 if all(b["holds"] for b in bars) else 1


def rounds(options: argparse.Namespace, device: torch.device) -> dict[str, list[float]]:
    """Median seconds a step of each loop, by round."""
    part, task = noise(options.size), task_of(options)
    teacher = build(TEACHER, options.size, 3, CLASSES).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ask = asked(teacher, task, device)
    sampler = Sampler(part, part, task.options, 0, device=device)
    batch = sampler.batch(0).images
    loops: dict[str, Callable[[], list[float]]] = {
        "bare": lambda: bare(student(options, device), task, device),
        "cached": lambda: looped(student(options, device), task),
        "teacher": lambda: timed(lambda: ask(batch), options.steps),
        "live": lambda: looped(student(options, device), replace(task, source=LiveTargets(sampler, ask, 1.0))),
    }
    found: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(options.rounds):
        for name, loop in loops.items():
            found[name].append(statistics.median(loop()))
    return found


def student(options: argparse.Namespace, device: torch.device) -> nn.Module:
    """A fresh student."""
    torch.manual_seed(0)
    return build(options.student, options.size, 3, CLASSES).to(device)


def bare(module: nn.Module, task: Task, device: torch.device) -> list[float]:
    """Seconds of each step of a plain loop on one batch with known targets."""
    module.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    options = task.options
    optimiser = torch.optim.SGD(
        module.parameters(), lr=0.01, momentum=MOMENTUM, nesterov=True, weight_decay=options.weight_decay
    )
    batch = Sampler(task.labelled, task.picked, options, 0).batch(0).to(device)
    images, temperature = model_input(batch.images, task.preprocessing), options.loss.temperature
    p = F.softmax(batch.targets / temperature, dim=1)

    def step() -> None:
        logits = module(images)
        loss = F.kl_div(F.log_softmax(logits / temperature, dim=1), p, reduction="batchmean") * temperature**2
        loss = loss + options.loss.labels * F.cross_entropy(logits[: len(batch.labels)], batch.labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return timed(step, task.steps)


def looped(module: nn.Module, task: Task) -> list[float]:
    """Seconds of each step of the loop that trains students."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        train(module, task, Path(folder) / "checkpoints", clock)
    return clock.step_seconds()


def timed_rate(loop: Callable[[], list[float]]) -> float:
    """Median seconds a step of a loop; with few steps those that there are."""
    gaps = loop()
    return statistics.median(gaps) if gaps else float("nan")


def timed(step: Callable[[], object], steps: int) -> list[float]:
    """Seconds of each call, the first ones left out; on a GPU the mean, which the host waits for once."""
    clock, on_gpu = Clock(), torch.cuda.is_available()
    for done in range(1, steps + 1):
        step()
        if on_gpu and done in (WARM_UP, steps):
            torch.cuda.synchronize()
        clock.update(done, steps, "step")
    return clock.step_seconds()


def asked(teacher: nn.Module, task: Task, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """A torch teacher as what a live source asks."""

    def ask(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = teacher(model_input(images.to(device), task.preprocessing))
        return logits

    return ask


def noise(size: int) -> Part:
    """Images and targets of noise: what they show costs nothing."""
    generator = np.random.default_rng(0)
    return Part(
        images=generator.integers(0, 256, (IMAGES, size, size, 3), np.uint8),
        targets=generator.normal(size=(IMAGES, 2, CLASSES)).astype(np.float32),
        labels=generator.integers(0, CLASSES, IMAGES),
    )


def task_of(options: argparse.Namespace) -> Task:
    """A training as long as a round, with one checkpoint at its start."""
    part, module = noise(options.size), build(options.student, options.size, 3, CLASSES)
    arrays = TrainingSet(
        size=options.size, fit="stretch", channels=3, classes=CLASSES, labelled=IMAGES, picked=IMAGES, held_out=16,
        parity=0, parity_unpicked=0,
    )  # fmt: skip
    spec = describe(options.student, module, arrays, tuple(map(str, range(CLASSES))))
    held_out = Part(images=part.images[:16], targets=part.targets[:16], labels=part.labels[:16])
    return Task(
        labelled=part, picked=part, held_out=held_out, preprocessing=spec.preprocessing,
        options=DistillationOptions(batch_size=options.batch_size), steps=options.steps, seed=0,
        checkpoint_steps=options.steps, key="step",
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
