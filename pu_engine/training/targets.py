"""Where a step's targets come from: cached logits, or the teacher asked live for the very views of the student."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pu_engine.training.batches import CPU, Batch, Part, Sampler
from pu_engine.training.distill_types import DistillationOptions
from pu_engine.training.processes import ALONE, Processes

AskTeacher = Callable[[Tensor], Tensor]  # uint8 [B, S, S, C] to logits float32 [B, K]


class TargetSource(Protocol):
    """The batches of a training, with the teacher's logits for what they show."""

    def batch(self, step: int) -> Batch:
        """The batch of a step, the same whenever it is asked for."""


class CachedTargets:
    """Batches whose targets were computed before: for image and mirror, or for a bank of views."""

    def __init__(
        self,
        labelled: Part,
        picked: Part,
        options: DistillationOptions,
        seed: int,
        scale: float = 1.0,
        *,
        device: torch.device = CPU,
        processes: Processes = ALONE,
    ) -> None:
        self._sampler = Sampler(labelled, picked, options, seed, scale, device=device, processes=processes)

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        return self._sampler.batch(step)


class LiveTargets:
    """Batches for whose very views the teacher is asked, on the thread that trains."""

    def __init__(self, sampler: Sampler, teacher: AskTeacher, scale: float) -> None:
        self._sampler, self._teacher, self._scale = sampler, teacher, scale

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        batch = self._sampler.batch(step, live=True)
        return replace(batch, targets=self._teacher(batch.images) * self._scale)


class PrefetchedTargets:
    """Another source's batches, each made beside the training of the one before it."""

    def __init__(self, source: TargetSource, steps: int) -> None:
        self._source, self._steps = source, steps
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="targets")
        self._next: tuple[int, Future[Batch]] | None = None

    def batch(self, step: int) -> Batch:
        """The batch of a step; a resumed training's first one is made at once."""
        batch = self._next[1].result() if self._next and self._next[0] == step else self._source.batch(step)
        self._next = (step + 1, self._worker.submit(self._source.batch, step + 1)) if step + 1 < self._steps else None
        return batch


def in_batches(teacher: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> AskTeacher:
    """A teacher of numpy arrays as one of tensors."""
    return lambda images: torch.from_numpy(teacher(images.cpu().numpy()))
