"""What intake says of a twin: proved on images, refused with a reason, never at the cost of the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from pu_engine.jsonform import from_json, to_json
from pu_engine.runtime import forward
from pu_engine.twin import proof
from pu_engine.twin.proof import compared, error_bound, first_difference, prove
from pu_engine.twin.report import TwinReport
from pu_engine.twin.torch_twin import build, load
from tests.unit.pu_engine.twin_cases import model_of, node, normal, single

ROWS = np.random.default_rng(1).normal(size=(10, 4)).astype(np.float32)


def perceptron(last: str = "Identity") -> Any:
    nodes = [
        node("MatMul", "input w1", "h"),
        node("Relu", "h", "r"),
        node("MatMul", "r w2", "y", name="head"),
        node(last, "y", "output", name="last"),
    ]
    return model_of(nodes, {"w1": normal(4, 8), "w2": normal(8, 3)}, (4,))


def proved(folder: Path, model: Any, logits: NDArray[Any] | None = None, **changes: Any) -> TwinReport:
    if logits is None:
        logits = forward.run_rows(forward.stranger_session(model, 1), ROWS, None)[0]
    options: dict[str, Any] = {"macs": 100, "batch": None, "threads": 1}
    return prove(folder, model, ROWS, logits.astype(np.float64), **(options | changes))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_twin_that_holds_is_written(tmp_path: Path) -> None:
    report = proved(tmp_path, perceptron())
    assert (report.available, report.reason, report.parameters, report.images) == (True, "", 56, 10)
    assert report.agreement == 1.0
    assert report.max_error is not None
    assert report.max_error < 1e-6
    assert files(tmp_path) == ["twin.json", "twin.safetensors"]


def test_a_twin_that_differs_is_not_written(tmp_path: Path) -> None:
    logits = forward.run_rows(forward.stranger_session(perceptron(), 1), ROWS, None)[0]
    report = proved(tmp_path, perceptron(), logits + 1)
    assert not report.available
    assert report.reason.startswith("its logits differ by ")
    assert files(tmp_path) == []


def test_an_operator_that_is_missing_is_named_and_nothing_fails(tmp_path: Path) -> None:
    report = proved(tmp_path, perceptron("Hardmax"))
    assert report == TwinReport(
        available=False, reason="Hardmax 'last': torch has no form of this operator in the twin's table"
    )
    assert files(tmp_path) == []


def test_a_fixed_batch_and_too_many_parameters_are_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert proved(tmp_path, perceptron(), batch=4).reason == "the teacher runs at a batch of 4 only"
    monkeypatch.setattr(proof, "MOST_PARAMETERS", 50)
    assert proved(tmp_path, perceptron()).reason.startswith("the teacher has 56 parameters; up to 50 fit")


def test_torch_out_of_memory_costs_the_twin_only(tmp_path: Path) -> None:
    nodes = [node("MatMul", "input w", "y"), node("Tile", "y repeats", "t"), node("ReduceMax", "t", "z", axes=[2])]
    nodes += [node("Flatten", "z", "output")]
    weights = {"w": normal(4, 3), "repeats": np.array([1, 2**44], np.int64)}
    report = prove(
        tmp_path, model_of(nodes, weights, (4,)), ROWS, np.zeros((10, 3)), macs=1, batch=None, threads=1
    )  # fmt: skip
    assert not report.available
    assert report.reason.startswith("Tile 't': ")


def test_a_graph_that_fails_on_the_images_costs_the_twin_only(tmp_path: Path) -> None:
    nodes = [node("MatMul", "input w", "y"), node("Reshape", "y two", "output")]
    weights = {"w": normal(4, 3), "two": np.array([2, 3], np.int64)}
    report = proved(tmp_path, model_of(nodes, weights, (4,)), np.zeros((10, 3)))
    assert not report.available
    assert report.reason.startswith("it can't be run on the images: shape '[2, 3]' is invalid")


def test_costly_teachers_are_proved_on_fewer_images(tmp_path: Path) -> None:
    assert proved(tmp_path, perceptron(), macs=10**12).images == 8


def test_quantised_teachers_are_judged_by_their_predictions() -> None:
    theirs = np.eye(3)[np.arange(20) % 3] * 10
    ours = theirs + np.random.default_rng(0).normal(0, 0.5, theirs.shape)
    assert compared(ours, theirs, bound=None, parameters=1).available
    ours[:3] = np.roll(ours[:3], 1, axis=1)
    refused = compared(ours, theirs, bound=None, parameters=1)
    assert (refused.available, refused.quantised, refused.agreement) == (False, True, 0.85)
    assert refused.reason == "its predictions agree on 85.0%, 90% are asked of a quantised teacher"


def test_values_that_are_not_finite_never_hold() -> None:
    theirs = np.eye(3)
    for bound in (None, 1e-3):
        report = compared(theirs * np.nan, theirs, bound=bound, parameters=1)
        assert (report.available, report.max_error) == (False, None)


def test_bound_follows_the_precision_of_the_graph() -> None:
    assert error_bound(perceptron()) == 1e-3
    half = model_of([node("MatMul", "input w", "output")], {"w": normal(4, 3).astype(np.float16)}, (4,), dtype=10)
    assert error_bound(half) == 5e-3
    nodes = [node("QuantizeLinear", "input s", "q"), node("DequantizeLinear", "q s", "output")]
    assert error_bound(model_of(nodes, {"s": single(0.1)}, (4,))) is None


def test_half_precision_is_computed_in_single(tmp_path: Path) -> None:
    nodes = [node("MatMul", "input w", "y"), node("Cast", "y", "output", to=TensorProto.FLOAT)]
    model = model_of(nodes, {"w": normal(4, 3).astype(np.float16)}, (4,), dtype=TensorProto.FLOAT16)
    logits = forward.run_rows(forward.stranger_session(model, 1), ROWS.astype(np.float16), None)[0]
    report = prove(tmp_path, model, ROWS.astype(np.float16), logits, macs=1, batch=None, threads=1)
    assert report.available
    assert {parameter.dtype for parameter in load(tmp_path).parameters()} == {torch.float32}


def test_double_precision_is_computed_in_single(tmp_path: Path) -> None:
    nodes = [node("MatMul", "input w", "y"), node("Cast", "y", "output", to=TensorProto.FLOAT)]
    model = model_of(nodes, {"w": normal(4, 3).astype(np.float64)}, (4,), dtype=TensorProto.DOUBLE)
    logits = forward.run_rows(forward.stranger_session(model, 1), ROWS.astype(np.float64), None)[0]
    report = prove(tmp_path, model, ROWS.astype(np.float64), logits, macs=1, batch=None, threads=1)
    assert report.available
    assert {parameter.dtype for parameter in load(tmp_path).parameters()} == {torch.float32}


def test_the_first_step_that_differs_is_named() -> None:
    model = perceptron()
    twin = build(model)
    assert first_difference(twin, model, ROWS[:2], 1) == ""
    with torch.no_grad():
        dict(twin.named_parameters())["w2"].mul_(1.1)
    assert first_difference(twin, model, ROWS[:2], 1) == "; the first to differ is MatMul 'head'"


def test_threads_of_torch_are_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    proved(tmp_path, perceptron(), threads=before + 1)
    assert torch.get_num_threads() == before


def test_report_has_a_json_form() -> None:
    report = TwinReport(available=True, parameters=3, images=2, agreement=1.0, max_error=1e-7)
    assert from_json(TwinReport, to_json(report)) == report
    assert "max_error" not in to_json(report, measured=False)
