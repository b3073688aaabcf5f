"""Stage bundling: what passed, for each target, with an engine where one can be built here."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporters.engine_builder import missing
from pu_engine import bundling
from pu_engine.errors import EngineError
from pu_engine.export import run as run_export
from pu_engine.jsonform import from_json, to_json
from pu_engine.progress import SilentProgress
from pu_engine.results import file_sha256, load, reproducible
from pu_engine.types import ExportInputs, ExportOptions, Variants, Verdict, Verdicts
from pu_engine.variants.bundle_types import Bundles, BundlingInputs
from tests.unit.pu_engine.conftest import finish

needs_rtx = pytest.mark.skipif(missing("tensorrt_rtx") is not None, reason="tensorrt_rtx is not installed")
PASSED = Verdict(
    hop="torch -> fp32", images=20, agreement=1.0, kl=0.0, max_error=0.0, accuracy_before=1.0, accuracy_after=1.0,
    gate="", passed=True,
)  # fmt: skip


def inputs(job: Any, folder: Path, *, withheld: str = "", **options: Any) -> BundlingInputs:
    verdicts = Verdicts(
        verdicts=(replace(PASSED, passed=not withheld, withheld=withheld),), latencies=(), recommended="fp32",
        teacher_accuracy=1.0, student_accuracy=1.0, student_accuracy_low=0.9, student_accuracy_high=1.0, held_out=12,
        student_agreement=1.0,
    )  # fmt: skip
    (folder / "verification").mkdir()
    values: dict[str, Any] = {"export": job.export, **options}
    return BundlingInputs(
        gathering=job.small.gathering,
        distillation=job.distillation,
        verification=finish(folder / "verification", verdicts),
        **values,
    )


def run(asked: BundlingInputs, folder: Path) -> tuple[Bundles, Path]:
    out = folder / "out"
    out.mkdir()
    return bundling.run(asked, out, SilentProgress()), out


def with_fp16(job: Any, folder: Path) -> Any:
    """The job's export with a second file, under the name of another precision."""
    shutil.copytree(job.export.path, folder)
    shutil.copyfile(folder / "student.onnx", folder / "student-fp16.onnx")
    exported = load(Variants, job.export.path)
    fp16 = replace(exported.variants[0], name="fp16", path="student-fp16.onnx", precision="fp16")
    return finish(folder, replace(exported, variants=(*exported.variants, fp16)))


def manifest(bundle: Path) -> dict[str, Any]:
    with zipfile.ZipFile(bundle) as archive:
        content: dict[str, Any] = json.loads(archive.read(f"{bundle.stem}/manifest.json"))
    return content


def array(bundle: Path, name: str) -> np.ndarray[Any, Any]:
    with zipfile.ZipFile(bundle) as archive, archive.open(f"{bundle.stem}/{name}") as file:
        loaded: np.ndarray[Any, Any] = np.load(file, allow_pickle=False)
    return loaded


