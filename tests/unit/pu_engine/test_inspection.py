"""`inspection.json` has the stable keys and what intake found; docs/inspect.md lists every key."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pu_engine import inspection
from pu_engine.pages.inspection_samples import Confusion
from pu_engine.pages.inspection_types import InspectionInputs
from pu_engine.progress import SilentProgress
from pu_engine.results import MANIFEST, build_manifest
from pu_engine.teacher.fact_types import ParserCheck, RefusedNode, TapCandidate
from pu_engine.types import (
    File,
    Folder,
    Hypothesis,
    LabelledImages,
    Preprocessing,
    Tap,
    Teacher,
)
from tests.unit.conftest import FACTS

DOCS = Path(__file__).resolve().parents[3] / "docs" / "inspect.md"
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
    tap_candidates=(TapCandidate(name="relu", kind="NCHW", shape=(8, 6, 24)),),
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
    scalar_inputs={"training": 0.0},
    parameters=10,
    macs=20,
    opset=17,
    producer="exporter 1",
    facts=FACTS,
    teacher_sha256="0" * 64,
    teacher_bytes=1,
    display_name="teacher.onnx",
    warnings=("few images",),
)
CONFUSIONS = (Confusion(label="cat", predicted="dog", images=3, of=18),)
STABLE = {
    "layout", "channels", "scale", "mean", "std", "dtype", "size", "batch", "output", "classes", "class_order",
    "accuracy", "accuracy_low", "accuracy_high", "images", "warnings",
}  # fmt: skip


def test_stable_keys_are_all_there() -> None:
    found = inspection.as_json(TEACHER, CONFUSIONS)
    assert set(found) >= STABLE
    assert (found["size"], found["batch"], found["mean"]) == ([48, 192], "dynamic", [1.0, 2.0, 3.0])
    assert found["hypotheses"][0]["preprocessing"]["channels"] == "BGR"
    assert found["confusions"] == [{"label": "cat", "predicted": "dog", "images": 3, "of": 18}]


def test_facts_and_candidates_are_there() -> None:
    check = ParserCheck(
        parser="TensorRT 11",
        refused=(RefusedNode(node="n", operator="Det", reason="no"),),
        refused_nodes=1,
        unchecked="",
    )
    teacher = dataclasses.replace(TEACHER, facts=dataclasses.replace(FACTS, tensorrt=check))
    found = inspection.as_json(teacher, ())
    assert found["tensorrt"]["refused"] == [{"node": "n", "operator": "Det", "reason": "no"}]
    assert (found["ir_version"], found["opsets"], found["activation_bytes"]) == (8, {"ai.onnx": 17}, 4096)
    assert found["latencies"][0]["p50_ms"] == 0.5
    assert found["tap_candidates"] == [{"name": "relu", "kind": "NCHW", "shape": [8, 6, 24]}]
    assert found["taps_stated"] is False


def test_conventions_fit_and_bound_inputs_are_named() -> None:
    found = inspection.as_json(TEACHER, ())
    assert (found["scaling"], found["fit"], found["scalar_inputs"]) == ("as stated", "stretch", {"training": 0.0})
    row = found["hypotheses"][0]
    assert (row["accuracy_low"], row["accuracy_high"], row["tied"]) == (0.8, 0.95, False)
    assert row["name"] == "RGB ImageNet mean and std"


def test_it_says_that_training_images_flatter_the_teacher() -> None:
    assert any("trained on" in note and "flatters" in note for note in inspection.as_json(TEACHER, ())["notes"])


def test_fixed_batch_is_a_number() -> None:
    assert inspection.as_json(dataclasses.replace(TEACHER, batch=4), ())["batch"] == 4


def test_every_key_is_in_the_docs_and_no_other() -> None:
    table = DOCS.read_text().partition("## inspection.json")[2]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    listed = {key for cell in first_cells for key in re.findall(r"`(\w+)`", cell)}
    assert listed == set(inspection.as_json(TEACHER, ()))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((40, 40, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def finished(tmp_path: Path, pack: Callable[[Path, Mapping[str, bytes]], File]) -> InspectionInputs:
    """An intake of four images, one of which the teacher takes for the other class."""
    intake = tmp_path / "intake"
    intake.mkdir()
    rows = [("cat/a", "cat", 0), ("cat/b", "cat", 0), ("dog/a", "dog", 1), ("dog/<b>", "dog", 1)]
    (intake / "probed.json").write_text(json.dumps([{"key": k, "label": n, "index": i} for k, n, i in rows]))
    np.save(intake / "probed.logits.npy", np.array([[3, 0], [2, 0], [0, 1], [4, 0]], np.float32))
    (intake / MANIFEST).write_text(json.dumps(build_manifest(intake, TEACHER, {})))
    tar = pack(tmp_path / "images.tar", {key: png(40 * i) for i, (key, _, _) in enumerate(rows)})
    assert tarfile.is_tarfile(tar.path)
    return InspectionInputs(intake=Folder(path=str(intake), sha256=""), images=LabelledImages(tar=tar))


def test_stage_writes_what_intake_found_and_a_page(tmp_path: Path, finished: InspectionInputs) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert inspection.run(finished, out, SilentProgress()).artifacts == ("inspection.json", "inspection.html")
    found = json.loads((out / "inspection.json").read_text())
    assert found["confusions"] == [{"label": "dog", "predicted": "cat", "images": 1, "of": 2}]
    page = (out / "inspection.html").read_text()
    assert page.count("data:image/") == 4
    assert "dog/&lt;b&gt;" in page
