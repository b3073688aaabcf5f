from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from exporters.calibration import BINS, METHODS, float_tensors, observe
from exporters.errors import ExportError

MIB = 2**20


def test_extremes_are_those_of_torch(small_graph: Any) -> None:
    observed = observe(small_graph.model, small_graph.batches, threads=1)
    with torch.no_grad():
        logits = small_graph.module(torch.from_numpy(small_graph.images)).numpy()
    assert observed.lowest["logits"] == pytest.approx(logits.min(), abs=1e-5)
    assert observed.highest["logits"] == pytest.approx(logits.max(), abs=1e-5)
    assert observed.lowest["input"] == small_graph.images.min()
    assert observed.images == 64


def test_every_float_tensor_has_a_histogram_of_what_it_held(small_graph: Any) -> None:
    observed = observe(small_graph.model, small_graph.batches, threads=1)
    assert set(observed.counts) == set(float_tensors(small_graph.model)) > {"input", "logits"}
    assert all(counts.shape == (BINS,) for counts in observed.counts.values())
    assert observed.counts["logits"].sum() == 64 * 5


def test_a_second_observation_is_the_same(small_graph: Any) -> None:
    first, second = (observe(small_graph.model, small_graph.batches, threads=1) for _ in range(2))
    for method in METHODS:
        assert first.ranges(method, symmetric=False) == second.ranges(method, symmetric=False)


def test_a_tensor_that_is_not_finite_is_named(small_graph: Any) -> None:
    def broken(size: int) -> Iterator[np.ndarray[Any, Any]]:
        yield np.full((size, 3, 8, 8), np.nan, np.float32)

    with pytest.raises(ExportError, match="'input' is not finite"):
        observe(small_graph.model, broken, threads=1)


def test_an_unknown_method_lists_the_known_ones(small_graph: Any) -> None:
    observed = observe(small_graph.model, small_graph.batches, threads=1)
    with pytest.raises(ValueError, match="minmax, least-squares"):
        observed.ranges("entropy", symmetric=True)


def test_the_largest_activation_is_named(small_graph: Any) -> None:
    observed = observe(small_graph.model, small_graph.batches, threads=1)
    name, size = observed.largest()
    assert size == max(max(-observed.lowest[n], observed.highest[n]) for n in observed.lowest)
    assert name in observed.lowest


CALIBRATING = """
import json, resource, sys
import numpy as np, torch
from exporters.calibration import observe
from exporters.torch_to_onnx import to_onnx
network = torch.nn.Sequential(
    torch.nn.Conv2d(3, 32, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(32, 64, 3, 2, 1), torch.nn.ReLU(),
    torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, 10),
)
model = to_onnx(network.eval(), size=64, channels=3)
def batches(size):
    rng = np.random.default_rng(0)
    for start in range(0, 10_000, size):
        yield rng.normal(size=(min(size, 10_000 - start), 3, 64, 64)).astype(np.float32)
images = observe(model, batches, threads=1).images
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"images": images, "peak": peak}))
"""


@pytest.mark.slow
def test_ten_thousand_images_calibrate_within_a_gibibyte() -> None:
    done = subprocess.run([sys.executable, "-c", CALIBRATING], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["images"] == 10_000
    assert said["peak"] < 1024 * MIB
