"""How many steps the training gets."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pu_engine import budget
from pu_engine.budget import budget_of, steps_of
from pu_engine.errors import EngineError
from pu_engine.progress import SilentProgress
from pu_engine.results import build_manifest
from pu_engine.training.distill_types import DistillationOptions
from pu_engine.types import Budget, BudgetInputs, Folder, StudentOptions


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        (DistillationOptions(), 1500),
        (DistillationOptions(effort="normal"), 6000),
        (DistillationOptions(effort="patient"), 24_000),
        (DistillationOptions(effort="patient", steps=7), 7),
        (DistillationOptions(minutes=2.0), 240),
        (DistillationOptions(minutes=2.0, steps=100), 100),
        (DistillationOptions(minutes=2.0, steps=1000), 240),
        (DistillationOptions(minutes=0.001), 1),
    ],
)
def test_steps_follow_from_name_effort_or_time(options: DistillationOptions, steps: int) -> None:
    assert budget_of(options, 0.5).steps == steps


def test_a_budget_says_where_it_comes_from() -> None:
    assert budget_of(DistillationOptions(minutes=2.0), 0.5).why == (
        "240 steps: 240 fit into 2 minutes at 0.5 s a step, measured"
    )
    assert budget_of(DistillationOptions(), 0.5).why == "1,500 steps: effort quick"


def test_minutes_time_a_step_of_the_student_itself(small_job: Callable[..., Any], tmp_path: Path) -> None:
    inputs = BudgetInputs(
        intake=small_job().intake,
        student=StudentOptions(name="cifar_resnet8"),
        distillation=DistillationOptions(minutes=1.0, batch_size=8),
    )
    out = tmp_path / "out"
    out.mkdir()
    found = budget.run(inputs, out, SilentProgress())
    assert found.step_seconds is not None
    assert found.steps == int(60 / found.step_seconds)
    assert list(out.iterdir()) == []


def test_wrong_options_are_refused_before_anything_is_timed(tmp_path: Path) -> None:
    inputs = BudgetInputs(intake=Folder(path="nowhere", sha256=""), distillation=DistillationOptions(minutes=-1.0))
    with pytest.raises(EngineError, match=r"distillation\.minutes must be above 0"):
        budget.run(inputs, tmp_path, SilentProgress())


def test_a_finished_budget_holds_for_every_rerun(tmp_path: Path) -> None:
    """The digest covers the steps and not the timing, so that selections made for the same steps are reused."""
    rows = [Budget(steps=5, why=f"{i}", step_seconds=float(i)) for i in (1, 2)]
    manifests = [build_manifest(tmp_path, row, {}) for row in rows]
    (tmp_path / "manifest.json").write_text(json.dumps(manifests[0]))
    assert steps_of(Folder(path=str(tmp_path), sha256=""), DistillationOptions(steps=9)).steps == 5
    assert manifests[0]["digest"] == manifests[1]["digest"]


def test_named_steps_need_no_torch(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys; from pathlib import Path; from pu_engine import budget;"
        "from pu_engine.progress import SilentProgress;"
        "from pu_engine.types import BudgetInputs, Folder;"
        "budget.run(BudgetInputs(intake=Folder(path='x', sha256='')), Path('.'), SilentProgress());"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
