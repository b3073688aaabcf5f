from __future__ import annotations

import json
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pu_engine import verification
from pu_engine.batches import Part
from pu_engine.errors import EngineError
from pu_engine.evaluation import predict
from pu_engine.jsonform import from_json, to_json
from pu_engine.progress import SilentProgress
from pu_engine.report_data import speed
from pu_engine.results import build_manifest, file_sha256, load
from pu_engine.sessions import open_session
from pu_engine.student_files import load_student
from pu_engine.types import Folder, Teacher, Variant, Variants, Verdicts, VerificationInputs
from pu_engine.verification import measure_latencies, run, run_batched


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
        (variant,) = variants.variants
        variants = replace(variants, variants=(replace(variant, sha256=file_sha256(path)),))
    return finish(folder, variants)


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
        ("fp32", 1),
        ("fp32", 32),
    ]
    assert all(0 < x.p50_ms <= x.p90_ms and x.threads == 1 and x.runs >= 5 for x in verdicts.latencies)


def test_the_verified_onnx_is_recommended(verdicts: Verdicts) -> None:
    assert verdicts.recommended == "fp32"
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


def test_an_engine_without_its_device_is_a_warning_not_a_verdict(exported_job: Any, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exported_job.export.path, folder)
    (folder / "student.rtx.engine").write_bytes(b"plan")
    engine = Variant(
        name="rtx",
        path="student.rtx.engine",
        target="rtx",
        format="tensorrt_rtx",
        precision="fp32",
        size=4,
        sha256=file_sha256(folder / "student.rtx.engine"),
        seconds=1.0,
        reproducible=False,
    )
    before = load(Variants, exported_job.export.path)
    export = finish(folder, replace(before, variants=(*before.variants, engine), warnings=("said before",)))
    progress = SilentProgress()
    verdicts = run(inputs(exported_job, export), tmp_path, progress)
    assert [v.hop for v in verdicts.verdicts] == ["teacher -> torch", "torch -> fp32"]
    assert verdicts.warnings[0] == "said before"
    assert "fp32 -> rtx was not run" in verdicts.warnings[1]
    assert progress.warnings == [verdicts.warnings[1]]


def test_batches_do_not_change_the_logits_nor_their_order(exported_job: Any) -> None:
    spec, module = load_student(Path(exported_job.distillation.path))
    session = open_session(Path(exported_job.export.path) / "student.onnx", threads=1)
    images = np.load(Path(exported_job.small.gathering.path) / "parity.images.npy")
    expected = predict(module, images, spec.preprocessing).numpy()
    for batch in (1, 3, 64):
        np.testing.assert_allclose(run_batched(session, images, spec.preprocessing, batch), expected, atol=1e-4)


def test_a_teacher_of_fixed_batch_is_timed_at_that_batch(exported_job: Any) -> None:
    intake = Path(exported_job.small.intake.path)
    teacher = replace(load(Teacher, intake), batch=4)
    spec, _ = load_student(Path(exported_job.distillation.path))
    found = measure_latencies(intake, teacher, Path(exported_job.export.path) / "student.onnx", spec)
    assert [(x.subject, x.batch) for x in found] == [("teacher", 4), ("fp32", 1), ("fp32", 4), ("fp32", 32)]
    compared = speed(found, "fp32")
    assert compared is not None
    assert compared.batch == 4


def test_the_strangers_constants_are_not_folded(exported_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folded = {}

    def watched(path: Path, **options: Any) -> Any:
        folded[path.name] = options["fold_constants"]
        return open_session(path, **options)

    monkeypatch.setattr(verification, "open_session", watched)
    intake, spec = Path(exported_job.small.intake.path), load_student(Path(exported_job.distillation.path))[0]
    measure_latencies(intake, load(Teacher, intake), Path(exported_job.export.path) / "student.onnx", spec)
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
    session = open_session(Path(exported_job.export.path) / "student.onnx", threads=1)
    tracemalloc.start()
    verdict = verification.student_to_fp32(long, session, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert verdict.images == many + 20
    assert peak < first.images.nbytes / 2
