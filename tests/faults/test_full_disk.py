"""A stage on a disk that is full, in truth: a small file system of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pu_engine.pipeline import INGEST
from server.runners.port import StageOutcome
from server.stage_execution import StageFailed, judge
from tests.service.running_server import image_tar

DISK_BYTES = 2 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "punnet-test", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mounting, check=False, capture_output=True).returncode:
        pytest.skip("a small file system can't be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_stage_that_finds_the_disk_full_says_so(tmp_path: Path, small_disk: Path) -> None:
    tar = tmp_path / "pool.tar"
    tar.write_bytes(image_tar(1500, side=32))
    assert tar.stat().st_size > 2 * DISK_BYTES
    named = {"path": str(tar), "sha256": hashlib.sha256(tar.read_bytes()).hexdigest()}
    (small_disk / "inputs.json").write_text(json.dumps({"name": "web", "tars": [named], "threads": 1}))
    command = [sys.executable, "-I", "-m", "pu_engine.stage", "ingest", str(small_disk)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    outcome = StageOutcome(returncode=done.returncode, seconds=1.0, stderr_tail=done.stderr[-4096:])
    with pytest.raises(StageFailed) as failed:
        judge(INGEST, small_disk, outcome)
    assert failed.value.error["code"] == "DISK_FULL"
