"""The torch twin: a canonical graph as a trainable module, its weights as safetensors, its structure as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from pu_engine.results import write_atomic
from pu_engine.twin.operators import ANCHOR, OPERATORS, Operator
from pu_engine.twin.structure import PerBatch, Step, Structure, TwinUnavailable, from_json

STRUCTURE, WEIGHTS = "twin.json", "twin.safetensors"
TORCH_FAILURES = (RuntimeError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One step made ready: `done` are values that no later step reads."""

    step: Step
    operator: Operator
    anchored: bool
    per_batch: tuple[str, ...]
    done: tuple[str, ...]


class Twin(nn.Module):
    """A teacher's graph in torch: images in the teacher's own input form to logits, at any batch.

    Weights are parameters; running statistics and fixed constants are buffers. It computes as in inference, whatever
    `train()` says: statistics stay the teacher's and nothing is dropped. All floats are computed in the type of the
    weights, so `.half()` and `.to(device)` move the whole of it.

    Raises:
        ValueError: the structure and the weights don't belong together, or a step isn't one of the table.
    """

    anchor: Tensor

    def __init__(self, structure: Structure, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        names = [weight.name for weight in structure.weights]
        if sorted(names) != sorted(weights):
            odd = sorted(set(names) ^ set(weights))[:5]
            raise ValueError(f"the structure and the weights differ by {odd}")
        for weight in structure.weights:
            tensor = weights[weight.name]
            if weight.trainable:
                self.register_parameter(weight.name, nn.Parameter(tensor))
            else:
                self.register_buffer(weight.name, tensor)
        self.register_buffer(ANCHOR, torch.empty(0), persistent=False)
        self.structure = structure
        self._weights = frozenset(names)
        self.moves = _schedule(structure.steps, structure.outputs, self._weights)
        self._logits = _schedule(structure.steps, structure.outputs[:1], self._weights)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K] of images [N, ...] in the teacher's layout, scaling and type."""
        return self._run(images, self._logits)[self.structure.outputs[0]]

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Every output of the graph by name: the logits first, then the taps [N, width]."""
        values = self._run(images, self.moves)
        return {name: values[name] for name in self.structure.outputs}

    def _run(self, images: Tensor, moves: Sequence[Move]) -> dict[str, Tensor]:
        values = self.started(images)
        for move in moves:
            self.apply_step(move, values, images.shape[0])
        return values

    def started(self, images: Tensor) -> dict[str, Tensor]:
        """The values before the first step."""
        return {self.structure.input: images.to(self.anchor.dtype) if images.is_floating_point() else images}

    def apply_step(self, move: Move, values: dict[str, Tensor], batch: int) -> None:
        """Add what one step makes of the values so far, and drop those that ended with it."""
        step = move.step
        settings = dict(step.settings)
        for name in move.per_batch:
            settings[name] = settings[name].at(batch)
        if move.anchored:
            settings[ANCHOR] = self.anchor
        result = move.operator.run(*[self._operand(name, values) for name in step.inputs], **settings)
        parts = result if isinstance(result, tuple) else (result,)
        if len(step.outputs) > len(parts):
            raise ValueError(f"its output {len(step.outputs)} is read, {len(parts)} can be made")
        values.update({name: part for name, part in zip(step.outputs, parts, strict=False) if name})
        for name in move.done:
            del values[name]

    def _operand(self, name: str, values: Mapping[str, Tensor]) -> Tensor | None:
        if not name:
            return None
        tensor: Tensor = getattr(self, name) if name in self._weights else values[name]
        return tensor


def _schedule(steps: Sequence[Step], outputs: Sequence[str], weights: frozenset[str]) -> tuple[Move, ...]:
    """The steps that these outputs need, in order, each with the values that end with it."""
    needed, moves = set(outputs), []
    for step in reversed(steps):
        if not needed.intersection(name for name in step.outputs if name):
            continue
        reads = {name for name in step.inputs if name and name not in weights}
        moves.append(_move(step, tuple(sorted(reads - needed))))
        needed |= reads
    return tuple(reversed(moves))


def _move(step: Step, done: tuple[str, ...]) -> Move:
    if step.operator not in OPERATORS:
        raise ValueError(f"{step.node!r} is a {step.operator}, which no twin has")
    operator = OPERATORS[step.operator]
    anchored = ANCHOR in operator.signature.parameters
    settings: dict[str, Any] = dict(step.settings) | ({ANCHOR: None} if anchored else {})
    try:
        operator.signature.bind(*step.inputs, **settings)
    except TypeError as error:
        raise ValueError(f"{step.operator} {step.node!r}: {error}") from error
    per_batch = tuple(name for name, value in step.settings.items() if isinstance(value, PerBatch))
    return Move(step=step, operator=operator, anchored=anchored, per_batch=per_batch, done=done)


def build(model: Any) -> Twin:
    """The twin of a canonical or tapped model: one image input, any outputs, the batch free.

    Raises:
        TwinUnavailable: names the node that can't be taken.
    """
    from pu_engine.twin import reading  # brings onnx and onnxruntime, which a twin from its files doesn't need

    structure, arrays = reading.read(model)
    twin = Twin(structure, {name: torch.from_numpy(array) for name, array in arrays.items()})
    _try_out(twin)
    return twin


def _try_out(twin: Twin) -> None:
    """Run every step once on two images of nothing, so that one that can't run is named now."""
    structure = twin.structure
    images = torch.zeros(2, *structure.dims, dtype=getattr(torch, structure.dtype))
    values = twin.started(images)
    for move in twin.moves:
        try:
            with torch.no_grad():
                twin.apply_step(move, values, len(images))
        except TORCH_FAILURES as error:
            raise TwinUnavailable(move.step.operator, move.step.node, str(error).splitlines()[0]) from error


def save(twin: Twin, folder: Path) -> None:
    """Write `twin.json` and `twin.safetensors`; the same twin gives the same bytes."""
    tensors = {name: value.detach().contiguous().cpu() for name, value in twin.state_dict().items()}
    write_atomic(folder / WEIGHTS, save_tensors(tensors))
    write_atomic(folder / STRUCTURE, json.dumps(twin.structure.as_json(), indent=1, allow_nan=False).encode())


def load(folder: Path) -> Twin:
    """The twin that `save` wrote, on the CPU.

    Raises:
        ValueError: the files don't fit each other or the table of operators.
    """
    structure = from_json(json.loads((folder / STRUCTURE).read_text()))
    return Twin(structure, load_tensors((folder / WEIGHTS).read_bytes()))
