from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from exporters import rtx_engine
from pu_engine.errors import EngineError
from pu_engine.export import run
from pu_engine.jsonform import from_json, to_json
from pu_engine.progress import SilentProgress
from pu_engine.results import file_sha256, load, reproducible
from pu_engine.types import ExportInputs, ExportOptions, Preprocessing, StudentSpec, Variants


def inputs(job: Any, **options: Any) -> ExportInputs:
    return ExportInputs(distillation=job.distillation, gathering=job.small.gathering, export=ExportOptions(**options))


def test_the_onnx_variant_states_the_file_it_wrote(exported_job: Any) -> None:
    variants = load(Variants, exported_job.export.path)
    (variant,) = variants.variants
    path = Path(exported_job.export.path) / variant.path
    assert (variant.name, variant.path, variant.format, variant.precision) == ("fp32", "student.onnx", "onnx", "fp32")
    assert variant.sha256 == file_sha256(path)
    assert variant.size == path.stat().st_size
    assert variant.details["max_batch"] == "16"
    assert variant.details["batch_norms"] == "0"


def test_the_file_says_how_to_feed_it_and_what_its_outputs_mean(exported_job: Any) -> None:
    spec_path = Path(exported_job.distillation.path) / "student.json"
    spec = from_json(StudentSpec, json.loads(spec_path.read_text()))
    properties = {p.key: p.value for p in onnx.load(Path(exported_job.export.path) / "student.onnx").metadata_props}
    assert json.loads(properties["punnet.labels"]) == ["red", "green", "blue"]
    assert from_json(Preprocessing, json.loads(properties["punnet.preprocessing"])) == spec.preprocessing
    assert properties["punnet.student"] == "cifar_resnet8"


@pytest.mark.skipif(rtx_engine.missing() is not None, reason="tensorrt_rtx is not installed")
def test_the_target_rtx_adds_one_engine_and_the_onnx_stays_the_same(exported_job: Any, tmp_path: Path) -> None:
    variants = run(inputs(exported_job, max_batch=16), tmp_path, SilentProgress())
    fp32, engine = variants.variants
    assert fp32.sha256 == load(Variants, exported_job.export.path).variants[0].sha256
    assert engine.path == "student.rtx-sm86-sm89-sm120.engine"
    assert engine.details["profile"] == "1/8/16"
    assert engine.sha256 == file_sha256(tmp_path / engine.path)
    assert not engine.reproducible
    assert not reproducible(engine.path)
    assert from_json(Variants, to_json(variants)) == variants


def test_a_missing_builder_is_a_warning_that_names_it(
    exported_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    progress = SilentProgress()
    variants = run(inputs(exported_job), tmp_path, progress)
    assert [v.name for v in variants.variants] == ["fp32"]
    (warning,) = variants.warnings
    assert "TensorRT-RTX" in warning
    assert "punnet[rtx]" in warning
    assert progress.warnings == [warning]


def test_an_unknown_target_is_refused_with_the_known_ones(exported_job: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="'jetson'") as caught:
        run(inputs(exported_job, targets=("cpu", "jetson")), tmp_path, SilentProgress())
    assert caught.value.code == "REQUEST_INVALID"
    assert caught.value.remedy == "Choose from cpu, rtx."
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batch", [0, 1025])
def test_a_batch_out_of_bounds_is_refused(exported_job: Any, tmp_path: Path, batch: int) -> None:
    with pytest.raises(EngineError, match=f"got {batch}"):
        run(inputs(exported_job, max_batch=batch), tmp_path, SilentProgress())
