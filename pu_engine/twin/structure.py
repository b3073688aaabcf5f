"""A twin's structure as data: its steps with their settings, and the JSON form of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VERSION = 1


class TwinUnavailable(Exception):
    """The graph has no twin; the job goes on without one.

    Args:
        operator: of the node that is to blame, "" where the model as a whole is.
        node: its name, or that of its first output.
        why: what about it can't be taken, as the end of a sentence that begins with the node.
    """

    def __init__(self, operator: str, node: str, why: str) -> None:
        super().__init__(operator, node, why)
        self.operator = operator
        self.node = node
        self.why = why

    def __str__(self) -> str:
        return f"{self.operator} {self.node!r}: {self.why}" if self.operator else self.why


@dataclass(frozen=True, slots=True, kw_only=True)
class PerBatch:
    """Whole numbers that grow with the batch: slope * N + offset each."""

    terms: tuple[tuple[int, int], ...]  # (slope, offset)
    scalar: bool  # one number, not a list of one

    def at(self, batch: int) -> Any:
        """The value for a batch; `batch` may be symbolic, so a slope of 0 must not touch it."""
        values = [slope * batch + offset if slope else offset for slope, offset in self.terms]
        return values[0] if self.scalar else values


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operator of the twin."""

    operator: str  # a key of `twin.operators.OPERATORS`
    node: str  # what the graph calls it
    inputs: tuple[str, ...]  # "" where an optional one lacks
    outputs: tuple[str, ...]  # "" where nobody reads it
    settings: Mapping[str, Any]  # numbers, texts, lists of them, `PerBatch`


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A tensor of the twin; the name is also that in the safetensors file."""

    name: str
    source: str  # in the graph
    trainable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """A twin without its numbers: what `twin.json` holds."""

    input: str
    dtype: str  # of the input: float32 | float16 | uint8 | int8
    dims: tuple[int, ...]  # of one image
    outputs: tuple[str, ...]  # the first are the logits
    steps: tuple[Step, ...]
    weights: tuple[Weight, ...]

    def as_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "version": VERSION,
            "input": self.input,
            "dtype": self.dtype,
            "dims": list(self.dims),
            "outputs": list(self.outputs),
            "steps": [
                {
                    "operator": step.operator,
                    "node": step.node,
                    "inputs": list(step.inputs),
                    "outputs": list(step.outputs),
                    "settings": {name: _to_json(value) for name, value in step.settings.items()},
                }
                for step in self.steps
            ],
            "weights": [{"name": w.name, "source": w.source, "trainable": w.trainable} for w in self.weights],
        }


def from_json(data: Mapping[str, Any]) -> Structure:
    """The structure that `Structure.as_json` wrote.

    Raises:
        ValueError: another version, or keys that are missing or unknown.
    """
    if data.get("version") != VERSION:
        raise ValueError(f"a twin of version {VERSION} was expected, got {data.get('version')!r}")
    _check_keys(data, {"version", "input", "dtype", "dims", "outputs", "steps", "weights"}, "twin")
    return Structure(
        input=str(data["input"]),
        dtype=str(data["dtype"]),
        dims=tuple(int(d) for d in data["dims"]),
        outputs=tuple(str(name) for name in data["outputs"]),
        steps=tuple(_step(row) for row in data["steps"]),
        weights=tuple(_weight(row) for row in data["weights"]),
    )


def _step(row: Mapping[str, Any]) -> Step:
    _check_keys(row, {"operator", "node", "inputs", "outputs", "settings"}, "step")
    return Step(
        operator=str(row["operator"]),
        node=str(row["node"]),
        inputs=tuple(str(name) for name in row["inputs"]),
        outputs=tuple(str(name) for name in row["outputs"]),
        settings={str(name): _from_json(value) for name, value in row["settings"].items()},
    )


def _weight(row: Mapping[str, Any]) -> Weight:
    _check_keys(row, {"name", "source", "trainable"}, "weight")
    return Weight(name=str(row["name"]), source=str(row["source"]), trainable=bool(row["trainable"]))


def _check_keys(data: Mapping[str, Any], expected: set[str], where: str) -> None:
    if set(data) != expected:
        raise ValueError(f"a {where} has keys {sorted(data)}, {sorted(expected)} were expected")


def _to_json(value: Any) -> Any:
    if isinstance(value, PerBatch):
        return {"per_batch": [list(term) for term in value.terms], "scalar": value.scalar}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # JSON has no infinity
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if isinstance(value, dict) and set(value) == {"float"}:
        return float(value["float"])
    if isinstance(value, dict) and set(value) == {"per_batch", "scalar"}:
        return PerBatch(terms=tuple((int(a), int(b)) for a, b in value["per_batch"]), scalar=bool(value["scalar"]))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"a setting can't be {type(value).__name__}")