def test_a_repeated_run_gives_the_same_bundle(exported_job: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    digests = []
    for folder in (first, second):
        folder.mkdir()
        made, out = run(inputs(exported_job, folder, targets=("cpu", "jetson-orin")), folder)
        assert [b.sha256 for b in made.bundles] == [file_sha256(out / b.path) for b in made.bundles]
        digests.append([b.sha256 for b in made.bundles])
    assert digests[0] == digests[1]
    assert reproducible("bundle-cpu.zip")
    assert not reproducible("bundle-android.zip")


@needs_rtx
def test_the_target_rtx_has_an_engine_beside_its_bundle(exported_job: Any, tmp_path: Path) -> None:
    made, out = run(inputs(exported_job, tmp_path, targets=("rtx",)), tmp_path)
    (engine,) = made.engines
    assert engine.path == "student.rtx-sm86-sm89-sm120.engine"
    assert engine.sha256 == file_sha256(out / engine.path)
    assert engine.details["profile"] == "1/8/16"
    assert engine.details["made_of"] == "fp32"
    assert len(engine.details["address"]) == 32
    assert "rtx-sm86-sm89-sm120" in made.warnings[0]
    assert "not run" in made.warnings[0]
    assert sorted(p.name for p in out.iterdir()) == ["bundle-rtx.zip", engine.path]
    assert from_json(Bundles, to_json(made)) == made


def test_a_missing_builder_is_a_warning_and_the_bundle_is_made(
    exported_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    made, out = run(inputs(exported_job, tmp_path, targets=("rtx",)), tmp_path)
    (warning,) = made.warnings
    assert "No engine for the target rtx" in warning
    assert "punnet[rtx]" in warning
    assert made.engines == ()
    assert [p.name for p in out.iterdir()] == ["bundle-rtx.zip"]


def test_a_jetson_gets_its_bundle_and_a_warning_in_place_of_an_engine(exported_job: Any, tmp_path: Path) -> None:
    made, out = run(inputs(exported_job, tmp_path, targets=("jetson-orin",)), tmp_path)
    assert "No engine for the target jetson-orin" in made.warnings[0]
    assert "`punnet agent`" in made.warnings[0]
    assert manifest(out / "bundle-jetson-orin.zip")["target"]["capabilities"] == ["SM87"]


@needs_rtx
def test_an_engine_is_made_of_the_variant_that_the_target_prefers(exported_job: Any, tmp_path: Path) -> None:
    export = with_fp16(exported_job, tmp_path / "export")
    made, out = run(inputs(exported_job, tmp_path, targets=("rtx-ada",), export=export), tmp_path)
    assert [(e.name, e.precision) for e in made.engines] == [("rtx-ada-sm89", "fp16")]
    assert [v["name"] for v in manifest(out / "bundle-rtx-ada.zip")["variants"]] == ["fp16", "fp32"]


def test_a_withheld_variant_is_in_no_bundle(exported_job: Any, tmp_path: Path) -> None:
    export = with_fp16(exported_job, tmp_path / "export")
    made, out = run(inputs(exported_job, tmp_path, targets=("jetson-orin",), export=export, withheld="fp16"), tmp_path)
    assert made.bundles[0].variants == ("fp32",)
    with zipfile.ZipFile(out / "bundle-jetson-orin.zip") as archive:
        assert "bundle-jetson-orin/student-fp16.onnx" not in archive.namelist()


def test_phones_get_ort_files(exported_job: Any, tmp_path: Path) -> None:
    made, out = run(inputs(exported_job, tmp_path, targets=("android", "ios")), tmp_path)
    assert [b.target for b in made.bundles] == ["android", "ios"]
    assert made.warnings == ()
    for bundle in made.bundles:
        assert [v["path"] for v in manifest(out / bundle.path)["variants"]] == ["student-int8-cpu.ort", "student.ort"]


@needs_rtx
@pytest.mark.parametrize(
    ("options", "interface"),
    [
        ({"include_preprocessing": True}, {"input": "pixels", "output": "logits", "batch": "free"}),
        ({"softmax": True, "fixed_batch": 4}, {"input": "preprocessed", "output": "probabilities", "batch": 4}),
    ],
)
def test_files_of_another_interface_are_bundled_as_they_are(
    exported_job: Any, tmp_path: Path, options: dict[str, Any], interface: dict[str, Any]
) -> None:
    (tmp_path / "export").mkdir()
    asked = ExportInputs(
        distillation=exported_job.distillation,
        gathering=exported_job.small.gathering,
        export=ExportOptions(targets=("rtx",), variants=("fp32",), max_batch=8, **options),
    )
    export = finish(tmp_path / "export", run_export(asked, tmp_path / "export", SilentProgress()))
    made, out = run(inputs(exported_job, tmp_path, targets=("rtx",), export=export), tmp_path)
    bundle = out / "bundle-rtx.zip"
    assert manifest(bundle)["interface"] == interface
    assert made.engines[0].details["profile"] == ("1/8/8" if interface["batch"] == "free" else "4/4/4")
    taken, images = array(bundle, "parity/inputs.npy"), array(bundle, "parity/images.npy")
    assert np.array_equal(taken, images) is (interface["input"] == "pixels")
    answers = array(bundle, "parity/fp32.logits.npy")
    assert np.allclose(answers.sum(axis=1), 1.0) is (interface["output"] == "probabilities")


@pytest.mark.parametrize(("source", "part"), [("pool", "parity"), ("own", "labelled")])
def test_parity_images_are_of_the_pool_unless_the_users_own_are_asked_for(
    exported_job: Any, tmp_path: Path, source: str, part: str
) -> None:
    _, out = run(inputs(exported_job, tmp_path, targets=("cpu",), parity_images=source), tmp_path)
    stored = np.load(Path(exported_job.small.gathering.path) / f"{part}.images.npy")[:64]
    assert np.array_equal(array(out / "bundle-cpu.zip", "parity/images.npy"), stored)
    assert manifest(out / "bundle-cpu.zip")["parity"]["source"] == source


def test_generated_parity_images_are_none_of_anybodys(exported_job: Any, tmp_path: Path) -> None:
    _, out = run(inputs(exported_job, tmp_path, targets=("cpu",), parity_images="generated"), tmp_path)
    assert array(out / "bundle-cpu.zip", "parity/images.npy").shape == (64, 16, 16, 3)
    assert array(out / "bundle-cpu.zip", "parity/fp32.logits.npy").shape == (64, 3)


@pytest.mark.parametrize("changed", [{"targets": ("jetson",)}, {"parity_images": "all"}])
def test_an_unknown_target_or_source_is_refused(exported_job: Any, tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="Choose from") as caught:
        run(inputs(exported_job, tmp_path, **changed), tmp_path)
    assert caught.value.code == "REQUEST_INVALID"
