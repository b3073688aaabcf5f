"""Where a training stands, on disk: a killed run goes on from the last whole checkpoint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from pu_engine.results import file_sha256, write_atomic
from pu_engine.training.averaging import Average

KEPT = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepValues:
    """What one step said, still on its device."""

    step: int  # those before it
    rate: float
    names: tuple[str, ...]  # the loss first
    values: Tensor  # float32, one of each name


@dataclass(slots=True, kw_only=True)
class TrainingState:
    """What changes with the steps, beside weights and momentum."""

    class_loss: Tensor  # float64 [K], running mean of each class's loss
    average: Average = field(default_factory=dict)  # of the weights; empty where none is kept
    step: int = 0
    rate_scale: float = 1.0  # halved by the one roll-back
    ignorant_loss: float = 0.0  # of equal logits for every class, on the first batch
    recent_loss: float = 0.0  # decayed mean
    gradient_scale: float = 0.0  # of half-precision training; 0: as it starts
    sums: dict[str, float] = field(default_factory=dict)  # since the last row of the curve
    curve: list[dict[str, float]] = field(default_factory=list)
    unread: list[StepValues] = field(default_factory=list)  # of the last steps; none where a checkpoint is saved


SCALARS = ("step", "rate_scale", "ignorant_loss", "recent_loss", "gradient_scale", "sums", "curve")


def save(folder: Path, key: str, module: nn.Module, optimiser: torch.optim.Optimizer, state: TrainingState) -> None:
    """Write a checkpoint and drop all but the last two; the JSON file, written last, makes it whole.

    Args:
        key: what the checkpoint belongs to; `restore` ignores others.
        module: all that is trained.
    """
    folder.mkdir(exist_ok=True)
    tensors = {f"module.{name}": value for name, value in module.state_dict().items()}
    for index, values in optimiser.state_dict()["state"].items():
        tensors[f"momentum.{index}"] = values["momentum_buffer"]
    tensors |= {f"average.{name}": value for name, value in state.average.items()}
    tensors["class_loss"] = state.class_loss
    data = save_tensors({name: value.detach().contiguous() for name, value in tensors.items()})
    path = folder / f"step-{state.step:08d}.safetensors"
    write_atomic(path, data)
    content = {"key": key, "sha256": hashlib.sha256(data).hexdigest()}
    content |= {name: getattr(state, name) for name in SCALARS}
    write_atomic(path.with_suffix(".json"), json.dumps(content).encode())
    for old in sorted(folder.glob("step-*.json"))[:-KEPT]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def restore(folder: Path, key: str, module: nn.Module, optimiser: torch.optim.Optimizer) -> TrainingState | None:
    """Load the newest whole checkpoint of this key into module and optimiser; None where there is none."""
    for path in sorted(folder.glob("step-*.json"), reverse=True):
        content = json.loads(path.read_text())
        weights = path.with_suffix(".safetensors")
        if content["key"] != key or not weights.exists() or file_sha256(weights) != content["sha256"]:
            continue
        tensors = load_tensors(weights.read_bytes())
        module.load_state_dict(_named(tensors, "module."))
        _restore_momentum(optimiser, tensors)
        return TrainingState(
            class_loss=tensors["class_loss"],
            average=_named(tensors, "average."),
            **{name: content[name] for name in SCALARS},
        )
    return None


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _restore_momentum(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    optimiser.state.clear()
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        saved = tensors.get(f"momentum.{index}")
        if saved is not None:
            # In the parameter's own memory order, as the optimiser makes it.
            optimiser.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(saved)
