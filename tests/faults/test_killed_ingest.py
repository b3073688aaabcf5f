"""The ingest's process killed with -9 in the middle: the next run ends with the digests of an undisturbed one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from pu_engine.results import file_sha256, read_manifest
from tests.conftest import write_tar

IMAGES, SHARD_IMAGES = 3000, 250
SECONDS = 60.0


def prepare(workdir: Path, tar: Path) -> Path:
    workdir.mkdir()
    inputs = {
        "name": "killed",
        "tars": [{"path": str(tar), "sha256": file_sha256(tar)}],
        "shard_images": SHARD_IMAGES,
        "threads": 2,
    }
    (workdir / "inputs.json").write_text(json.dumps(inputs))
    return workdir


def start(workdir: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-I", "-m", "pu_engine.stage", "ingest", str(workdir)])


def finished_shards(workdir: Path) -> list[Path]:
    return sorted((workdir / "out.partial").glob("shard-*.arrow"))


def test_killed_ingest_goes_on_to_the_same_pool(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 16, 16, 3), np.uint8)
    pixels[1::7] = pixels[::7][: len(pixels[1::7])]  # duplicates across shards
    write_tar(tmp_path / "pool.tar", pixels)
    calm, stormy = (
        prepare(tmp_path / "calm", tmp_path / "pool.tar"),
        prepare(tmp_path / "stormy", tmp_path / "pool.tar"),
    )
    assert start(calm).wait(SECONDS) == 0

    kept = 0
    for shards in (2, 6):
        process = start(stormy)
        deadline = time.monotonic() + SECONDS
        while len(finished_shards(stormy)) < shards:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert len(finished_shards(stormy)) >= max(shards, kept)
        kept = len(finished_shards(stormy))
    before = {path.name: path.stat().st_mtime_ns for path in finished_shards(stormy)[: kept - 1]}
    assert start(stormy).wait(SECONDS) == 0

    assert read_manifest(stormy / "out")["digest"] == read_manifest(calm / "out")["digest"]
    assert file_sha256(stormy / "out" / "pool.json") == file_sha256(calm / "out" / "pool.json")
    assert {name: (stormy / "out" / name).stat().st_mtime_ns for name in before} == before
    assert read_manifest(calm / "out")["result"]["duplicates"] > 400
