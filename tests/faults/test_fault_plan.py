"""What the benchmark of faults says of those that it can't inject."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ON_RAY = ("ray_worker_killed", "ray_node_killed")
WITHOUT_RAY = "import sys; sys.modules['ray'] = None; from benchmarks.faults import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.slow  # the benchmark's imports take seconds
def test_without_ray_its_faults_are_named_and_they_alone_are_refused(tmp_path: Path) -> None:
    arguments = ["--only", *ON_RAY, "--out", str(tmp_path / "faults.json")]
    done = subprocess.run([sys.executable, "-c", WITHOUT_RAY, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert [line for line in done.stdout.splitlines() if line.startswith("left out: ")] == [
        f"left out: {name}: Ray is not installed: pip install 'punnet[cpu,ray]'" for name in ON_RAY
    ]
    assert "none of these faults can be injected here" in done.stderr
