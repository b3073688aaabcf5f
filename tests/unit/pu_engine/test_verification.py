from __future__ import annotations

import json
import re
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pu_engine import export as export_stage
from pu_engine import verification
from pu_engine.errors import EngineError
from pu_engine.jsonform import from_json, to_json
from pu_engine.pages.report_data import speed
from pu_engine.progress import SilentProgress
from pu_engine.results import build_manifest, file_sha256, load
from pu_engine.runtime.sessions import open_session
from pu_engine.student.files import load_student
from pu_engine.training.batches import Part
from pu_engine.training.evaluation import predict
from pu_engine.types import (
    ExportInputs,
    ExportOptions,
    Folder,
    Teacher,
    Variants,
    Verdicts,
    VerificationInputs,
)
from pu_engine.variants import runtime_variants, timings
from pu_engine.variants.hops import File
from pu_engine.variants.timings import measure_latencies, usable_threads
from pu_engine.verification import open_file, run


def inputs(job: Any, export: Folder | None = None) -> VerificationInputs:
    return VerificationInputs(
        intake=job.small.intake,
        gathering=job.small.gathering,
        distillation=job.distillation,
        export=export or job.export,
    )


def changed_export(job: Any, folder: Path, shift: float, *, restated: bool = True) -> Folder:
    """A copy of the export whose first class's logit is moved by `shift`; `restated`: with a matching digest."""
    shutil.copytree(job.export.path, folder)
    path = folder / "student.onnx"
    model = onnx.load(path)
    bias = next(i for i in model.graph.initializer if i.name == "head.bias")
    moved = onnx.numpy_helper.to_array(bias) + np.array([shift, 0, 0], np.float32)
    bias.CopyFrom(onnx.numpy_helper.from_array(moved, "head.bias"))
    onnx.save(model, path)
    variants = load(Variants, job.export.path)
    if restated:
        variants = restated_file(folder, variants, "fp32")
    return finish(folder, variants)


def restated_file(folder: Path, variants: Variants, name: str) -> Variants:
    """The export's result with the digest that a changed file has now."""
    rows = tuple(replace(v, sha256=file_sha256(folder / v.path)) if v.name == name else v for v in variants.variants)
    return replace(variants, variants=rows)


def finish(folder: Path, result: Any) -> Folder:
    manifest = build_manifest(folder, result, {})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Folder(path=str(folder), sha256=manifest["digest"])


@pytest.fixture(scope="module")
def verdicts(exported_job: Any, tmp_path_factory: pytest.TempPathFactory) -> Verdicts:
    return run(inputs(exported_job), tmp_path_factory.mktemp("verified"), SilentProgress())


def test_the_exact_hop_meets_its_gate_at_three_batches(verdicts: Verdicts) -> None:
    exact = verdicts.verdicts[1]
    assert exact.hop == "torch -> fp32"
    assert exact.passed
    assert exact.max_error <= 1e-4
    assert exact.agreement == 1.0
    assert exact.images == 32
    assert exact.accuracy_before == exact.accuracy_after
    assert "batch 1, 8, 16" in exact.gate


def test_the_compression_is_measured_without_a_gate(verdicts: Verdicts) -> None:
    compression = verdicts.verdicts[0]
    assert (compression.hop, compression.gate, compression.images) == ("teacher -> torch", "", 20)
    assert compression.agreement >= 0.9
    assert compression.kl > 0


def test_accuracies_come_with_their_interval(exported_job: Any, verdicts: Verdicts) -> None:
    data = Path(exported_job.small.gathering.path)
    spec, module = load_student(Path(exported_job.distillation.path))
    chosen = predict(module, np.load(data / "held_out.images.npy"), spec.preprocessing).argmax(dim=1).numpy()
    assert verdicts.student_accuracy == (chosen == np.load(data / "held_out.labels.npy")).mean()
    assert verdicts.student_accuracy_low < verdicts.student_accuracy <= verdicts.student_accuracy_high
    assert verdicts.held_out == 12
    assert verdicts.teacher_accuracy == 1.0


def test_teacher_and_student_are_timed_at_both_batches(verdicts: Verdicts) -> None:
    assert [(x.subject, x.batch) for x in verdicts.latencies] == [
        ("teacher", 1),
        ("teacher", 32),
        *((name, batch) for name in ("fp32", "int8-cpu") for _ in usable_threads() for batch in (1, 32)),
    ]
    assert all(0 < x.p50_ms <= x.p90_ms and x.runs >= 5 for x in verdicts.latencies)
    assert {x.threads for x in verdicts.latencies if x.subject == "int8-cpu"} == set(usable_threads())


