from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from pu_engine.distillation import run
from pu_engine.errors import EngineError
from pu_engine.jsonform import from_json, to_json
from pu_engine.progress import SilentProgress
from pu_engine.results import file_sha256, read_manifest
from pu_engine.student import choice
from pu_engine.student.choice import largest, shortlist
from pu_engine.student.files import load_student
from pu_engine.training.distill_types import DistillationOptions, DistillLoss
from pu_engine.training.evaluation import predict
from pu_engine.twin import torch_twin
from pu_engine.types import (
    DistillationInputs,
    File,
    Student,
    StudentOptions,
    StudentSpec,
)

SMALL: dict[str, int] = {"size": 16, "channels": 3, "classes": 3}


def digests(folder: Path) -> dict[str, str]:
    return {name: file_sha256(folder / name) for name in ("student.safetensors", "student.json", "curve.jsonl")}


def start_stage(workdir: Path, inputs: DistillationInputs) -> subprocess.Popen[bytes]:
    workdir.mkdir(exist_ok=True)
    (workdir / "inputs.json").write_text(json.dumps(to_json(inputs)))
    command = [sys.executable, "-I", "-m", "pu_engine.stage", "distillation", str(workdir)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def test_a_student_learns_and_says_what_it_is(small_job: Callable[..., Any], tmp_path: Path) -> None:
    student = run(small_job().inputs(), tmp_path, SilentProgress())
    assert student.held_out_agreement >= 0.9
    assert student.held_out_accuracy >= 0.9
    assert student.spec == from_json(StudentSpec, json.loads((tmp_path / "student.json").read_text()))
    assert student.spec.parameters == 74_835  # cifar_resnet8 with 3 classes instead of 10
    assert student.spec.class_names == ("red", "green", "blue")
    assert from_json(Student, to_json(student)) == student


def test_the_written_student_is_the_trained_one(small_job: Callable[..., Any], tmp_path: Path) -> None:
    job = small_job()
    student = run(job.inputs(), tmp_path, SilentProgress())
    spec, module = load_student(tmp_path)
    images = np.load(Path(job.gathering.path) / "held_out.images.npy")
    labels = np.load(Path(job.gathering.path) / "held_out.labels.npy")
    chosen = predict(module, images, spec.preprocessing).argmax(dim=1).numpy()
    assert (chosen == labels).mean() == student.held_out_accuracy


@pytest.mark.parametrize(("name", "value"), [("temperature", 0.0), ("dkd", -1.0), ("hints", float("nan"))])
def test_impossible_losses_are_refused_by_name(
    small_job: Callable[..., Any], tmp_path: Path, name: str, value: float
) -> None:
    options = DistillationOptions(loss=DistillLoss(**{name: value}))
    with pytest.raises(EngineError, match=f"distillation.loss.{name}"):
        run(small_job().inputs(options), tmp_path, SilentProgress())


def test_the_curve_has_no_timings_and_ends_with_an_agreement(small_job: Callable[..., Any], tmp_path: Path) -> None:
    run(small_job().inputs(), tmp_path, SilentProgress())
    rows = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    expected = {"step", "loss", "kl", "labels", "learning_rate", "held_out_agreement"}
    assert set().union(*rows) == expected
    assert rows[-1]["step"] == 40
    assert "held_out_agreement" in rows[-1]


def test_a_repeated_run_gives_the_same_bytes(small_job: Callable[..., Any], tmp_path: Path) -> None:
    job = small_job()
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        run(job.inputs(), tmp_path / name, SilentProgress())
    assert digests(tmp_path / "first") == digests(tmp_path / "second")


def test_no_checkpoints_are_left_behind(small_job: Callable[..., Any], tmp_path: Path) -> None:
    run(small_job().inputs(), tmp_path, SilentProgress())
    assert not (tmp_path / ".checkpoints").exists()


def test_labelled_images_alone_train_a_student(small_job: Callable[..., Any], tmp_path: Path) -> None:
    student = run(small_job(picked=0).inputs(), tmp_path, SilentProgress())
    assert student.held_out_agreement >= 0.9


def test_a_gray_student_is_normalised_by_a_half(small_job: Callable[..., Any], tmp_path: Path) -> None:
    student = run(small_job(channels=1).inputs(), tmp_path, SilentProgress())
    assert student.spec.preprocessing.channels == "GRAY"
    assert student.spec.preprocessing.mean == (0.5,)
    assert student.spec.channels == 1


@pytest.mark.parametrize("rule", ["paper", "chi2", "kl"])
def test_every_class_weighting_trains(small_job: Callable[..., Any], tmp_path: Path, rule: str) -> None:
    options = DistillationOptions(steps=30, batch_size=16, learning_rate=0.05, class_weights=rule)
    assert run(small_job().inputs(options), tmp_path, SilentProgress()).held_out_agreement >= 0.9


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("batch_size", 1), ("labelled_share", 1.5), ("class_weights", "median"), ("draws", "often")],
)
def test_impossible_options_are_refused_by_name(
    small_job: Callable[..., Any], tmp_path: Path, name: str, value: Any
) -> None:
    with pytest.raises(EngineError) as caught:
        run(small_job().inputs(DistillationOptions(**{name: value})), tmp_path, SilentProgress())
    assert caught.value.code == "REQUEST_INVALID"
    assert f"distillation.{name}" in caught.value.message


