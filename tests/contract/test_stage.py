"""A stage as a process: what it leaves behind when it ends, fails, or runs again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import pytest

from pu_engine.pools.pool_types import Pool
from pu_engine.results import file_sha256, load, read_manifest


class SmallJob(Protocol):
    teacher: Path
    pool_tar: Path
    pool_images: int


def run_stage(name: str, workdir: Path, inputs: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and progress messages of a stage in a process of its own."""
    workdir.mkdir(exist_ok=True)
    (workdir / "inputs.json").write_text(json.dumps(inputs))
    reading, writing = os.pipe()
    command = [sys.executable, "-I", "-m", "pu_engine.stage", name, str(workdir), "--progress-fd", str(writing)]
    process = subprocess.Popen(command, pass_fds=[writing], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    os.close(writing)
    with open(reading) as lines:
        messages = [json.loads(line) for line in lines]
    stdout, _ = process.communicate(timeout=120)
    assert stdout == b""
    return process.returncode, messages


@pytest.fixture
def ingest(small_job: SmallJob) -> dict[str, Any]:
    tar = {"path": str(small_job.pool_tar), "sha256": file_sha256(small_job.pool_tar)}
    return {"name": "stripes", "tars": [tar], "shard_images": 2000, "threads": 1}


def test_a_finished_stage_lists_every_file_it_made(tmp_path: Path, small_job: SmallJob, ingest: dict[str, Any]) -> None:
    status, messages = run_stage("ingest", tmp_path, ingest)
    assert status == 0
    manifest = read_manifest(tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()
    assert manifest["stage"] == "ingest"
    assert manifest["seconds"] > 0
    assert manifest["peak_memory_bytes"] > 0
    on_disk = {p.name for p in (tmp_path / "out").iterdir()} - {"manifest.json"}
    assert {row["path"] for row in manifest["files"]} == on_disk
    for row in manifest["files"]:
        assert file_sha256(tmp_path / "out" / row["path"]) == row["sha256"]
    assert load(Pool, tmp_path / "out").images == small_job.pool_images
    last = messages[-1]
    assert last["done"] == last["total"] > 0


def test_a_second_run_gives_the_same_digest(tmp_path: Path, ingest: dict[str, Any]) -> None:
    assert run_stage("ingest", tmp_path / "a", ingest)[0] == 0
    assert run_stage("ingest", tmp_path / "b", ingest)[0] == 0
    assert read_manifest(tmp_path / "a" / "out")["digest"] == read_manifest(tmp_path / "b" / "out")["digest"]


def test_a_finished_folder_is_not_made_again(tmp_path: Path, ingest: dict[str, Any]) -> None:
    assert run_stage("ingest", tmp_path, ingest)[0] == 0
    before = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    assert run_stage("ingest", tmp_path, ingest)[0] == 0
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == before


def test_a_failed_stage_says_why_and_leaves_no_result(tmp_path: Path) -> None:
    (tmp_path / "junk.tar").write_bytes(b"\0" * 10240)
    tar = {"path": str(tmp_path / "junk.tar"), "sha256": file_sha256(tmp_path / "junk.tar")}
    status, _ = run_stage("ingest", tmp_path / "w", {"name": "empty", "tars": [tar]})
    error = json.loads((tmp_path / "w" / "error.json").read_text())
    assert status == 1
    assert error["code"] == "POOL_INVALID"
    assert error["remedy"]
    assert not (tmp_path / "w" / "out").exists()


def test_inputs_that_nobody_defined_are_refused_without_their_text(tmp_path: Path) -> None:
    status, _ = run_stage("ingest", tmp_path, {"name": "x", "tars": [], "colour": "red"})
    error = json.loads((tmp_path / "error.json").read_text())
    assert status == 1
    assert (error["code"], error["details"]) == ("INTERNAL", {"type": "ValueError"})
    assert "red" not in json.dumps(error)
