"""`inspection.json` has the stable keys, with what intake found."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from pu_engine import inspection
from pu_engine.progress import SilentProgress
from pu_engine.results import MANIFEST, build_manifest
from pu_engine.types import Folder, Hypothesis, InspectionInputs, Preprocessing, Tap, Teacher

FOUND = Preprocessing(
    layout="NHWC", channels="BGR", scale=1.0, mean=(1.0, 2.0, 3.0), std=(1.0,) * 3, dtype="uint8", height=48, width=192
)
TEACHER = Teacher(
    preprocessing=FOUND,
    output="probabilities",
    batch=None,
    classes=2,
    class_order={"cat": 0, "dog": 1},
    class_names=("cat", "dog"),
    taps=(Tap(name="tap_0", source="relu:NCHW", width=8),),
    accuracy=0.9,
    accuracy_low=0.8,
    accuracy_high=0.95,
    images=36,
    hypotheses=(
        Hypothesis(
            name="RGB ImageNet mean and std",
            preprocessing=FOUND,
            nll=0.3,
            accuracy=0.9,
            accuracy_low=0.8,
            accuracy_high=0.95,
            agreement=1.0,
        ),
    ),
    parameters=10,
    macs=20,
    opset=17,
    producer="exporter 1",
    teacher_sha256="0" * 64,
    teacher_bytes=1,
    display_name="teacher.onnx",
    warnings=("few images",),
)
STABLE = {
    "layout", "channels", "scale", "mean", "std", "dtype", "size", "batch", "output", "classes", "class_order",
    "accuracy", "accuracy_low", "accuracy_high", "images", "warnings",
}  # fmt: skip


def test_stable_keys_are_all_there() -> None:
    found = inspection.as_json(TEACHER)
    assert set(found) >= STABLE
    assert (found["size"], found["batch"], found["mean"]) == ([48, 192], "dynamic", [1.0, 2.0, 3.0])
    assert found["hypotheses"][0]["preprocessing"]["channels"] == "BGR"


def test_fixed_batch_is_a_number() -> None:
    assert inspection.as_json(dataclasses.replace(TEACHER, batch=4))["batch"] == 4


def test_stage_writes_what_intake_found(tmp_path: Path) -> None:
    intake, out = tmp_path / "intake", tmp_path / "out"
    intake.mkdir()
    out.mkdir()
    (intake / MANIFEST).write_text(json.dumps(build_manifest(intake, TEACHER, {})))
    inputs = InspectionInputs(intake=Folder(path=str(intake), sha256=""))
    assert inspection.run(inputs, out, SilentProgress()).artifacts == ("inspection.json",)
    assert json.loads((out / "inspection.json").read_text()) == inspection.as_json(TEACHER)
