"""What a plan foretold, for the report of the compression that follows it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.job_spec import Spec

PLAN_FILE = "plan.json"
# Of 100,000 classes' names and counts, and some.
MOST_BYTES = 64 * 2**20


def plan_estimates(path: Path) -> Spec | None:
    """The figures of a `plan.json` that the report's stage compares with the outcome.

    A child wrote the file: only numbers and the score's name are taken of it. None where it has none, as a plan of an
    earlier version.
    """
    if path.stat().st_size > MOST_BYTES:
        return None
    try:
        document = json.loads(path.read_text())
        forecast, stages = document["selection"], document["stages"]
        expected: Mapping[str, Any] = forecast["expected"] or {}
        return {
            "seconds": {str(stage["stage"]): _finite(stage["seconds"]) for stage in stages},
            "memory_bytes": {str(stage["stage"]): int(stage["memory_bytes"]) for stage in stages},
            "steps": int(document["steps"]),
            "picked": int(document["picked"]),
            "pool_images": int(document["pool_images"]),
            "score": str(forecast["score"]),
            "prior": None if forecast["prior"] is None else _finite(forecast["prior"]),
            "precision": _finite(expected["precision"]) if expected else None,
            "class_counts": [int(count) for count in forecast["class_counts"]],
        }
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("a plan's figures are finite")
    return number