def test_a_rate_out_of_all_bounds_diverges_with_a_remedy(small_job: Callable[..., Any], tmp_path: Path) -> None:
    options = DistillationOptions(steps=60, batch_size=16, learning_rate=1e30)
    with pytest.raises(EngineError) as caught:
        run(small_job().inputs(options), tmp_path, SilentProgress())
    assert caught.value.code == "TRAINING_DIVERGED"


def test_the_list_says_which_limit_a_candidate_is_over(tmp_path: Path) -> None:
    candidates = shortlist(StudentOptions(name="auto", max_parameters=200_000), **SMALL, scratch=tmp_path)
    verdicts = {c["name"]: c["verdict"] for c in candidates}
    assert verdicts["cifar_resnet14"] == verdicts["cifar_resnet8"] == ""
    assert verdicts["cifar_resnet20"] == "parameters 269267 > 200000"
    assert largest(candidates) == "cifar_resnet14"


def test_the_size_of_the_weights_is_a_limit(tmp_path: Path) -> None:
    candidates = shortlist(StudentOptions(name="auto", max_bytes=400_000), **SMALL, scratch=tmp_path)
    assert largest(candidates) == "cifar_resnet8"


def test_auto_measures_latency_and_pins_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = StudentOptions(name="auto", max_parameters=80_000, max_latency_ms=10_000.0)
    candidates = shortlist(options, **SMALL, scratch=tmp_path)
    fitting = next(c for c in candidates if not c["verdict"])
    assert fitting["name"] == "cifar_resnet8"
    assert float(fitting["latency_ms"]) > 0
    monkeypatch.setattr(choice, "measure_latency", None)  # a second measurement would fail
    assert shortlist(options, **SMALL, scratch=tmp_path) == candidates


def test_limits_that_nothing_meets_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        shortlist(StudentOptions(name="auto", max_macs=1000), **SMALL, scratch=tmp_path)
    assert caught.value.code == "STUDENT_UNSUPPORTED"
    assert caught.value.details["nearest"] == "cifar_resnet8"
    assert "max_macs 1000" in caught.value.message


