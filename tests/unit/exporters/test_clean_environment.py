"""The bundle's program where nothing is installed but its runtime and NumPy."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from exporters.bundle import write_bundle
from exporters.engine_builder import missing
from tests.unit.exporters.test_bundle import content, unpack

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing("tensorrt_rtx") is not None, reason="tensorrt_rtx is not installed"),
]
CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"


def test_the_program_runs_with_tensorrt_rtx_and_numpy_alone(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-qq", "-c", str(CONSTRAINTS), "tensorrt-rtx", "numpy"]
    if subprocess.run(install, check=False, capture_output=True).returncode:
        pytest.skip("tensorrt-rtx can't be installed from here")
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True)
    names = {row["name"].replace("_", "-") for row in json.loads(listed.stdout)}
    assert {name.partition("-")[0] for name in names} <= {"tensorrt", "numpy", "pip", "setuptools"}

    write_bundle(content(tmp_path), tmp_path / "bundle.zip")
    folder = unpack(tmp_path / "bundle.zip", tmp_path / "unpacked")
    done = subprocess.run([python, "build_on_target.py"], cwd=folder, check=True, capture_output=True, text=True)
    report = json.loads((folder / "engines" / "device-report.json").read_text())
    assert report["recommended"] == "fp32"
    if report["device"] is None:
        assert "not measured: no CUDA device here" in done.stdout
    assert str(sys.prefix) not in json.dumps(report)
