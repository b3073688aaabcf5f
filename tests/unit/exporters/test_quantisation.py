from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx
import pytest

from exporters import trt_parsing
from exporters.calibration import observe
from exporters.errors import ExportError
from exporters.inference import logits_of, open_model
from exporters.onnx_file import write_model
from exporters.quantisation import FORMS, quantise


@pytest.fixture(scope="module")
def observed(small_graph: Any) -> Any:
    return observe(small_graph.model, small_graph.batches, threads=1)


def quantised(small_graph: Any, observed: Any, form: str, **nodes: Any) -> Any:
    ranges = observed.ranges("minmax", symmetric=FORMS[form].symmetric)
    return quantise(small_graph.model, ranges, form, **nodes)


def node(model: Any, operator: str) -> Any:
    return next(n for n in model.graph.node if n.op_type == operator)


def inputs_of(model: Any, operator: str) -> list[str]:
    """The operators that feed the first node of a kind."""
    makers = {output: n.op_type for n in model.graph.node for output in n.output}
    return [makers.get(name, "weight") for name in node(model, operator).input]


@pytest.mark.parametrize("form", FORMS)
def test_the_logits_stay_close_and_the_file_is_valid(small_graph: Any, observed: Any, form: str, tmp_path: Any) -> None:
    model = quantised(small_graph, observed, form)
    write_model(model, tmp_path / "int8.onnx", {})
    before, after = (logits_of(open_model(m, threads=1), small_graph.batches(16)) for m in (small_graph.model, model))
    assert np.abs(before - after).max() < 0.05 * np.abs(before).max()


def test_weights_are_int8_with_a_scale_for_each_channel(small_graph: Any, observed: Any) -> None:
    for form in FORMS:
        model = quantised(small_graph, observed, form)
        tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        assert tensors["first.weight_quantized"].dtype == np.int8
        assert tensors["first.weight_scale"].shape == (8,)
        assert "first.weight" not in tensors


def test_activations_for_the_cpu_are_unsigned_and_for_tensorrt_symmetric(small_graph: Any, observed: Any) -> None:
    points = {}
    for form in FORMS:
        model = quantised(small_graph, observed, form)
        tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        points[form] = tensors["input_zero_point"]
    assert points["int8-cpu"].dtype == np.uint8
    assert (points["int8-trt"].dtype, int(points["int8-trt"])) == (np.int8, 0)


def test_only_tensorrts_file_keeps_its_bias_in_float(small_graph: Any, observed: Any) -> None:
    cpu, trt = (quantised(small_graph, observed, form) for form in FORMS)
    assert inputs_of(cpu, "Conv")[2] == "DequantizeLinear"
    assert inputs_of(trt, "Conv")[2] == "weight"


def test_residual_additions_are_quantised_on_both_sides(small_graph: Any, observed: Any) -> None:
    for form in FORMS:
        assert inputs_of(quantised(small_graph, observed, form), "Add") == ["DequantizeLinear", "DequantizeLinear"]


def test_logits_are_not_cut_into_steps(small_graph: Any, observed: Any) -> None:
    for form in FORMS:
        model = quantised(small_graph, observed, form)
        makers = {output: n.op_type for n in model.graph.node for output in n.output}
        assert makers["logits"] == "Gemm"
        read = {name for n in model.graph.node for name in n.input}
        assert {t.name for t in model.graph.initializer} <= read


def test_nodes_can_be_taken_out_or_be_the_only_ones(small_graph: Any, observed: Any) -> None:
    convolutions = [n.name for n in small_graph.model.graph.node if n.op_type == "Conv"]
    without = quantised(small_graph, observed, "int8-trt", without=convolutions[:1])
    only = quantised(small_graph, observed, "int8-trt", only=convolutions[:1])
    assert inputs_of(without, "Conv") == ["weight", "weight", "weight"]
    assert inputs_of(only, "Conv")[:2] == ["DequantizeLinear", "DequantizeLinear"]
    assert inputs_of(only, "Gemm")[1] == "weight"


def test_a_second_quantisation_gives_the_same_bytes(small_graph: Any, observed: Any) -> None:
    for form in FORMS:
        first, second = (quantised(small_graph, observed, form).SerializeToString(deterministic=True) for _ in range(2))
        assert first == second


def test_the_quantisers_advice_stays_off_the_log(
    small_graph: Any, observed: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO):
        quantised(small_graph, observed, "int8-cpu")
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_a_tensor_without_a_range_is_an_error_that_names_the_variant(small_graph: Any) -> None:
    with pytest.raises(ExportError, match="can't quantise") as caught:
        quantise(small_graph.model, {"input": (-1.0, 1.0)}, "int8-cpu")
    assert caught.value.details["variant"] == "int8-cpu"


def test_tensorrts_parser_takes_its_file(small_graph: Any, observed: Any, tmp_path: Any) -> None:
    write_model(quantised(small_graph, observed, "int8-trt"), tmp_path / "int8.onnx", {})
    said = trt_parsing.parse(tmp_path / "int8.onnx")
    if said.unchecked == trt_parsing.NOT_INSTALLED:
        pytest.skip(said.unchecked)
    assert (said.refused, said.unchecked) == ((), "")
