from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from pu_engine.errors import EngineError
from pu_engine.export import run
from pu_engine.jsonform import from_json, to_json
from pu_engine.progress import SilentProgress
from pu_engine.results import file_sha256, load
from pu_engine.runtime.sessions import open_session
from pu_engine.student.files import load_student, write_student
from pu_engine.types import ExportInputs, ExportOptions, Folder, Preprocessing, StudentSpec, Variants
from pu_engine.variants.onnx_variants import FILES, fp32_graph, wanted_variants


def inputs(job: Any, **options: Any) -> ExportInputs:
    return ExportInputs(distillation=job.distillation, gathering=job.small.gathering, export=ExportOptions(**options))


def test_the_onnx_variant_states_the_file_it_wrote(exported_job: Any) -> None:
    variants = load(Variants, exported_job.export.path)
    variant = variants.variants[0]
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
    with pytest.raises(EngineError, match="target 'jetson'") as caught:
        run(inputs(exported_job, targets=("cpu", "jetson")), tmp_path, SilentProgress())
    assert caught.value.code == "REQUEST_INVALID"
    assert caught.value.remedy.startswith("Choose from cpu, rtx,")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batch", [0, 1025])
@pytest.mark.parametrize("field", ["max_batch", "fixed_batch"])
def test_a_batch_out_of_bounds_is_refused(exported_job: Any, tmp_path: Path, field: str, batch: int) -> None:
    with pytest.raises(EngineError, match=rf"{field} must be .* got {batch}"):
        run(inputs(exported_job, **{field: batch}), tmp_path, SilentProgress())


def test_an_unknown_variant_is_refused_with_the_known_ones(exported_job: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="'int4'") as caught:
        run(inputs(exported_job, variants=("fp32", "int4")), tmp_path, SilentProgress())
    assert caught.value.remedy == "Choose from fp32, fp16, int8-cpu, int8-trt."


def test_a_budget_that_is_no_share_is_refused(exported_job: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="got 60"):
        run(inputs(exported_job, accuracy_budget=60.0), tmp_path, SilentProgress())


def test_targets_bring_the_files_that_they_use() -> None:
    assert wanted_variants(ExportOptions(targets=("cpu",))) == ("fp32", "int8-cpu")
    assert wanted_variants(ExportOptions(targets=("rtx",))) == ("fp32", "fp16", "int8-trt")
    assert wanted_variants(ExportOptions(targets=("jetson-orin",))) == ("fp32", "fp16", "int8-trt")
    assert wanted_variants(ExportOptions(targets=("android",))) == ("fp32", "int8-cpu")
    assert wanted_variants(ExportOptions()) == tuple(FILES)
    assert wanted_variants(ExportOptions(variants=("int8-trt",))) == ("fp32", "int8-trt")


@pytest.fixture(scope="module")
def all_variants(exported_job: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Variants]:
    out = tmp_path_factory.mktemp("all")
    options = {"targets": ("cpu",), "variants": tuple(FILES), "max_batch": 16}
    return out, run(inputs(exported_job, **options), out, SilentProgress())


def test_each_precision_is_a_file_named_plainly(all_variants: tuple[Path, Variants]) -> None:
    out, made = all_variants
    names = ["student.onnx", "student-fp16.onnx", "student-int8-cpu.onnx", "student-int8-trt.onnx"]
    assert [v.path for v in made.variants] == names
    assert [v.precision for v in made.variants] == ["fp32", "fp16", "int8", "int8"]
    assert all(v.sha256 == file_sha256(out / v.path) and v.reproducible for v in made.variants)
    sizes = [v.size for v in made.variants]
    assert sizes[1] < 0.6 * sizes[0]
    assert max(sizes[2:]) < 0.5 * sizes[0]


def test_an_int8_file_says_how_it_was_found(all_variants: tuple[Path, Variants]) -> None:
    details = all_variants[1].variants[2].details
    assert details["calibration"] in ("minmax", "least-squares")
    assert details["calibrations_tried"].count(";") == 1
    assert (details["calibration_images"], details["validation_images"]) == ("45", "45")
    assert float(details["validation_agreement"]) >= 0.97
    assert details["within_budget"] == "yes"


def test_a_second_export_gives_the_same_files(
    exported_job: Any, all_variants: tuple[Path, Variants], tmp_path: Path
) -> None:
    options = {"targets": ("cpu",), "variants": tuple(FILES), "max_batch": 16}
    again = run(inputs(exported_job, **options), tmp_path, SilentProgress())
    assert [v.sha256 for v in again.variants] == [v.sha256 for v in all_variants[1].variants]
    assert to_json(again, measured=False) == to_json(all_variants[1], measured=False)


