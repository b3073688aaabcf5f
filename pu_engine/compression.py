"""The whole pipeline in one process, for notebooks and experiments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pu_engine.execution import execute
from pu_engine.jsonform import to_json
from pu_engine.pipeline import COMPRESS, Stage, installed_versions, stage_inputs, stage_key
from pu_engine.progress import Progress, SilentProgress
from pu_engine.results import MANIFEST, file_sha256, read_manifest
from pu_engine.types import File, Folder, LabelledFile, LabelledImages


def compress(
    *,
    teacher: Path,
    images: Mapping[str, Sequence[Path]],
    pool: Path,
    out: Path,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Compress a teacher; finished stages below `out` are reused.

    Args:
        teacher: a trusted ONNX file without external data; nothing confines it here.
        images: label -> JPEG or PNG files.
        pool: a finished pool's folder (`pu_engine.ingest`).
        options: groups of the spec, for instance {"student": {"name": "cifar_resnet8"}}.

    Returns:
        The folder of artifacts, `report.html` among them.

    Raises:
        EngineError: what a stage says of its inputs.
    """
    spec = {
        "teacher": to_json(_file(teacher)),
        "display_name": teacher.name,
        "images": to_json(_labelled(images)),
        "pool": to_json(Folder(path=str(pool.resolve()), sha256=file_sha256(pool / "pool.json"))),
        "seed": seed,
        **(options or {}),
    }
    folders = dict(run_stages(COMPRESS, spec, out, threads=threads, progress=progress or SilentProgress()))
    return Path(folders["report"]["path"])


def run_stages(
    stages: Sequence[Stage], spec: Mapping[str, Any], out: Path, *, threads: int, progress: Progress
) -> Iterator[tuple[str, dict[str, str]]]:
    """Run stages in order below `out`; yields each one's name and finished folder (path, sha256)."""
    folders: dict[str, dict[str, str]] = {}
    versions = installed_versions()
    for stage in stages:
        inputs = stage_inputs(stage, spec, folders) | {"threads": threads}
        key = stage_key(stage, inputs, versions)
        if stage.shares_parts:
            inputs["kept"] = [str(path.parent) for path in sorted((out / stage.name).glob(f"*/out/{MANIFEST}"))]
        folder = execute(stage, out / stage.name / key[:16], inputs, progress)
        folders[stage.name] = {"path": str(folder.resolve()), "sha256": read_manifest(folder)["digest"]}
        yield stage.name, folders[stage.name]


def _file(path: Path) -> File:
    return File(path=str(path.resolve()), sha256=file_sha256(path))


def _labelled(images: Mapping[str, Sequence[Path]]) -> LabelledImages:
    return LabelledImages(
        files=tuple(LabelledFile(label=label, image=_file(path)) for label, paths in images.items() for path in paths)
    )
