"""One round of each fault of `benchmarks.faults`: nothing that was accepted is lost, and nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = 12  # as many as there are faults; some come twice where others can't be injected
SECONDS = 7200


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
def test_no_fault_loses_an_accepted_job(tmp_path: Path) -> None:
    out = tmp_path / "faults.json"
    command = [sys.executable, "-m", "benchmarks.faults", "--rounds", str(ROUNDS), "--seed", "1", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    faults = json.loads(out.read_text())["faults"]
    runnable = {name: figures for name, figures in faults.items() if "not_run_here" not in figures}
    assert {name for name, figures in runnable.items() if figures["lost"]} == set()
    assert sum(figures["injected"] for figures in runnable.values()) >= ROUNDS // 2
