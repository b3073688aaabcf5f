"""Processes that train one student together, each on its share of every batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """This process among those that train together."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this one keeps checkpoints and reports."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place; every process must ask, with values of one shape."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, in place; as `total`."""
        return self.total(values).div_(self.count) if self.count > 1 else values

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give each parameter the mean of its gradients, as DistributedDataParallel does for the student."""
        for parameter in parameters:
            if parameter.grad is not None:
                self.mean(parameter.grad)

    def wait(self) -> None:
        """Wait until every process has come this far."""
        self.total(torch.zeros(1))

    def own_rows(self, groups: Sequence[int]) -> list[NDArray[np.int64]]:
        """Which rows of each group of a batch are this process's, in turns; every second group from the last process
        on, so that no process has two rows more than another.
        """
        starts = [self.rank if number % 2 == 0 else self.count - 1 - self.rank for number in range(len(groups))]
        return [np.arange(start, size, self.count) for start, size in zip(starts, groups, strict=True)]


ALONE = Processes()


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """The processes that `torch.distributed.run` started, of which this is one; they find each other by its variables.

    Sums of CPU tensors go over gloo, those of CUDA tensors over NCCL.
    """
    dist.init_process_group(BACKENDS[device.type])
    try:
        yield Processes(rank=dist.get_rank(), count=dist.get_world_size())
    finally:
        dist.destroy_process_group()
