"""Finished stage folders: atomic files, the manifest, and reading a result back."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pu_engine.jsonform import from_json, to_json

T = TypeVar("T")
MANIFEST = "manifest.json"
# Timings and machine-made files differ from run to run: they stay out of a folder's digest.
UNREPRODUCIBLE_SUFFIXES = (
    ".engine",
    ".html",
    ".log",
    ".timing.json",
    "report.json",
    "samples.json",
    "plan.json",
    "inspection.json",
    "bundle-android.zip",  # its .ort files: see exporters.ort_format
    "bundle-ios.zip",
)


def file_sha256(path: Path) -> str:
    """Lower-case hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any, *, measured: bool = True) -> str:
    """JSON with sorted keys and no spaces: what digests are taken of."""
    return json.dumps(to_json(value, measured=measured), sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    fsync_folder(path.parent)


def fsync_folder(path: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reproducible(name: str) -> bool:
    """Whether a repeated run on a CPU gives the same bytes for this file."""
    return not name.endswith(UNREPRODUCIBLE_SUFFIXES)


def files_below(folder: Path) -> list[Path]:
    """Regular files below a folder, sorted by relative path; hidden ones are scratch and left out."""
    found = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    relative = [p.relative_to(folder) for p in found]
    kept = [r for r in relative if not any(part.startswith(".") for part in r.parts) and r.name != MANIFEST]
    return sorted(kept)


def build_manifest(folder: Path, result: Any, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a finished folder: files, result, and a digest over what of both is reproducible.

    The result counts: later stages read from it what no file holds, for instance the preprocessing. The `seal` is over
    all of it.
    """
    files = [_file_row(folder, r) for r in files_below(folder)]
    stable = [[row["path"], row["sha256"]] for row in files if row["reproducible"]]
    result_sha256 = hashlib.sha256(canonical_json(result, measured=False).encode()).hexdigest()
    digest = hashlib.sha256(canonical_json([stable, result_sha256]).encode()).hexdigest()
    rows = {"files": files, "digest": digest, "result": to_json(result), "result_sha256": result_sha256, **extra}
    return {**rows, "seal": seal(rows)}


def seal(rows: Mapping[str, Any]) -> str:
    """Sha256 of the manifest's own content: a bit of the result that flips on the disk is found by it."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _file_row(folder: Path, relative: Path) -> dict[str, Any]:
    path = folder / relative
    return {
        "path": relative.as_posix(),
        "sha256": file_sha256(path),
        "size": path.stat().st_size,
        "reproducible": reproducible(relative.name),
    }


def fsync_files(folder: Path, relative: Iterable[Path]) -> None:
    """Make finished files durable before their folder is renamed."""
    for item in relative:
        descriptor = os.open(folder / item, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished stage."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return manifest


def load(kind: type[T], folder: str | Path) -> T:
    """The result of a finished stage, from its folder."""
    return from_json(kind, read_manifest(Path(folder))["result"])