def test_a_named_student_must_meet_the_limits_too(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cifar_resnet20"):
        shortlist(StudentOptions(name="cifar_resnet20", max_parameters=1000), **SMALL, scratch=tmp_path)


def test_no_name_means_the_default(tmp_path: Path) -> None:
    assert largest(shortlist(StudentOptions(), **SMALL, scratch=tmp_path)) == "cifar_resnet20"


def test_the_candidates_of_auto_are_in_the_result_with_their_trials(
    small_job: Callable[..., Any], tmp_path: Path
) -> None:
    options = DistillationOptions(steps=2, batch_size=8)
    student = run(small_job().inputs(options, "auto", max_parameters=200_000), tmp_path, SilentProgress())
    tried = {c["name"]: c for c in student.candidates if "trials" in c}
    assert set(tried) == {"cifar_resnet8", "cifar_resnet14"}
    assert tried[student.spec.name]["verdict"] == "chosen"
    assert len(student.candidates) == 6


def test_a_student_goes_on_from_another_jobs_weights(small_job: Callable[..., Any], tmp_path: Path) -> None:
    job = small_job()
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    run(job.inputs(), first, SilentProgress())
    weights = first / "student.safetensors"
    inputs = job.inputs(DistillationOptions(steps=1, batch_size=16, learning_rate=1e-6))
    given = replace(inputs.student, weights=File(path=str(weights), sha256=file_sha256(weights)))
    trained_on = run(replace(inputs, student=given), second, SilentProgress())
    assert trained_on.held_out_agreement >= 0.9  # of one step from random weights it would be chance
    curve = [json.loads(line) for line in (first / "curve.jsonl").read_text().splitlines()]
    assert trained_on.final_loss < 0.5 * curve[0]["loss"]


def test_a_live_teacher_needs_a_twin(small_job: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no torch twin"):
        run(small_job().inputs(DistillationOptions(steps=2, targets="live")), tmp_path, SilentProgress())


@pytest.mark.parametrize("threads", [1, 2])
def test_a_live_teacher_teaches_as_well(small_job: Callable[..., Any], tmp_path: Path, threads: int) -> None:
    job = small_job()
    torch_twin.save(torch_twin.build(onnx.load(Path(job.intake.path) / "canonical.onnx")), Path(job.intake.path))
    options = DistillationOptions(steps=40, batch_size=16, learning_rate=0.05, targets="live")
    student = run(replace(job.inputs(options), threads=threads), tmp_path, SilentProgress())
    assert student.held_out_agreement >= 0.9
    assert student.targets == "live: asked for"


def kill_after_checkpoint(workdir: Path, inputs: DistillationInputs, step: int) -> None:
    """Start the stage and kill it with SIGKILL once it has written the checkpoint of a step."""
    child = start_stage(workdir, inputs)
    checkpoint = workdir / "out.partial" / ".checkpoints" / f"step-{step:08d}.json"
    deadline = time.monotonic() + 100
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert checkpoint.exists()
    assert not (workdir / "out").exists()


def assert_kills_change_nothing(inputs: DistillationInputs, tmp_path: Path, steps: tuple[int, ...]) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start_stage(undisturbed, inputs).wait(timeout=200) == 0
    for step in steps:
        kill_after_checkpoint(killed, inputs, step)
    assert start_stage(killed, inputs).wait(timeout=200) == 0
    assert digests(killed / "out") == digests(undisturbed / "out")
    assert read_manifest(killed / "out")["digest"] == read_manifest(undisturbed / "out")["digest"]


def test_a_killed_stage_ends_in_the_same_bytes(small_job: Callable[..., Any], tmp_path: Path) -> None:
    options = DistillationOptions(steps=140, batch_size=32, learning_rate=0.05)
    assert_kills_change_nothing(small_job().inputs(options), tmp_path, (100,))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        DistillationOptions(steps=240, batch_size=32, learning_rate=0.05, class_weights="chi2"),
        DistillationOptions(
            steps=240, batch_size=32, learning_rate=0.05, average_decay=0.99, mixup=0.2, cutmix=1.0, clip_norm=1.0,
            loss=DistillLoss(dkd=0.1, dist=0.5, noisy_labels=0.5), draws="balanced",
        ),
    ],
)  # fmt: skip
def test_a_stage_killed_three_times_ends_in_the_same_bytes(
    small_job: Callable[..., Any], tmp_path: Path, options: DistillationOptions
) -> None:
    assert_kills_change_nothing(small_job().inputs(options), tmp_path, (0, 100, 200))


def test_torch_is_left_as_it_was(small_job: Callable[..., Any], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    inputs = replace(small_job().inputs(DistillationOptions(steps=2, batch_size=8)), threads=before + 1)
    run(inputs, tmp_path, SilentProgress())
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()
