"""Finished folders: their digest covers what a rerun gives again, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pu_engine.pools.pool_types import Shard
from pu_engine.results import build_manifest, file_sha256, files_below, write_atomic
from pu_engine.types import Variant

RESULT = Shard(name="s", sha256="00", size=1, entries=1, index_sha256="01")


def test_the_digest_ignores_timings_and_machine_made_files(tmp_path: Path) -> None:
    (tmp_path / "student.onnx").write_bytes(b"weights")
    before = build_manifest(tmp_path, RESULT, {"seconds": 1.0})["digest"]
    (tmp_path / "student.engine").write_bytes(b"never twice the same")
    (tmp_path / "report.json").write_bytes(b"{}")
    manifest = build_manifest(tmp_path, RESULT, {"seconds": 2.0})
    assert manifest["digest"] == before
    assert [row["path"] for row in manifest["files"]] == ["report.json", "student.engine", "student.onnx"]
    assert [row["reproducible"] for row in manifest["files"]] == [False, False, True]


def test_the_digest_follows_every_reproducible_byte(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"1")
    before = build_manifest(tmp_path, RESULT, {})["digest"]
    (tmp_path / "a.npy").write_bytes(b"2")
    assert build_manifest(tmp_path, RESULT, {})["digest"] != before


def test_hidden_files_and_links_are_no_outputs(tmp_path: Path) -> None:
    (tmp_path / ".checkpoints").mkdir()
    (tmp_path / ".checkpoints" / "last").write_bytes(b"scratch")
    (tmp_path / "kept").write_bytes(b"x")
    (tmp_path / "link").symlink_to("kept")
    assert files_below(tmp_path) == [Path("kept")]


def test_an_atomic_write_leaves_no_partial_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "f", b"one")
    write_atomic(tmp_path / "f", b"two")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert file_sha256(tmp_path / "f") == "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"


def test_the_digest_follows_the_result_but_not_its_timings(tmp_path: Path) -> None:
    variant = Variant(
        name="fp32", path="s.onnx", target="cpu", format="onnx", precision="fp32", size=1, sha256="00",
        seconds=1.0, reproducible=True,
    )  # fmt: skip
    before = build_manifest(tmp_path, variant, {})["digest"]
    assert build_manifest(tmp_path, replace(variant, seconds=2.0), {})["digest"] == before
    assert build_manifest(tmp_path, replace(variant, target="rtx"), {})["digest"] != before
