"""A student as an ExecuTorch program (`.pte`) for phones, its layers by XNNPACK."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exporters.errors import ExportError
from exporters.interface import Interface
from exporters.runtime_files import Converted, Run, Source

REQUIREMENT = "executorch>=1.5"
NAME, FILE = "executorch", "student.pte"
EXAMPLE_BATCH = 2  # torch.export may take a batch of 1 for a constant
MESSAGE_CHARACTERS = 200
# What torch.export and ExecuTorch's passes raise for a network that they can't take.
UNFIT = (RuntimeError, TypeError, ValueError, KeyError, AttributeError, AssertionError, NotImplementedError)


class WithInterface(nn.Module):
    """A network [N, C, H, W] -> [N, K] with what a file is asked to take and to give around it."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, interface: Interface) -> None:
        super().__init__()
        self.network = network
        self.pixels, self.softmax = interface.pixels, interface.softmax
        if interface.pixels is not None:
            for name in ("mean", "std"):
                values = torch.tensor(getattr(interface.pixels, name), dtype=torch.float32)
                self.register_buffer(name, values.reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] float32, or uint8 [N, H, W, C] pixels, to logits or probabilities [N, K]."""
        if self.pixels is not None:
            x = x.permute(0, 3, 1, 2).to(torch.float32)
            x = x.flip(1) if self.pixels.reverse else x
            x = (x * self.pixels.scale - self.mean) / self.std
        logits: Tensor = self.network(x)
        return torch.softmax(logits, dim=1) if self.softmax else logits


def missing() -> str:
    """What to install where the runtime is not there."""
    return "" if importlib.util.find_spec("executorch") else REQUIREMENT


def convert(source: Source, out: Path) -> Sequence[Converted]:
    """One fp32 program; where the batch is free it takes at most `max_batch` images, for its memory is planned.

    Raises:
        ExportError: torch.export or ExecuTorch can't take the network.
    """
    module = WithInterface(source.module, source.interface).eval()
    batch = source.interface.batch or (1 if source.max_batch == 1 else None)
    example = _example(source, batch or EXAMPLE_BATCH)
    dynamic = None if batch else ({0: torch.export.Dim("batch", min=1, max=source.max_batch)},)
    try:
        with _silence(), _without_cpu_kernels():
            data, version = _lower(module, example, dynamic)
    except UNFIT as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0][:MESSAGE_CHARACTERS]
        raise ExportError(
            f"ExecuTorch can't take {type(source.module).__name__}: {type(error).__name__}: {reason}.",
            "Use the ONNX file.",
            network=type(source.module).__name__,
        ) from error
    path = out / FILE
    path.write_bytes(data)
    return [
        Converted(
            name=NAME,
            path=path,
            precision="fp32",
            target="android",
            made_of="torch",
            details={"executorch": version, "largest_batch": str(batch or source.max_batch)},
        )
    ]


def load(path: Path, threads: int) -> Run:
    """The program on the CPU. XNNPACK has one pool of threads a process: the last file opened sets its size."""
    with _silence():
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        portable_lib._unsafe_reset_threadpool(threads)
        method = Runtime.get().load_program(path).load_method("forward")

    def run(inputs: NDArray[Any]) -> NDArray[np.float32]:
        # A copy: the tensor of the answer lies in memory that the next run writes.
        return np.array(method.execute([torch.from_numpy(np.ascontiguousarray(inputs))])[0].numpy(), np.float32)

    return run


def _lower(module: nn.Module, example: Tensor, dynamic: Any) -> tuple[bytes, str]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.version import __version__

    program = torch.export.export(module, (example,), dynamic_shapes=dynamic)
    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    data: bytes = edge.to_executorch().buffer
    return data, str(__version__)


def _example(source: Source, batch: int) -> Tensor:
    if source.interface.pixels is not None:
        return torch.zeros(batch, source.size, source.size, source.channels, dtype=torch.uint8)
    return torch.zeros(batch, source.channels, source.size, source.size)


@contextlib.contextmanager
def _without_cpu_kernels() -> Iterator[None]:
    """Trace convolutions without torch's own choice of a CPU kernel.

    That choice asks whether the batch is below 16, and torch 2.13 then takes 15 for the largest that there is.
    """
    with torch.backends.mkldnn.flags(enabled=False), torch.backends.nnpack.flags(enabled=False):
        yield


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep ExecuTorch's and torchao's notes on their own deprecations and missing GPU kernels off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