def test_every_file_takes_pixels_and_gives_probabilities_where_asked_for(exported_job: Any, tmp_path: Path) -> None:
    options = {"variants": tuple(FILES), "include_preprocessing": True, "softmax": True, "fixed_batch": 2}
    made = run(inputs(exported_job, targets=("cpu",), **options), tmp_path, SilentProgress())
    images = np.load(Path(exported_job.small.gathering.path) / "parity.images.npy")[:2]
    for variant in made.variants:
        given = open_session(tmp_path / variant.path, threads=1).run(None, {"input": images})[0]
        np.testing.assert_allclose(given.sum(axis=1), 1.0, atol=1e-3)
        assert (variant.details["input"], variant.details["output"]) == ("pixels", "probabilities")
        assert (variant.details["batch"], variant.details["max_batch"]) == ("2", "2")
    properties = {p.key: p.value for p in onnx.load(tmp_path / "student-int8-cpu.onnx").metadata_props}
    assert properties["punnet.input"] == "uint8 [N, 16, 16, 3] pixels"
    assert json.loads(properties["punnet.labels"]) == ["red", "green", "blue"]


def test_a_weight_too_large_for_fp16_costs_that_file_only(exported_job: Any, tmp_path: Path) -> None:
    job = replace(exported_job, distillation=retouched(exported_job, tmp_path, "head.bias", 1e5))
    progress = SilentProgress()
    made = run(inputs(job, targets=("cpu",), variants=("fp32", "fp16")), tmp_path / "out", progress)
    assert [v.name for v in made.variants] == ["fp32"]
    assert progress.warnings == list(made.warnings)
    assert made.warnings[0].startswith("No fp16 file: ")
    assert "fp16 is safe up to 30000" in made.warnings[0]


def test_weights_that_are_no_numbers_fail_and_name_the_hop(exported_job: Any, tmp_path: Path) -> None:
    job = replace(exported_job, distillation=retouched(exported_job, tmp_path, "head.bias", float("nan")))
    with pytest.raises(EngineError, match="torch -> fp32") as caught:
        run(inputs(job, targets=("cpu",)), tmp_path / "out", SilentProgress())
    assert caught.value.code == "EXPORT_FAILED"
    assert (caught.value.details["hop"], caught.value.details["weight"]) == ("torch -> fp32", "head.bias")


def test_another_number_of_labels_than_outputs_fails_and_names_the_hop(exported_job: Any, tmp_path: Path) -> None:
    folder = tmp_path / "distillation"
    shutil.copytree(exported_job.distillation.path, folder)
    spec = from_json(StudentSpec, json.loads((folder / "student.json").read_text()))
    (folder / "student.json").write_text(json.dumps(to_json(replace(spec, class_names=("red", "green")))))
    job = replace(exported_job, distillation=Folder(path=str(folder), sha256="0" * 64))
    with pytest.raises(EngineError, match=r"3 outputs and 2 class names \(hop torch -> fp32\)") as caught:
        run(inputs(job, targets=("cpu",)), tmp_path / "out", SilentProgress())
    assert caught.value.code == "EXPORT_FAILED"


class Spectrum(torch.nn.Module):
    """Ends in an operator that no target has: the singular values of a matrix."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(torch.linalg.svdvals(x[:, 0, :3, :3]))


def test_an_operator_that_no_target_has_fails_and_names_the_hop(exported_job: Any) -> None:
    spec = from_json(StudentSpec, json.loads((Path(exported_job.distillation.path) / "student.json").read_text()))
    with pytest.raises(EngineError, match="torch -> fp32") as caught:
        fp32_graph(spec, Spectrum())
    assert caught.value.code == "EXPORT_FAILED"
    assert caught.value.details["network"] == "Spectrum"


def retouched(job: Any, tmp_path: Path, weight: str, value: float) -> Folder:
    """A copy of the trained student with one value of a weight replaced."""
    folder = tmp_path / "distillation"
    shutil.copytree(job.distillation.path, folder)
    (tmp_path / "out").mkdir()
    spec, module = load_student(folder)
    with torch.no_grad():
        module.state_dict()[weight].view(-1)[0] = value
    write_student(folder, spec, module)
    return Folder(path=str(folder), sha256="0" * 64)
