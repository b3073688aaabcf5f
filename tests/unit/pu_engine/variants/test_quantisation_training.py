from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from exporters.calibration import observe
from exporters.inference import logits_of, open_model
from exporters.quantisation import quantise
from exporters.torch_to_onnx import to_onnx
from pu_engine.distillation import run as run_distillation
from pu_engine.progress import SilentProgress
from pu_engine.results import load
from pu_engine.student.files import load_student
from pu_engine.training.batches import Part
from pu_engine.twin.structure import TwinUnavailable
from pu_engine.twin.torch_twin import build
from pu_engine.types import ExportInputs, ExportOptions, Variants
from pu_engine.variants import quantisation_training
from pu_engine.variants.int8_task import Int8Task
from pu_engine.variants.int8_variants import int8
from pu_engine.variants.onnx_variants import fp32_graph
from pu_engine.variants.quantisation_training import Rounded, start_from, steps_of, weight_origins, with_weights
from pu_engine.variants.sample_images import Sample, calibration_and_validation, parts_without
from tests.unit.pu_engine.conftest import SIZE, finish, make_small_job


class Residual(torch.nn.Module):
    """Two convolutions with an addition around the second, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, 1, 1)
        self.second = torch.nn.Conv2d(8, 8, 3, 1, 1)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.second(x))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


@pytest.fixture(scope="module")
def base() -> Any:
    torch.manual_seed(0)
    return to_onnx(Residual().eval(), size=SIZE, channels=3)


@pytest.fixture(scope="module")
def images() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(size=(32, 3, SIZE, SIZE)).astype(np.float32)


def quantised(base: Any, images: np.ndarray[Any, np.dtype[np.float32]], form: str) -> Any:
    observed = observe(base, lambda size: iter([images]), threads=1)
    return quantise(base, observed.ranges("minmax", symmetric=form == "int8-trt"), form)


@pytest.mark.parametrize("form", ["int8-cpu", "int8-trt"])
def test_what_is_trained_computes_what_the_int8_file_computes(base: Any, images: Any, form: str) -> None:
    graph = quantised(base, images, form)
    twin = build(graph)
    origins = weight_origins(twin, graph, base)
    start_from(twin, origins, base)
    rounded = {origin.source for origin in origins.values() if origin.rounded}
    assert rounded == {"first.weight", "second.weight", "head.weight"}
    with torch.no_grad():
        given = twin(torch.from_numpy(images)).numpy()
    expected = logits_of(open_model(graph, threads=1), iter([images]))
    # One step of an activation here and there: a bias of int32, and sums in another order.
    assert np.abs(given - expected).max() < 0.03 * np.abs(expected).max()


def test_the_gradient_reaches_every_weight_through_the_rounding(base: Any, images: Any) -> None:
    graph = quantised(base, images, "int8-cpu")
    twin = build(graph)
    start_from(twin, weight_origins(twin, graph, base), base)
    torch.autograd.backward(twin(torch.from_numpy(images)).square().sum())
    gradients = {name: p.grad for name, p in twin.named_parameters()}
    assert len(gradients) == 6
    assert all(g is not None and bool(g.abs().sum() > 0) for g in gradients.values())


def test_a_rounded_weight_has_255_values_a_channel_at_most() -> None:
    weight = torch.randn(4, 300, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[1.0], [2.0], [4.0], [0.0]]
    )
    rounded = Rounded(0)(weight)
    assert all(len(row.unique()) <= 255 for row in rounded)
    # Half a step of the channel's own.
    steps = weight.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((rounded - weight).abs() <= steps / 2 + 1e-6).all())
    assert float(Rounded(None)(torch.tensor([0.4, 127.0]))[0]) == 0.0


def test_the_default_takes_fewer_steps_of_a_large_student() -> None:
    assert steps_of(None, 1_000_000, 128) == 200
    # 3 x 10^9 x 64 / (5 x 10^9) = 38.4 s a step, of which ten minutes hold 15; 20 are always taken.
    assert steps_of(None, 1_000_000_000, 128) == 20
    # 3 x 2 x 10^8 x 64 / (5 x 10^9) = 7.68 s.
    assert steps_of(None, 200_000_000, 128) == 78
    assert steps_of(1000, 1_000_000_000, 128) == 1000


def test_only_the_named_weights_change(base: Any) -> None:
    changed = with_weights(base, {"head.bias": np.ones(5, np.float32)})
    before, after = (
        {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer} for model in (base, changed)
    )
    assert [name for name in before if not np.array_equal(before[name], after[name])] == ["head.bias"]


def part(n: int, *, labelled: bool) -> Part:
    return Part(
        images=np.arange(n * 12, dtype=np.uint8).reshape(n, 2, 2, 3), targets=np.zeros((n, 2, 3), np.float32),
        labels=np.arange(n) if labelled else np.zeros(0, np.int64),
    )  # fmt: skip


def test_images_that_candidates_are_measured_on_are_not_trained_on() -> None:
    labelled, picked = part(4, labelled=True), part(5, labelled=False)
    sample = Sample(parts=(picked, labelled), rows=np.array([1, 3, 6]), preprocessing=None)  # type: ignore[arg-type]
    kept, drawn = parts_without(sample, labelled, picked)
    assert drawn.weights is not None
    assert drawn.weights.tolist() == [1.0, 0.0, 1.0, 0.0, 1.0]
    assert kept.labels.tolist() == [0, 2, 3]
    weighted = replace(picked, weights=np.full(5, 2.0, np.float32))
    assert parts_without(sample, labelled, weighted)[1].weights.tolist() == [2.0, 0.0, 2.0, 0.0, 2.0]  # type: ignore[union-attr]
    everything = replace(sample, rows=np.arange(5))
    assert len(parts_without(everything, labelled, picked)[1]) == 0


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Int8Task:
    """A trained student of which one channel a block is 400 times the others: no range of 256 steps holds both."""
    folder = tmp_path_factory.mktemp("outlier")
    small = make_small_job(folder, 300, 3)
    (folder / "trained").mkdir()
    trained = finish(folder / "trained", run_distillation(small.inputs(), folder / "trained", SilentProgress()))
    spec, module = load_student(folder / "trained")
    weights = module.state_dict()
    with torch.no_grad():
        for block in ("blocks.0", "blocks.1", "blocks.2"):
            for name in ("weight", "bias"):
                weights[f"{block}.norm1.{name}"][0] *= 400.0
            weights[f"{block}.conv2.weight"][:, 0] /= 400.0
    base = fp32_graph(spec, module)
    calibration, validation = calibration_and_validation(Path(small.gathering.path), spec.preprocessing)
    options = ExportOptions(targets=("cpu",), quantisation_training_steps=60)
    return Int8Task(
        inputs=ExportInputs(distillation=trained, gathering=small.gathering, export=options, batch_size=32),
        spec=spec, base=base, observed=observe(base, calibration.batches, threads=1), calibration=calibration,
        validation=validation, scratch=folder, progress=SilentProgress(),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def no_node_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its nodes in float again the student would meet any budget."""
    monkeypatch.setattr("exporters.int8_search.TAKEN_OUT_SHARE", 0.0)


