from __future__ import annotations

import pytest
import torch
from torch import nn

from pu_engine.training import averaging


def network(value: float) -> nn.Module:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


def test_the_start_is_soon_forgotten_and_then_the_decay_holds() -> None:
    module, average = network(1.0), averaging.start(network(0.0))
    averaging.move(average, module, 0.9, step=1)
    assert average["weight"].item() == pytest.approx(1 - 2 / 11)
    average = averaging.start(network(0.0))
    averaging.move(average, module, 0.9, step=10_000)
    assert average["weight"].item() == pytest.approx(0.1)


def test_the_mean_does_not_follow_the_module_by_itself() -> None:
    module = network(1.0)
    average = averaging.start(module)
    nn.init.constant_(module.weight, 5.0)  # type: ignore[arg-type]
    assert average["weight"].item() == 1.0


def test_counts_are_taken_over_as_they_are() -> None:
    module = nn.BatchNorm2d(2)
    average = averaging.start(module)
    module(torch.randn(4, 2, 3, 3))
    averaging.move(average, module, 0.9, step=50)
    assert average["num_batches_tracked"] == 1


def test_a_module_wears_its_mean_for_a_while() -> None:
    module = network(1.0)
    with averaging.averaged(module, {"weight": torch.tensor([[7.0]])}):
        assert module.weight.item() == 7.0  # type: ignore[operator]
    assert module.weight.item() == 1.0  # type: ignore[operator]
    with averaging.averaged(module, {}):
        assert module.weight.item() == 1.0  # type: ignore[operator]
