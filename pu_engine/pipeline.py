"""Which stage follows which: pure data, so that the server can read it without the engine.

A job's `spec` is JSON with the groups `teacher`, `images`, `pool`, `preprocessing`, `student`, `selection`,
`distillation`, `export` and `seed`; `stage_inputs` picks from it what one stage reads.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGETS_FILE = Path(__file__).resolve().parents[1] / "exporters" / "targets.json"
ENGINE_VERSION = "0.1.0"
OWN_RUNTIMES, EXPORTER_GROUP = ("openvino", "executorch"), "punnet.exporters"
VERSIONED_PACKAGES = (
    "executorch",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "openvino",
    "pillow",
    "pyarrow",
    "safetensors",
    "simplejpeg",
    "tensorrt",
    "tensorrt-rtx",
    "timm",
    "torch",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage: what it reads of the spec and of earlier stages, and what it may use."""

    name: str
    module: str
    schema: int  # raised when the meaning of inputs or results changes
    needs: tuple[str, ...] = ()  # earlier stages' folders
    reads: tuple[str, ...] = ()  # keys of the spec; "group.key" lifts one value
    profile: str = "training"  # of server.confine: "model" runs a stranger's file
    retries: int = 1  # after a crash for its own reason
    minutes: int = 24 * 60  # wall-clock limit
    shares_parts: bool = False  # an input `kept` names its earlier results, parts of which it takes over
    uses_gpu: bool = False  # where there is one


INTAKE = Stage(
    name="intake",
    module="pu_engine.intake",
    schema=4,
    reads=("teacher", "external_data", "display_name", "class_names", "taps", "images", "preprocessing", "seed"),
    profile="model",
    retries=0,
    minutes=10,
)
SCORING = Stage(
    name="scoring",
    module="pu_engine.scoring",
    schema=5,
    needs=("intake",),
    reads=("pool", "images"),
    profile="model",
    shares_parts=True,
    uses_gpu=True,
)
BUDGET = Stage(
    name="budget",
    module="pu_engine.budget",
    schema=1,
    needs=("intake",),
    reads=("student", "distillation", "seed"),
    minutes=30,
    uses_gpu=True,
)
SELECTION = Stage(
    name="selection",
    module="pu_engine.selection",
    schema=6,
    needs=("intake", "scoring", "budget"),
    reads=(
        "pool",
        "selection",
        "distillation.batch_size",
        "distillation.labelled_share",
        "seed",
    ),
)
GATHERING = Stage(
    name="gathering",
    module="pu_engine.gathering",
    schema=4,
    needs=("intake", "scoring", "selection"),
    reads=("pool", "images", "student.size", "distillation.targets", "distillation.views", "seed"),
    profile="model",  # where the pool was scored in int8, the teacher gives its targets here
    uses_gpu=True,
)
DISTILLATION = Stage(
    name="distillation",
    module="pu_engine.distillation",
    schema=2,
    needs=("intake", "scoring", "budget", "selection", "gathering"),
    reads=("student", "distillation", "seed"),
    uses_gpu=True,
)
EXPORT = Stage(
    name="export",
    module="pu_engine.export",
    schema=3,
    needs=("gathering", "distillation"),
    reads=("export", "distillation.loss", "distillation.labelled_share", "distillation.batch_size", "seed"),
)
VERIFICATION = Stage(
    name="verification",
    module="pu_engine.verification",
    schema=2,
    needs=("intake", "gathering", "distillation", "export"),
    profile="model",
)
BUNDLING = Stage(
    name="bundling",
    module="pu_engine.bundling",
    schema=1,
    needs=("gathering", "distillation", "export", "verification"),
    reads=("export.targets", "export.parity_images"),
)
REPORT = Stage(
    name="report",
    module="pu_engine.report",
    schema=3,
    needs=("intake", "scoring", "selection", "gathering", "distillation", "export", "verification", "bundling"),
    reads=("pool", "images", "plan"),
)
INSPECTION = Stage(
    name="inspection", module="pu_engine.inspection", schema=2, needs=("intake",), reads=("images",), minutes=10
)
PLAN = Stage(
    name="plan",
    module="pu_engine.plan",
    schema=3,
    needs=("intake",),
    reads=("pool", "images", "selection", "student", "distillation", "seed"),
    profile="model",
    minutes=30,
)
INGEST = Stage(name="ingest", module="pu_engine.ingest", schema=2, reads=("name", "tars", "pool", "shrink"), retries=1)
POOL_VERIFICATION = Stage(
    name="pool_verification", module="pu_engine.pool_verification", schema=1, reads=("pool", "check")
)
POOL_PAGE = Stage(name="pool_page", module="pu_engine.pool_page", schema=1, reads=("pool",))

COMPRESS = (INTAKE, SCORING, BUDGET, SELECTION, GATHERING, DISTILLATION, EXPORT, VERIFICATION, BUNDLING, REPORT)
KINDS: Mapping[str, tuple[Stage, ...]] = {
    "compress": COMPRESS,
    "validate": (INTAKE, INSPECTION),
    "inspect": (INTAKE, INSPECTION),
    "plan": (INTAKE, PLAN),
    "ingest": (INGEST,),
    "verify_pool": (POOL_VERIFICATION,),
    "describe_pool": (POOL_PAGE,),
}
STAGES: Mapping[str, Stage] = {s.name: s for stages in KINDS.values() for s in stages}


def export_targets() -> dict[str, Any]:
    """The targets as their one file lists them: name -> device, runtime, capabilities, variants."""
    rows: dict[str, Any] = json.loads(TARGETS_FILE.read_text())
    return rows


def export_runtimes() -> tuple[str, ...]:
    """Runtimes beside those of the targets that a student can be converted for: Punnet's own and installed ones."""
    found = importlib.metadata.entry_points(group=EXPORTER_GROUP)
    return tuple(dict.fromkeys((*OWN_RUNTIMES, *sorted(point.name for point in found))))


def stage_inputs(stage: Stage, spec: Mapping[str, Any], folders: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The JSON form of one stage's inputs, from the job's spec and the folders of earlier stages.

    Keys that the spec lacks are left out: the engine's dataclasses hold the defaults.
    """
    inputs: dict[str, Any] = {name: dict(folders[name]) for name in stage.needs}
    for key in stage.reads:
        group, _, name = key.partition(".")
        value = spec.get(group)
        if name:
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            inputs[name or group] = value
    return inputs


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that results depend on."""
    versions = {"python": platform.python_version()}
    for name in VERSIONED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def stage_key(stage: Stage, inputs: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """What a finished result is reused by: sha256 over stage, engine, installed packages and inputs without paths."""
    content = {
        "stage": stage.name,
        "schema": stage.schema,
        "engine": ENGINE_VERSION,
        "versions": dict(versions),
        "inputs": _without_paths(inputs),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_paths(v) for k, v in value.items() if not (k == "path" and "sha256" in value)}
    if isinstance(value, list | tuple):
        return [_without_paths(v) for v in value]
    return value
