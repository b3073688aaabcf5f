"""A small network with a residual addition, trained by nobody, and its graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exporters.torch_to_onnx import to_onnx

SIZE, CLASSES = 8, 5


class Residual(nn.Module):
    """Two convolutions with an addition around the second, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 1, 1)
        self.second = nn.Conv2d(8, 8, 3, 1, 1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.second(x))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


@dataclass(frozen=True)
class SmallGraph:
    """A module, its fp32 graph, and images as the network takes them, [64, 3, 8, 8]."""

    module: nn.Module
    model: Any
    images: NDArray[np.float32]

    def batches(self, size: int) -> Iterator[NDArray[np.float32]]:
        return (self.images[start : start + size] for start in range(0, len(self.images), size))


@pytest.fixture(scope="session")
def small_graph() -> SmallGraph:
    torch.manual_seed(0)
    module = Residual().eval()
    images = np.random.default_rng(0).normal(size=(64, 3, SIZE, SIZE)).astype(np.float32)
    return SmallGraph(module=module, model=to_onnx(module, size=SIZE, channels=3), images=images)


@pytest.fixture(scope="session")
def operators() -> Callable[[Any], list[str]]:
    """The operators of a graph's nodes, in order."""
    return lambda model: [node.op_type for node in model.graph.node]
