"""What a further runtime's exporter takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from exporters.interface import Interface

# One input tensor, as the file takes it, to its first output [N, K].
Run = Callable[[NDArray[Any]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The student in every form that there is of it."""

    module: nn.Module  # [N, channels, size, size] -> [N, K] logits, in eval mode, branches merged
    size: int
    channels: int
    interface: Interface  # what the file is asked to take and to give; ONNX files have it inside already
    onnx: Mapping[str, Path]  # finished ONNX files by variant, fp32 among them
    max_batch: int  # that a file must be able to run, where the interface leaves the batch free


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A file that a runtime loads."""

    name: str  # of the variant, for instance "openvino-int8"
    path: Path
    precision: str  # fp32 | fp16 | int8: which gate it has to meet
    target: str  # the family of devices that it is for
    made_of: str  # the ONNX variant, or "torch"
    beside: tuple[Path, ...] = ()  # files without which `path` can't be loaded
    details: Mapping[str, str] = field(default_factory=dict)


class Exporter(Protocol):
    """A runtime. A module with these functions is one."""

    def missing(self) -> str:
        """What has to be installed first, as pip takes it; empty where the runtime is there."""

    def convert(self, source: Source, out: Path) -> Sequence[Converted]:
        """Write the runtime's files into a folder.

        Raises:
            ExportError: the runtime can't take the student.
        """

    def load(self, path: Path, threads: int) -> Run:
        """A file that `convert` wrote, ready to run on this machine's CPU with so many threads."""