def test_the_recommended_file_passed_and_says_why(verdicts: Verdicts) -> None:
    (chosen,) = verdicts.recommendations
    assert chosen.target == "cpu"
    assert chosen.variant == verdicts.recommended
    assert chosen.variant in {v.hop.rpartition(" -> ")[2] for v in verdicts.verdicts if v.passed}
    assert "fp32" in chosen.reason or "faster" in chosen.reason
    assert from_json(Verdicts, to_json(verdicts)) == verdicts


def test_an_onnx_that_computes_something_else_fails_and_names_the_hop(exported_job: Any, tmp_path: Path) -> None:
    export = changed_export(exported_job, tmp_path / "export", 0.5)
    with pytest.raises(EngineError, match="torch -> fp32") as caught:
        run(inputs(exported_job, export), tmp_path, SilentProgress())
    assert caught.value.code == "PARITY_FAILED"
    assert float(caught.value.details["max_error"]) > 1e-4


def test_a_difference_within_rounding_passes(exported_job: Any, tmp_path: Path) -> None:
    export = changed_export(exported_job, tmp_path / "export", 1e-6)
    assert run(inputs(exported_job, export), tmp_path, SilentProgress()).verdicts[1].passed


def test_a_file_that_changed_on_the_disk_is_refused(exported_job: Any, tmp_path: Path) -> None:
    export = changed_export(exported_job, tmp_path / "export", 1e-6, restated=False)
    with pytest.raises(EngineError, match=r"student\.onnx") as caught:
        run(inputs(exported_job, export), tmp_path, SilentProgress())
    assert caught.value.code == "DIGEST_MISMATCH"


def test_warnings_of_the_export_come_first(exported_job: Any, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exported_job.export.path, folder)
    before = load(Variants, exported_job.export.path)
    export = finish(folder, replace(before, warnings=("said before",)))
    assert run(inputs(exported_job, export), tmp_path, SilentProgress()).warnings == ("said before",)


def opened(job: Any, name: str = "fp32", folder: Path | None = None) -> File:
    spec, _ = load_student(Path(job.distillation.path))
    (variant,) = (v for v in load(Variants, job.export.path).variants if v.name == name)
    return open_file(folder or Path(job.export.path), variant, spec, threads=1)


def test_batches_do_not_change_the_logits_nor_their_order(exported_job: Any) -> None:
    spec, module = load_student(Path(exported_job.distillation.path))
    images = np.load(Path(exported_job.small.gathering.path) / "parity.images.npy")
    expected = predict(module, images, spec.preprocessing).numpy()
    for batch in (1, 3, 64):
        np.testing.assert_allclose(opened(exported_job).run(images, batch), expected, atol=1e-4)


def test_the_int8_hop_is_measured_against_the_fp32_file(verdicts: Verdicts) -> None:
    hop = verdicts.verdicts[2]
    assert (hop.hop, hop.images, hop.passed, hop.withheld) == ("fp32 -> int8-cpu", 32, True, "")
    assert 0 < hop.max_error < 0.2
    assert "argmax agreement >= 95 %" in hop.gate
    assert "at batch 1, 8, 16" in hop.gate


def test_a_difference_names_the_worst_images_and_the_layer(exported_job: Any, tmp_path: Path) -> None:
    export = changed_export(exported_job, tmp_path / "export", 0.5)
    with pytest.raises(EngineError, match="differs from head") as caught:
        run(inputs(exported_job, export), tmp_path, SilentProgress())
    assert re.fullmatch(r"((parity|held_out)\[\d+\](, )?){5}", caught.value.details["images"])


def test_a_missed_gate_withholds_that_file_and_names_the_node(exported_job: Any, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exported_job.export.path, folder)
    path = folder / "student-int8-cpu.onnx"
    model = onnx.load(path)
    # The classifier's weights change their signs: what comes before them stays as it was.
    weight = next(i for i in model.graph.initializer if i.name == "head.weight_quantized")
    values = -np.maximum(onnx.numpy_helper.to_array(weight), -127)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    export = finish(folder, restated_file(folder, load(Variants, exported_job.export.path), "int8-cpu"))
    progress = SilentProgress()
    verdicts = run(inputs(exported_job, export), tmp_path, progress)
    hop = verdicts.verdicts[2]
    assert (hop.passed, hop.withheld) == (False, "int8-cpu")
    assert len(hop.worst_images) == 5
    assert "(Gemm)" in hop.worst_node
    assert verdicts.recommended == "fp32"
    (warning,) = verdicts.warnings
    assert progress.warnings == [warning]
    assert warning.startswith("int8-cpu is withheld: the hop fp32 -> int8-cpu missed its gate")
    assert hop.worst_node in warning


