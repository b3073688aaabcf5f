"""The targets, as `targets.json` lists them: which device, which runtime, which variants in order of preference."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BUILDERS = ("tensorrt", "tensorrt_rtx")  # runtimes that run engines, which are built of ONNX


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A device family."""

    name: str
    device: str  # in words
    runtime: str  # onnxruntime | onnxruntime_mobile | tensorrt | tensorrt_rtx
    variants: tuple[str, ...]  # that a bundle takes where they exist; an engine is made of the first
    capabilities: tuple[str, ...] = ()  # CUDA compute capabilities, for instance "SM87"

    @property
    def has_engines(self) -> bool:
        """Whether the device runs engines; elsewhere it runs the ONNX file or what was converted from it."""
        return self.runtime in BUILDERS

    @property
    def ahead_of_time(self) -> bool:
        """Whether an engine can be built on a machine without the device."""
        return self.runtime == "tensorrt_rtx"


@functools.cache
def targets() -> Mapping[str, Target]:
    """Every target by name, in the file's order."""
    rows = json.loads(Path(__file__).with_name("targets.json").read_text())
    return {name: _target(name, row) for name, row in rows.items()}


def _target(name: str, row: Mapping[str, object]) -> Target:
    lists = {key: tuple(value) for key, value in row.items() if isinstance(value, list)}
    return Target(name=name, **{**row, **lists})  # type: ignore[arg-type]
