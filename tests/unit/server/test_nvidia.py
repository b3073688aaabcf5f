"""A stage that can use a GPU may open it, where there is one; its memory is then bounded by what it may write."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from server.confine import PROFILES
from server.nvidia import device_files, gpu_models
from server.runners import local
from server.runners.port import StageCommand

SHOW_LIMITS = """
import json, resource, sys
from pathlib import Path
from server.confine import Confinement, limit_resources
limit_resources(Confinement(workdir=Path("."), profile="training", gpu=sys.argv[1] == "gpu"))
print(json.dumps({name: resource.getrlimit(getattr(resource, name))[0] for name in ("RLIMIT_AS", "RLIMIT_DATA")}))
"""


def command(folder: Path, *, uses_gpu: bool) -> StageCommand:
    return StageCommand(
        stage="distillation", workdir=folder, read=(), profile="training", wall_seconds=60.0, threads=1, run_id="run",
        uses_gpu=uses_gpu,
    )  # fmt: skip


def test_the_driver_names_its_devices(tmp_path: Path) -> None:
    for bus, model in (("0000:65:00.0", "NVIDIA L4"), ("0000:17:00.0", "NVIDIA A10")):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "information").write_text(f"Model: \t {model}\nIRQ:   43\n")
    assert gpu_models(tmp_path) == ["NVIDIA A10", "NVIDIA L4"]
    assert gpu_models(tmp_path / "none") == []


def test_the_device_files_are_the_drivers_alone(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm", "sda", "null"):
        (tmp_path / name).touch()
    assert [path.name for path in device_files(tmp_path)] == ["nvidia-uvm", "nvidia0", "nvidiactl"]


def test_a_stage_that_can_use_a_gpu_gets_it_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    able, unable = command(tmp_path, uses_gpu=True), command(tmp_path, uses_gpu=False)
    monkeypatch.setattr(local, "gpu_models", list)
    assert "--gpu" not in local.arguments(able, 3)
    monkeypatch.setattr(local, "gpu_models", lambda: ["NVIDIA L4"])
    assert "--gpu" in local.arguments(able, 3)
    assert "--gpu" not in local.arguments(unable, 3)


@pytest.mark.parametrize("gpu", [False, True])
def test_on_a_gpu_what_may_be_written_is_bounded_in_place_of_address_space(gpu: bool) -> None:
    given = [sys.executable, "-c", SHOW_LIMITS, "gpu" if gpu else "cpu"]
    limits = json.loads(subprocess.run(given, capture_output=True, check=True, text=True).stdout)
    bounded, free = ("RLIMIT_DATA", "RLIMIT_AS") if gpu else ("RLIMIT_AS", "RLIMIT_DATA")
    assert limits[bounded] == PROFILES["training"].address_space_bytes
    assert limits[free] == resource.getrlimit(getattr(resource, free))[0]
