"""Inputs beside the image that are single numbers."""

from __future__ import annotations

from typing import Any

import pytest
from onnx import TensorProto, helper

from pu_engine.errors import EngineError
from pu_engine.teacher import scalar_inputs

IMAGE = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 8])


def model(*inputs: Any) -> Any:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, 8, 8])
    return helper.make_model(helper.make_graph([helper.make_node("Identity", ["image"], ["y"])], "g", inputs, [output]))


def scalar(name: str, dtype: int, dims: list[int]) -> Any:
    return helper.make_tensor_value_info(name, dtype, dims)


def test_model_of_one_image_has_one_binding_and_stays_itself() -> None:
    plain = model(IMAGE)
    (only,) = scalar_inputs.bindings(plain)
    assert only.model is plain
    assert only.values == {}


def test_training_flag_and_keep_probability_take_their_inference_values_first() -> None:
    keep, training = scalar("keep", TensorProto.FLOAT, [1]), scalar("t", TensorProto.BOOL, [])
    found = scalar_inputs.bindings(model(keep, IMAGE, training))
    assert [b.values for b in found] == [
        {"keep": 1.0, "t": 0.0},
        {"keep": 1.0, "t": 1.0},
        {"keep": 0.0, "t": 0.0},
        {"keep": 0.0, "t": 1.0},
    ]
    first = found[0].model.graph
    assert [item.name for item in first.input] == ["image"]
    assert {(t.name, t.data_type, tuple(t.dims)) for t in first.initializer} == {
        ("keep", TensorProto.FLOAT, (1,)),
        ("t", TensorProto.BOOL, ()),
    }


def test_second_image_is_left_for_the_check_of_inputs_to_refuse() -> None:
    two = model(IMAGE, helper.make_tensor_value_info("other", TensorProto.FLOAT, ["N", 3, 8, 8]))
    (only,) = scalar_inputs.bindings(two)
    assert only.model is two


def test_more_scalars_than_can_be_tried_are_refused_by_name() -> None:
    with pytest.raises(EngineError, match="at most 3") as caught:
        scalar_inputs.bindings(model(IMAGE, *(scalar(f"s{i}", TensorProto.FLOAT, []) for i in range(4))))
    assert caught.value.code == "TEACHER_NOT_A_CLASSIFIER"
    assert caught.value.details["inputs"] == "s0, s1, s2, s3"
