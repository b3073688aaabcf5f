"""A trained student on disk: `student.safetensors` and `student.json`, written and read back."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from pu_engine.jsonform import from_json, to_json
from pu_engine.results import write_atomic
from pu_engine.student.catalogue import build
from pu_engine.types import StudentSpec

WEIGHTS, SPEC = "student.safetensors", "student.json"


def write_student(folder: Path, spec: StudentSpec, module: nn.Module) -> None:
    """Write weights and spec; the same weights give the same bytes."""
    tensors = {name: value.detach().clone().contiguous() for name, value in module.state_dict().items()}
    write_atomic(folder / WEIGHTS, save_tensors(tensors))
    write_atomic(folder / SPEC, json.dumps(to_json(spec), indent=1, sort_keys=True).encode())


def load_student(folder: Path) -> tuple[StudentSpec, nn.Module]:
    """The spec and the network with its weights, in eval mode."""
    spec = from_json(StudentSpec, json.loads((folder / SPEC).read_text()))
    module = build(spec.name, spec.size, spec.channels, spec.classes)
    module.load_state_dict(load_tensors((folder / WEIGHTS).read_bytes()))
    return spec, module.eval()
