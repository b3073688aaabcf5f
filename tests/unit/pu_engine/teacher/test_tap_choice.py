"""Taps by name: what can be one, in which order, and what is said of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pu_engine.errors import EngineError
from pu_engine.runtime import forward
from pu_engine.teacher import tap_choice, taps
from pu_engine.teacher.fact_types import TapCandidate
from pu_engine.teacher.graph_surgery import INPUT, LOGITS
from pu_engine.types import Tap
from tests.unit.pu_engine.teacher.test_taps import residual


def chosen(*stated: str, model: Any = None) -> list[Tap]:
    model = model or residual()
    names = [*taps.candidates(model), *tap_choice.observable(model, stated), LOGITS]
    rows = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    values = forward.observe(model, list(dict.fromkeys(names)), rows, 1)
    found = tap_choice.candidates(model, values, "NCHW")
    return tap_choice.choose(model, stated, found, values, "NCHW")


def refusal(*stated: str, model: Any = None) -> EngineError:
    with pytest.raises(EngineError) as caught:
        chosen(*stated, model=model)
    assert caught.value.code == "TAP_INVALID"
    return caught.value


def test_named_tensors_are_tapped_from_shallow_to_deep() -> None:
    assert chosen("f", "inner", "c1") == [
        Tap(name="tap_0", source="c1:NCHW", width=5, spread="tap_0_spread"),
        # Inside a residual block: no cut, but a tensor.
        Tap(name="tap_1", source="inner:NCHW", width=5, spread="tap_1_spread"),
        Tap(name="tap_2", source="f:vector", width=5),
    ]


def test_nothing_named_leaves_the_choice_to_the_graph() -> None:
    assert [tap.source for tap in chosen()] == ["sum:NCHW", "f:vector"]


def test_candidates_are_the_cuts_with_their_shapes() -> None:
    model = residual()
    rows = np.ones((2, 3, 8, 8), np.float32)
    values = forward.observe(model, [*taps.candidates(model), LOGITS], rows, 1)
    found = tap_choice.candidates(model, values, "NCHW")
    assert [row.name for row in found] == ["c1", "r1", "sum", "c3", "r3", "p", "f"]
    assert found[0] == TapCandidate(name="c1", kind="NCHW", shape=(5, 8, 8))
    assert found[-1] == TapCandidate(name="f", kind="vector", shape=(5,))


def test_unknown_name_lists_the_candidates_the_alike_first() -> None:
    error = refusal("summ")
    assert error.message == "Tensor 'summ' can't be a tap: no such tensor leads to the scores."
    assert error.remedy.startswith("Name one of sum, c1, r1")
    assert error.details["candidates"] == "c1, r1, sum, c3, r3, p, f"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (LOGITS, "it holds the scores"),
        ("z", "it holds the scores"),
        (INPUT, "it is the image itself"),
        ("k1", "it does not depend on the image"),
    ],
)
def test_what_is_no_feature_is_refused_with_the_reason(name: str, why: str) -> None:
    assert why in refusal(name).message


def test_integers_and_other_shapes_are_refused() -> None:
    from onnx import TensorProto, helper

    model = residual()
    model.graph.node.insert(1, helper.make_node("Cast", ["c1"], ["whole"], to=TensorProto.INT32))
    model.graph.node.insert(2, helper.make_node("Cast", ["whole"], ["back"], to=TensorProto.FLOAT))
    model.graph.node.insert(3, helper.make_node("Unsqueeze", ["back", "axes"], ["deep"]))
    model.graph.node.insert(4, helper.make_node("Squeeze", ["deep", "axes"], ["flat_again"]))
    model.graph.initializer.add(name="axes", data_type=TensorProto.INT64, dims=[1], int64_data=[4])
    next(node for node in model.graph.node if node.op_type == "Relu").input[0] = "flat_again"
    assert "it holds int32; float32 or float16 is needed" in refusal("whole", model=model).message
    assert "its shape is [2, 5, 8, 8, 1]" in refusal("deep", model=model).message


def test_tensor_whose_first_axis_is_not_the_batch_is_no_candidate() -> None:
    value = np.zeros((8, 4, 6), np.float32)  # windows of one image
    assert taps.kind_of(residual(), "any", value, "NCHW", batch=1) is None
    assert taps.kind_of(residual(), "any", value, "NCHW", batch=8) == "tokens"
