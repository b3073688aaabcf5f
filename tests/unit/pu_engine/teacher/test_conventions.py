"""Hypotheses about a teacher's input, and how labelled images rank them."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
from onnx import TensorProto, helper

from pu_engine.errors import EngineError
from pu_engine.teacher import conventions
from pu_engine.teacher.graph_surgery import ModelInput
from pu_engine.types import StatedPreprocessing

NOTHING = StatedPreprocessing()


def source(*dims: int | None, dtype: str = "float32") -> ModelInput:
    return ModelInput(name="x", dtype=dtype, dims=dims)


def first_node(operator: str, **attributes: Any) -> Any:
    nodes = [helper.make_node("Mul", ["x", "x"], ["m"]), helper.make_node(operator, ["m"], ["y"], **attributes)]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)], [])
    return helper.make_model(graph)


@pytest.mark.parametrize(
    ("model", "dims", "layout"),
    [
        (first_node("Conv"), (None, 3, 3, 3), "NCHW"),
        (first_node("Transpose", perm=[0, 3, 1, 2]), (None, 3, 3, 3), "NHWC"),
        (first_node("Transpose", perm=[0, 2, 3, 1]), (None, 8, 8, 3), "NCHW"),
        (first_node("Flatten"), (None, 8, 8, 3), "NHWC"),
        (first_node("Flatten"), (None, 1, 8, 8), "NCHW"),
        (first_node("Gemm"), (None, 64), "flat"),
    ],
)
def test_layout_is_what_the_first_operators_take_the_input_for(model: Any, dims: tuple[Any, ...], layout: str) -> None:
    assert conventions.layout(model, source(*dims), NOTHING) == layout


def test_stated_layout_is_believed_where_it_can_be() -> None:
    stated = StatedPreprocessing(layout="NHWC")
    assert conventions.layout(first_node("Conv"), source(1, 3, 3, 3), stated) == "NHWC"
    for dims in ((1, 64), (1, 3, 8, 8)):
        wrong = StatedPreprocessing(layout="NHWC" if len(dims) == 2 else "flat")
        with pytest.raises(EngineError) as caught:
            conventions.layout(first_node("Gemm"), source(*dims), wrong)
        assert caught.value.code == "REQUEST_INVALID"


def test_free_sizes_come_from_the_statement_then_from_the_images() -> None:
    free = source(None, 3, None, None)
    assert conventions.image_shape(free, "NCHW", NOTHING, (32, 40)) == (32, 40, 3)
    assert conventions.image_shape(free, "NCHW", NOTHING, (500, 375)) == (224, 224, 3)
    stated = StatedPreprocessing(height=48, width=192)
    assert conventions.image_shape(free, "NCHW", stated, (32, 32)) == (48, 192, 3)
    assert conventions.image_shape(source(None, 28, 28, 1), "NHWC", NOTHING, (9, 9)) == (28, 28, 1)


def test_flat_rows_are_square_images() -> None:
    assert conventions.image_shape(source(None, 64), "flat", NOTHING, (9, 9)) == (8, 8, 1)
    assert conventions.image_shape(source(None, 3072), "flat", NOTHING, (9, 9)) == (32, 32, 3)
    with pytest.raises(EngineError, match="no square image"):
        conventions.image_shape(source(None, 65), "flat", NOTHING, (9, 9))


@pytest.mark.parametrize(
    "stated", [StatedPreprocessing(height=9), StatedPreprocessing(width=9), StatedPreprocessing(channels="GRAY")]
)
def test_statement_against_the_model_is_refused(stated: StatedPreprocessing) -> None:
    with pytest.raises(EngineError) as caught:
        conventions.image_shape(source(None, 3, 8, 8), "NCHW", stated, (8, 8))
    assert caught.value.code == "REQUEST_INVALID"


def test_hypotheses_cover_orders_and_scalings_once() -> None:
    families = conventions.hypotheses("NCHW", "float32", (8, 8, 3), NOTHING)
    found = list(chain.from_iterable(families))
    assert len(families) == 12
    assert len(found) == len(set(found)) == 32
    caffe = [p for p in found if p.channels == "BGR" and p.mean[0] == 103.939]
    assert {p.mean for p in caffe} == {(103.939, 116.779, 123.68)}
    assert {conventions.name(p) for p in caffe} == {"BGR 0..255 less Caffe mean", "BGR Caffe mean, times 0.017"}


@pytest.mark.parametrize(("dtype", "mean"), [("uint8", 0.0), ("int8", 128.0)])
def test_integer_inputs_take_pixels_only(dtype: str, mean: float) -> None:
    found = chain.from_iterable(conventions.hypotheses("NHWC", dtype, (8, 8, 3), NOTHING))
    assert [(p.channels, p.scale, p.mean[0]) for p in found] == [("RGB", 1.0, mean), ("BGR", 1.0, mean)]


def test_stated_fields_hold_in_every_hypothesis() -> None:
    stated = StatedPreprocessing(channels="BGR", scale=0.5, mean=(1.0, 2.0, 3.0), std=(2.0,))
    ((only,),) = conventions.hypotheses("NCHW", "float32", (8, 8, 3), stated)
    assert (only.channels, only.scale, only.mean, only.std) == ("BGR", 0.5, (1.0, 2.0, 3.0), (2.0, 2.0, 2.0))
    for wrong in (
        StatedPreprocessing(mean=(1.0, 2.0)),
        StatedPreprocessing(std=(0.0,)),
        StatedPreprocessing(fit="pad"),
    ):
        with pytest.raises(EngineError) as caught:
            conventions.hypotheses("NCHW", "float32", (8, 8, 3), wrong)
        assert caught.value.code == "REQUEST_INVALID"