def test_a_file_that_export_found_outside_of_its_budget_is_withheld(exported_job: Any, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exported_job.export.path, folder)
    variants = load(Variants, exported_job.export.path)
    fp32, int8 = variants.variants
    outside = {**int8.details, "within_budget": "no", "validation_accuracy_lost": "0.0210"}
    export = finish(folder, replace(variants, variants=(fp32, replace(int8, details=outside))))
    verdicts = run(inputs(exported_job, export), tmp_path, SilentProgress())
    assert verdicts.verdicts[2].withheld == "int8-cpu"
    assert "on picked images 2.1 points lost" in verdicts.warnings[0]


def test_files_of_pixels_and_probabilities_are_verified_as_they_are(exported_job: Any, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    options = ExportOptions(targets=("cpu",), include_preprocessing=True, softmax=True, fixed_batch=4)
    asked = ExportInputs(distillation=exported_job.distillation, gathering=exported_job.small.gathering, export=options)
    export = finish(folder, export_stage.run(asked, folder, SilentProgress()))
    verdicts = run(inputs(exported_job, export), tmp_path, SilentProgress())
    assert [v.passed for v in verdicts.verdicts] == [True, True, True]
    assert verdicts.verdicts[1].gate.endswith("at batch 4")
    assert {x.batch for x in verdicts.latencies if x.subject != "teacher"} == {4}


def test_a_teacher_of_fixed_batch_is_timed_at_that_batch(exported_job: Any) -> None:
    intake = Path(exported_job.small.intake.path)
    teacher = replace(load(Teacher, intake), batch=4)
    spec, _ = load_student(Path(exported_job.distillation.path))
    fp32 = load(Variants, exported_job.export.path).variants[:1]
    found = measure_latencies(intake, teacher, Path(exported_job.export.path), fp32, spec)
    rows = [("fp32", batch) for _ in usable_threads() for batch in (1, 4, 32)]
    assert [(x.subject, x.batch) for x in found] == [("teacher", 4), *rows]
    compared = speed(found, "fp32")
    assert compared is not None
    assert compared.batch == 4


def test_the_strangers_constants_are_not_folded(exported_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folded = {}

    def watched(path: Path, **options: Any) -> Any:
        folded[path.name] = options.get("fold_constants", True)
        return open_session(path, **options)

    for module in (timings, runtime_variants):
        monkeypatch.setattr(module, "open_session", watched)
    intake, spec = Path(exported_job.small.intake.path), load_student(Path(exported_job.distillation.path))[0]
    fp32 = load(Variants, exported_job.export.path).variants[:1]
    measure_latencies(intake, load(Teacher, intake), Path(exported_job.export.path), fp32, spec)
    assert folded == {"canonical.onnx": False, "student.onnx": True}


def test_the_students_accuracy_is_that_of_its_hop(verdicts: Verdicts) -> None:
    assert verdicts.student_accuracy == verdicts.verdicts[0].accuracy_after == verdicts.verdicts[1].accuracy_before


def test_held_out_images_stay_on_the_disk(exported_job: Any) -> None:
    data, distillation = Path(exported_job.small.gathering.path), Path(exported_job.distillation.path)
    chain, many = verification.start_chain(data, distillation), 1000
    first = Part(
        images=np.broadcast_to(chain.held_out.images[:1], (many, 16, 16, 3)),
        targets=chain.held_out.targets[[0] * many],
        labels=chain.held_out.labels[[0] * many],
    )
    long = replace(chain, held_out=first, held_out_logits=chain.held_out_logits[[0] * many])
    file = opened(exported_job)
    one = replace(file, variant=replace(file.variant, details={**file.variant.details, "max_batch": "1"}))
    tracemalloc.start()
    verdict = verification.student_to_fp32(long, one, Path(exported_job.export.path)).verdict
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert verdict.images == many + 20
    assert peak < first.images.nbytes / 2