def without_training(task: Int8Task) -> Int8Task:
    export = replace(task.inputs.export, quantisation_training_steps=0)
    return replace(task, inputs=replace(task.inputs, export=export))


def test_int8_that_misses_its_budget_is_trained_and_kept_where_that_helps(task: Int8Task) -> None:
    _, before = int8(without_training(task), "int8-cpu")
    model, after = int8(task, "int8-cpu")
    assert (before["within_budget"], after["within_budget"]) == ("no", "yes")
    assert float(after["validation_agreement"]) > float(before["validation_agreement"])
    assert "training" not in before
    assert after["training_steps"] == "60"
    assert after["training"].startswith(f"agreement {before['validation_agreement']} before, ")
    assert after["training"].endswith("; kept")
    assert not (task.scratch / quantisation_training.CHECKPOINTS).exists()
    # The file that is handed out is the one that was measured.
    given = logits_of(open_model(model, threads=1), task.validation.batches(32)).argmax(axis=1)
    expected = logits_of(open_model(task.base, threads=1), task.validation.batches(32)).argmax(axis=1)
    assert f"{(given == expected).mean():.4f}" == after["validation_agreement"]


def test_int8_within_its_budget_is_not_trained(exported_job: Any) -> None:
    made = load(Variants, exported_job.export.path)
    assert "training" not in made.variants[1].details


def test_a_graph_that_has_no_twin_keeps_what_there_was_and_says_why(
    task: Int8Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: Any) -> Any:
        raise TwinUnavailable("Erf", "node", "it is not known")

    monkeypatch.setattr(quantisation_training, "build", refuse)
    _, details = int8(task, "int8-cpu")
    assert details["training_steps"] == "0"
    assert details["training"] == "The int8 graph can't be trained: Erf 'node': it is not known."
