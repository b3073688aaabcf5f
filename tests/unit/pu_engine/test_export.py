from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from pu_engine.errors import EngineError
from pu_engine.export import run
from pu_engine.jsonform import from_json
from pu_engine.progress import SilentProgress
from pu_engine.results import file_sha256, load
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


def test_an_unknown_target_is_refused_with_the_known_ones(exported_job: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="'jetson'") as caught:
        run(inputs(exported_job, targets=("cpu", "jetson")), tmp_path, SilentProgress())
    assert caught.value.code == "REQUEST_INVALID"
    assert caught.value.remedy.startswith("Choose from cpu, rtx,")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batch", [0, 1025])
def test_a_batch_out_of_bounds_is_refused(exported_job: Any, tmp_path: Path, batch: int) -> None:
    with pytest.raises(EngineError, match=f"got {batch}"):
        run(inputs(exported_job, max_batch=batch), tmp_path, SilentProgress())
