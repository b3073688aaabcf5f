"""Dataclasses survive the trip through JSON, and nothing else gets in."""

from __future__ import annotations

import json

import pytest

from pu_engine.jsonform import from_json, to_json
from pu_engine.types import (
    DistillationInputs,
    File,
    Folder,
    IntakeInputs,
    LabelledFile,
    LabelledImages,
    StatedPreprocessing,
)

INPUTS = IntakeInputs(
    teacher=File(path="t.onnx", sha256="00"),
    images=LabelledImages(files=(LabelledFile(label="cat", image=File(path="a.png", sha256="11")),)),
    external_data={"w.data": File(path="w", sha256="22")},
    preprocessing=StatedPreprocessing(layout="NHWC", mean=(0.0, 0.5, 1.0)),
)


def test_inputs_come_back_equal_from_text() -> None:
    assert from_json(IntakeInputs, json.loads(json.dumps(to_json(INPUTS)))) == INPUTS


def test_missing_optional_keys_take_the_defaults() -> None:
    folder = {"path": "x", "sha256": "33"}
    inputs = from_json(DistillationInputs, {"intake": folder, "gathering": folder, "distillation": {"steps": 7}})
    assert inputs.gathering == Folder(path="x", sha256="33")
    assert (inputs.distillation.steps, inputs.distillation.batch_size) == (7, 128)


def test_an_unknown_key_is_named_with_its_place() -> None:
    data = to_json(INPUTS)
    data["images"]["files"][0]["image"]["mode"] = "w"
    with pytest.raises(ValueError, match=r"files\[0\]\.image: unknown keys \['mode'\]"):
        from_json(IntakeInputs, data)


def test_a_missing_key_is_named() -> None:
    data = to_json(INPUTS)
    del data["teacher"]["sha256"]
    with pytest.raises(ValueError, match="missing key 'sha256'"):
        from_json(IntakeInputs, data)


@pytest.mark.parametrize("value", ["7", 7.5, True, None])
def test_an_integer_is_an_integer(value: object) -> None:
    with pytest.raises(ValueError, match="seed: expected int"):
        from_json(IntakeInputs, {**to_json(INPUTS), "seed": value})


def test_an_integer_is_read_where_a_float_is_expected() -> None:
    scale = from_json(StatedPreprocessing, {"scale": 1}).scale
    assert scale == 1.0
    assert isinstance(scale, float)


def test_arrays_have_no_json_form() -> None:
    with pytest.raises(TypeError, match="bytes"):
        to_json({"weights": b"123"})
