from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from exporters.inference import open_model
from exporters.interface import Interface, Pixels, wrap
from exporters.onnx_file import write_model

PIXELS = Pixels(scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), reverse=False)


def images(n: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


def prepared(pixels: np.ndarray[Any, Any], reverse: bool) -> np.ndarray[Any, Any]:
    ordered = pixels[..., ::-1] if reverse else pixels
    mean, std = np.array(PIXELS.mean, np.float32), np.array(PIXELS.std, np.float32)
    values = (ordered.astype(np.float32) * np.float32(1 / 255) - mean) / std
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32)


def run(model: Any, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(open_model(model, threads=1).run(None, {"input": values})[0])


@pytest.mark.parametrize("reverse", [False, True])
def test_pixels_in_the_graph_give_the_logits_of_pixels_prepared_outside(small_graph: Any, reverse: bool) -> None:
    wrapped = wrap(small_graph.model, Interface(pixels=Pixels(
        scale=PIXELS.scale, mean=PIXELS.mean, std=PIXELS.std, reverse=reverse,
    )))  # fmt: skip
    expected = run(small_graph.model, prepared(images(), reverse))
    np.testing.assert_allclose(run(wrapped, images()), expected, atol=1e-6)
    (source,) = wrapped.graph.input
    assert source.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in source.type.tensor_type.shape.dim] == ["batch", 8, 8, 3]


def test_softmax_makes_probabilities_of_the_logits(small_graph: Any) -> None:
    wrapped = wrap(small_graph.model, Interface(softmax=True))
    logits, given = run(small_graph.model, small_graph.images), run(wrapped, small_graph.images)
    np.testing.assert_allclose(given, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), atol=1e-6)
    assert [v.name for v in wrapped.graph.output] == ["probabilities"]


def test_a_fixed_batch_stands_in_every_shape(small_graph: Any) -> None:
    wrapped = wrap(small_graph.model, Interface(batch=4))
    values = [*wrapped.graph.input, *wrapped.graph.value_info, *wrapped.graph.output]
    assert all(v.type.tensor_type.shape.dim[0].dim_value == 4 for v in values if v.type.tensor_type.elem_type == 1)
    expected = run(small_graph.model, small_graph.images[:4])
    np.testing.assert_allclose(run(wrapped, small_graph.images[:4]), expected, atol=1e-6)


def test_the_graph_given_stays_as_it_is(small_graph: Any) -> None:
    before = small_graph.model.SerializeToString(deterministic=True)
    wrap(small_graph.model, Interface(pixels=PIXELS, softmax=True, batch=2))
    assert small_graph.model.SerializeToString(deterministic=True) == before


def test_all_of_it_together_passes_the_checker(small_graph: Any, tmp_path: Any) -> None:
    wrapped = wrap(small_graph.model, Interface(pixels=PIXELS, softmax=True, batch=2))
    facts = write_model(wrapped, tmp_path / "wrapped.onnx", {"key": "value"})
    assert facts.size == (tmp_path / "wrapped.onnx").stat().st_size
    assert run(onnx.load(tmp_path / "wrapped.onnx"), images(2)).shape == (2, 5)
