"""A training's curve as it grows, thinned so that it stays small however long the training is."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.folders import read_bounded

MOST_POINTS = 256
CURVE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One step; the agreement with the teacher on the held-out images is measured now and then."""

    step: int
    loss: float
    agreement: float | None = None


class LiveCurve:
    """Points as they come; every other one goes when there are too many, and from then on fewer are taken."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self._between = 1
        self._seen = 0

    def add(self, point: Point) -> None:
        """Take a point, unless it is one of those that thinning leaves out."""
        if not math.isfinite(point.loss):
            return
        if self.points and point.step <= self.points[-1].step:  # a roll-back, or another attempt
            self.points = [p for p in self.points if p.step < point.step]
        if self._seen % self._between == 0:
            self.points.append(point)
        self._seen += 1
        if len(self.points) > MOST_POINTS:
            self.points = self.points[::2]
            self._between *= 2


def read_curve(path: Path) -> list[Point]:
    """The points of a finished training's `curve.jsonl`.

    Raises:
        OSError, ValueError: missing, too large, or not of that form.
    """
    content = read_bounded(path, CURVE_BYTES)
    try:
        rows = [json.loads(line) for line in content.splitlines()]
        points = [
            Point(step=int(row["step"]), loss=float(row["loss"]), agreement=_share(row.get("held_out_agreement")))
            for row in rows
        ]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path.name} has a row without step and loss") from error
    return [point for point in points if math.isfinite(point.loss)]


def thinned(points: Sequence[Point]) -> list[Point]:
    """Every n-th point, so that at most MOST_POINTS remain, and the last one."""
    between = -(-len(points) // MOST_POINTS) or 1
    return [*points[:-1:between], *points[-1:]]


def _share(value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"an agreement is from 0 to 1, got {value!r}")
    return float(value)
