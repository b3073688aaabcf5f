"""What a stage's process left behind, checked before it is believed: it may have run a stranger's model."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pu_engine.pipeline import ENGINE_VERSION, Stage
from punnet.errors import TABLE
from server.child_text import holdable, readable
from server.folders import read_bounded

MANIFEST = "manifest.json"
MANIFEST_BYTES = 16 << 20
ERROR_BYTES = 1 << 16
TEXT_CHARACTERS = 4000
DETAILS = 32
SHA256_CHARACTERS = 64


class ProtocolError(Exception):
    """The child's files are not what a stage writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRow:
    """One file of a finished folder."""

    path: str
    sha256: str
    size: int
    reproducible: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A finished folder, checked."""

    files: tuple[FileRow, ...]
    digest: str
    result: Mapping[str, Any]
    seconds: float
    peak_memory_bytes: int
    warnings: tuple[str, ...] = ()  # what the stage said to the user; a job that reuses it says it again


def read_finished(stage: Stage, out: Path) -> Manifest:
    """The manifest of a finished folder, after its form, its files' sizes and their digests were checked.

    Raises:
        ProtocolError: anything is not as the stage contract says.
    """
    try:
        if not stat.S_ISDIR(os.lstat(out).st_mode):
            raise ProtocolError("its output is not a folder")
        value = json.loads(read_bounded(out / MANIFEST, MANIFEST_BYTES))
        manifest = _parse(stage, value)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise ProtocolError(f"its manifest can't be read ({type(error).__name__})") from error
    for row in manifest.files:
        _check_file(out, row)
    return manifest


def read_error(workdir: Path) -> dict[str, Any] | None:
    """The child's own account of its failure; None where it left none.

    Raises:
        ProtocolError: it is not of the contract's form, or names a code that the table lacks.
    """
    try:
        value = json.loads(read_bounded(workdir / "error.json", ERROR_BYTES))
        error = {name: _text(value[name]) for name in ("code", "message", "remedy")}
        details = {_text(k)[:100]: _text(v) for k, v in list(value["details"].items())[:DETAILS]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as defect:
        raise ProtocolError(f"its error.json can't be read ({type(defect).__name__})") from defect
    if value["code"] not in TABLE:
        raise ProtocolError("its error.json names an unknown code")
    return {**error, "details": details}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return readable(value[:TEXT_CHARACTERS])


def _parse(stage: Stage, value: Any) -> Manifest:
    if (value["stage"], value["schema"], value["engine"]) != (stage.name, stage.schema, ENGINE_VERSION):
        raise ValueError("another stage's manifest")
    if value.pop("seal") != _seal(value):
        raise ValueError("the content is not what its seal says")
    if not isinstance(value["result"], dict):
        raise TypeError("the result is not an object")
    files = tuple(_file_row(row) for row in value["files"])
    if len({row.path for row in files}) != len(files):
        raise ValueError("a path twice")
    stable = [[row.path, row.sha256] for row in files if row.reproducible]
    content = json.dumps([stable, value["result_sha256"]], separators=(",", ":"))
    digest = hashlib.sha256(content.encode()).hexdigest()
    if digest != value["digest"]:
        raise ValueError("the digest is not that of files and result")
    seconds, memory = float(value["seconds"]), int(value["peak_memory_bytes"])
    if not math.isfinite(seconds) or not 0 <= memory < 2**63:
        raise ValueError("seconds or memory out of range")
    return Manifest(
        files=files,
        digest=digest,
        result=value["result"],
        seconds=seconds,
        peak_memory_bytes=memory,
        warnings=tuple(_text(text) for text in value["result"].get("warnings", ())),
    )


def _seal(value: Any) -> str:
    """As `pu_engine.results.seal`, which the server does not import."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _file_row(row: Any) -> FileRow:
    path, sha256, size, reproducible = row["path"], row["sha256"], row["size"], row["reproducible"]
    pure = PurePosixPath(holdable(path))
    if pure.is_absolute() or str(pure) != path or any(part.startswith(".") for part in pure.parts) or not pure.parts:
        raise ValueError("a path that leaves the folder")
    if len(sha256) != SHA256_CHARACTERS or not set(sha256) <= set("0123456789abcdef"):
        raise ValueError("not a digest")
    if type(size) is not int or size < 0 or type(reproducible) is not bool:
        raise TypeError("size or reproducible")
    return FileRow(path=path, sha256=sha256, size=size, reproducible=reproducible)


def _check_file(out: Path, row: FileRow) -> None:
    path = out / row.path
    if path.resolve() != out.resolve() / row.path:
        raise ProtocolError("its manifest lists a link")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size != row.size:
                raise ProtocolError("a file differs in size from its manifest")
            if hashlib.file_digest(file, "sha256").hexdigest() != row.sha256:
                raise ProtocolError("a file differs from its manifest")
    except OSError as error:
        raise ProtocolError("a file of its manifest is missing") from error
