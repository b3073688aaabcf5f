"""Files of further runtimes: verified, timed and recommended like the others, or said not to be made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from torch import nn

from exporters import openvino_ir, runtimes
from exporters.errors import ExportError
from exporters.interface import Interface
from exporters.runtime_files import Source
from exporters.runtimes import runtime_names
from pu_engine import export, verification
from pu_engine.errors import EngineError
from pu_engine.pipeline import export_runtimes
from pu_engine.progress import SilentProgress
from pu_engine.results import file_sha256
from pu_engine.types import ExportInputs, ExportOptions, Variants, Verdicts, VerificationInputs
from pu_engine.variants.timings import usable_threads
from tests.unit.pu_engine.conftest import finish

pytestmark = pytest.mark.skipif(openvino_ir.missing() != "", reason="openvino is not installed")
OPENVINO = ["openvino-fp32", "openvino-int8"]


def inputs(job: Any, **options: Any) -> ExportInputs:
    asked = ExportOptions(targets=("cpu",), max_batch=16, **options)
    return ExportInputs(distillation=job.distillation, gathering=job.small.gathering, export=asked)


def verified(job: Any, made: Variants, folder: Path) -> Verdicts:
    asked = VerificationInputs(
        intake=job.small.intake, gathering=job.small.gathering, distillation=job.distillation,
        export=finish(folder, made),
    )  # fmt: skip
    (folder / "verified").mkdir()
    return verification.run(asked, folder / "verified", SilentProgress())


@pytest.fixture(scope="module")
def job(exported_job: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Variants, Verdicts]:
    """An export for OpenVINO, and what verification says of it."""
    folder = tmp_path_factory.mktemp("openvino")
    made = export.run(inputs(exported_job, runtimes=("openvino",)), folder, SilentProgress())
    return folder, made, verified(exported_job, made, folder)


def test_a_runtimes_files_stand_among_the_variants(job: tuple[Path, Variants, Verdicts]) -> None:
    folder, made, _ = job
    assert [v.name for v in made.variants] == ["fp32", "int8-cpu", *OPENVINO]
    fp32 = made.variants[2]
    assert (fp32.format, fp32.precision, fp32.details["made_of"]) == ("openvino", "fp32", "fp32")
    assert fp32.size == sum((folder / name).stat().st_size for name in (fp32.path, fp32.beside[0].path))
    assert made.not_made == ()


def test_they_meet_the_gates_of_their_precision(job: tuple[Path, Variants, Verdicts]) -> None:
    hops = {v.hop: v for v in job[2].verdicts}
    exact = hops["fp32 -> openvino-fp32"]
    assert exact.passed
    assert exact.max_error <= 1e-4
    assert exact.gate.startswith("relative max error <= 0.0001 and equal argmax at batch 1, 8, 16")
    assert "held-out accuracy at most 0.6 points" in hops["fp32 -> openvino-int8"].gate


def test_they_are_timed_like_the_rest(job: tuple[Path, Variants, Verdicts]) -> None:
    timed = [(x.subject, x.batch, x.threads) for x in job[2].latencies if x.subject in OPENVINO]
    assert timed == [(name, batch, threads) for name in OPENVINO for threads in usable_threads() for batch in (1, 32)]


def test_a_companion_that_changed_on_the_disk_is_refused(job: tuple[Path, Variants, Verdicts], tmp_path: Path) -> None:
    folder, made, _ = job
    for variant in made.variants:
        for name in (variant.path, *(file.path for file in variant.beside)):
            (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "student-openvino-fp32.bin").write_bytes(b"other weights")
    with pytest.raises(EngineError, match=r"student-openvino-fp32\.bin has the sha256"):
        verification.check_digests(tmp_path, made)


def test_what_is_not_installed_is_said_with_what_to_install(
    exported_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_ir, "missing", lambda: "openvino>=2026.2")
    progress = SilentProgress()
    made = export.run(inputs(exported_job, runtimes=("openvino",), variants=("fp32",)), tmp_path, progress)
    assert [v.name for v in made.variants] == ["fp32"]
    assert [row.name for row in made.not_made] == ["openvino"]
    assert made.not_made[0].reason == "the runtime is not installed here; install openvino>=2026.2."
    assert made.warnings == ("No openvino file: the runtime is not installed here; install openvino>=2026.2.",)
    assert progress.warnings == list(made.warnings)


def test_a_student_that_a_runtime_refuses_costs_that_runtime_only(
    exported_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise ExportError("It can't take the network.", "Use the ONNX file.")

    monkeypatch.setitem(runtimes.OWN, "openvino", SimpleNamespace(missing=lambda: "", convert=refuse))
    made = export.run(inputs(exported_job, runtimes=("openvino",), variants=("fp32",)), tmp_path, SilentProgress())
    assert made.not_made[0].reason == "It can't take the network. Use the ONNX file."


def test_a_file_that_computes_something_else_is_withheld(exported_job: Any, tmp_path: Path) -> None:
    made = export.run(inputs(exported_job, runtimes=("openvino",), variants=("fp32",)), tmp_path, SilentProgress())
    fp32, ir = made.variants
    write_other_student(tmp_path / fp32.path, tmp_path)
    beside = (replace(ir.beside[0], sha256=file_sha256(tmp_path / ir.beside[0].path)),)
    other = replace(ir, sha256=file_sha256(tmp_path / ir.path), beside=beside)
    verdicts = verified(exported_job, replace(made, variants=(fp32, other)), tmp_path)
    hop = verdicts.verdicts[-1]
    assert (hop.hop, hop.withheld, hop.worst_node) == ("fp32 -> openvino-fp32", "openvino-fp32", "")
    assert hop.worst_images
    assert verdicts.recommended == "fp32"


def write_other_student(onnx_path: Path, out: Path) -> None:
    """OpenVINO's files of a network whose first class has another bias."""
    model = onnx.load(onnx_path)
    bias = next(i for i in model.graph.initializer if i.name == "head.bias")
    moved = onnx.numpy_helper.to_array(bias) + np.array([9.0, 0, 0], np.float32)
    bias.CopyFrom(onnx.numpy_helper.from_array(moved, "head.bias"))
    onnx.save(model, out / "other.onnx")
    openvino_ir.convert(
        Source(module=nn.Identity(), size=16, channels=3, interface=Interface(), onnx={"fp32": out / "other.onnx"},
               max_batch=16), out,
    )  # fmt: skip


def test_an_unknown_runtime_is_refused_with_the_known_ones(exported_job: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="runtime 'toaster'") as caught:
        export.run(inputs(exported_job, runtimes=("toaster",)), tmp_path, SilentProgress())
    assert caught.value.remedy == "Choose from openvino, executorch."


def test_server_and_engine_know_the_same_runtimes() -> None:
    assert export_runtimes() == runtime_names()
