"""Models that the guard has no reason to refuse, and that break what intake takes for granted: each gets a code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pu_engine.errors import EngineError
from tests.hostile.oracle import guarded, take_in
from tests.hostile.seed_models import core, labelled_tar, model

node = helper.make_node
MICROSOFT = {"com.microsoft": 1}


def outcome(folder: Path, made: Any) -> str:
    """The code of the refusal; empty where the teacher is taken in."""
    (folder / "images.tar").write_bytes(labelled_tar())
    try:
        take_in(folder, guarded(made.SerializeToString()))
    except EngineError as error:
        return error.code
    return ""


def empty_constant() -> Any:
    around, weights = core("x", "scores")
    empty = node("Constant", [], ["e"])
    empty.attribute.append(onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR))
    return model([empty, *around, node("Add", ["scores", "e"], ["y"])], weights)


def tail_without_inputs(operator: str) -> Any:
    around, weights = core("x", "scores")
    return model([*around, node(operator, [], ["y"], domain="com.microsoft")], weights, domains=MICROSOFT)


def product_without_inputs() -> Any:
    around, weights = core("x", "scores")
    return model(
        [*around, node("QGemm", ["scores"], ["z"], domain="com.microsoft"), node("Add", ["z", "scores"], ["y"])],
        weights,
        domains=MICROSOFT,
    )


def output_that_is(name: str) -> Any:
    around, weights = core("x", "y")
    return model(around, weights, outputs=(name,))


def half_bytes() -> Any:
    around, weights = core("x", "scores")
    made = model(
        [*around, node("QuantizeLinear", ["scores", "step", "zero"], ["y"])],
        weights | {"step": np.float32(1)},
        opset=21,
    )
    made.graph.initializer.append(TensorProto(name="zero", data_type=TensorProto.INT4, raw_data=b"\0"))
    made.ir_version = 10
    return made


def endless_image(dims: list[int | str]) -> Any:
    around, weights = core("x", "y")
    return model(around, weights, dims=dims)


def scores_that_come_and_go() -> Any:
    """Two or three scores, as bright as the image is."""
    around, weights = core("x", "scores")
    end = [
        node("ReduceMean", ["x"], ["brightness"], keepdims=0),
        node("Less", ["brightness", "limit"], ["dark"]),
        node("Cast", ["dark"], ["more"], to=TensorProto.INT64),
        node("Add", ["two", "more"], ["count"]),
        node("Slice", ["scores", "start", "count", "axis"], ["y"]),
    ]
    integers = {name: np.array([value], np.int64) for name, value in (("two", 2), ("start", 0), ("axis", 1))}
    return model([*around, *end], weights | integers | {"limit": np.float32(10)})


def at_most_two_rows() -> Any:
    """Scores of the first two images only."""
    around, weights = core("x", "scores")
    ends = {name: np.array([value], np.int64) for name, value in (("start", 0), ("end", 2), ("axis", 0))}
    return model([*around, node("Slice", ["scores", "start", "end", "axis"], ["y"])], weights | ends)


ODD: dict[str, Callable[[], Any]] = {
    "constant without a value": empty_constant,
    "quantisation without inputs": lambda: tail_without_inputs("QuantizeLinear"),
    "dequantisation without inputs": lambda: tail_without_inputs("DequantizeLinear"),
    "product without inputs": product_without_inputs,
    "output that is the input": lambda: output_that_is("x"),
    "output that is a constant": lambda: output_that_is("w"),
    "four-bit zero point": half_bytes,
    "image of 2^62 pixels": lambda: endless_image(["N", 3, 2**31 - 1, 2**31 - 1]),
    "batch of 2^31": lambda: endless_image([2**31 - 1, 3, 8, 8]),
    "image of no pixels": lambda: endless_image(["N", 3, 1, 2**31 - 1]),
    "scores that come and go": scores_that_come_and_go,
}


@pytest.mark.parametrize("name", ODD)
def test_odd_teacher_is_refused_by_a_code(name: str, tmp_path: Path) -> None:
    assert outcome(tmp_path, ODD[name]()) != ""


def test_the_teacher_without_oddities_is_taken(tmp_path: Path) -> None:
    assert outcome(tmp_path, output_that_is("y")) == ""


def test_teacher_that_scores_two_images_at_most_is_run_on_one(tmp_path: Path) -> None:
    assert outcome(tmp_path, at_most_two_rows()) == ""


@pytest.mark.parametrize(("inputs", "code"), [(["f", "", "f"], "MODEL_BAD_GRAPH"), (["f", "f"], "")])
def test_gap_among_equal_inputs_is_refused_by_the_guard(inputs: list[str], code: str, tmp_path: Path) -> None:
    """onnxruntime 1.32 reads through a null pointer there."""
    around, weights = core("x", "f")
    assert outcome(tmp_path, model([*around, node("Max", inputs, ["y"])], weights)) == code
