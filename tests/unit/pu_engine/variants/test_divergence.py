from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from exporters.torch_to_onnx import to_onnx
from pu_engine.variants.divergence import first_difference, layer_outputs


@pytest.fixture(scope="module")
def network() -> tuple[nn.Sequential, Any]:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).eval()
    return module, to_onnx(module, size=8, channels=3)


def images() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("weight", "layer"), [("0.weight", "0"), ("3.weight", "3, 2 before"), ("6.bias", "6, 5 before")]
)
def test_the_layer_from_which_on_nothing_is_equal_is_named(network: Any, weight: str, layer: str) -> None:
    module, model = network
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensor = next(t for t in changed.graph.initializer if t.name.startswith(weight))
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + np.float32(1.0), tensor.name))
    assert first_difference(module, changed, images(), images(), tolerance=1e-4).startswith(layer)


def test_a_file_that_is_equal_to_its_last_layer_differs_behind_it(network: Any) -> None:
    module, model = network
    assert first_difference(module, model, images(), images(), tolerance=1e-4) == "behind 6, the last layer"


def test_layers_come_in_the_order_of_the_arithmetic_and_keep_what_they_gave(network: Any) -> None:
    names = [name for name, _ in layer_outputs(network[0], images())]
    assert names == ["0", "1", "2", "3", "4", "5", "6"]
