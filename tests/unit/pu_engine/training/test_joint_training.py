"""Training in two processes, started by torch's own launcher, which talk over gloo."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pu_engine.distillation import run
from pu_engine.errors import EngineError
from pu_engine.progress import SilentProgress
from pu_engine.training import joint_training
from pu_engine.training.distill_types import DistillationOptions, DistillLoss

# Sums are in another order. By the default the losses differ by 5e-6 at most; every doubtful step (of a ReLU, of a
# bound) makes more of it.
TOLERANCE = 1e-3
EVERYTHING = DistillationOptions(
    steps=12, batch_size=17, learning_rate=0.002, mixup=0.2, cutmix=1.0, class_weights="chi2", clip_norm=5.0,
    average_decay=0.9, loss=DistillLoss(dkd=0.1, noisy_labels=0.5),
)  # fmt: skip
DEFAULT = DistillationOptions(steps=30, batch_size=16, learning_rate=0.05)


class Counted(SilentProgress):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def update(self, done: int, total: int, unit: str, metrics: Any = None) -> None:
        self.steps.append(done)


@pytest.mark.slow
@pytest.mark.parametrize("options", [DEFAULT, EVERYTHING])
def test_two_processes_train_as_one_at_the_same_batch(
    small_job: Callable[..., Any], tmp_path: Path, options: DistillationOptions
) -> None:
    """Same losses step by step, and the same weights at the end, to rounding; batch statistics included."""
    inputs = small_job().inputs(options)
    curves, weights = [], []
    for count in (1, 2):
        out, progress = tmp_path / str(count), Counted()
        out.mkdir()
        student = run(replace(inputs, processes=count), out, progress)
        assert progress.steps[-1] == options.steps
        curves.append([json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()])
        weights.append(load_file(out / "student.safetensors"))
        assert student.held_out_agreement == curves[-1][-1]["held_out_agreement"]
        assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in (tmp_path / "1").iterdir())
    for alone, together in zip(*curves, strict=True):
        assert together == pytest.approx(alone, rel=TOLERANCE, abs=1e-4)
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=10 * TOLERANCE, atol=TOLERANCE, msg=name)


@pytest.mark.slow
def test_what_stops_the_processes_stops_the_stage(small_job: Callable[..., Any], tmp_path: Path) -> None:
    options = DistillationOptions(steps=20, batch_size=16, learning_rate=1e30)
    with pytest.raises(EngineError) as caught:
        run(replace(small_job().inputs(options), processes=2), tmp_path, SilentProgress())
    assert caught.value.code == "TRAINING_DIVERGED"


def test_more_processes_than_images_are_refused(small_job: Callable[..., Any]) -> None:
    inputs = replace(small_job().inputs(DistillationOptions(batch_size=2)), processes=3)
    with pytest.raises(EngineError, match="3 processes can't share 2 images"):
        joint_training.process_count(inputs, SilentProgress())


def test_without_loopback_one_process_trains_and_the_user_is_told(
    small_job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = SilentProgress()
    inputs = replace(small_job().inputs(), processes=2)
    assert joint_training.process_count(inputs, progress) == 2
    assert joint_training.process_count(replace(inputs, processes=0), progress) == 1
    assert progress.warnings == []
    monkeypatch.setattr(joint_training, "loopback_works", lambda: False)
    assert joint_training.process_count(inputs, progress) == 1
    assert "Training in one process, not in 2" in progress.warnings[0]
