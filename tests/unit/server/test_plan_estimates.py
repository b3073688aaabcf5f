"""What is taken over of a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.plan_estimates import plan_estimates

PLAN: dict[str, Any] = {
    "steps": 1500, "picked": 8000, "pool_images": 40_000,
    "stages": [{"stage": "scoring", "seconds": 40, "memory_bytes": 1000, "how": "timed"}],
    "selection": {
        "score": "pu", "prior": 0.2, "expected": {"precision": 0.9}, "class_counts": [5000, 3000],
        "why": {"sha256": "a" * 64},
    },
}  # fmt: skip


def written(folder: Path, document: object) -> Path:
    (folder / "plan.json").write_text(json.dumps(document))
    return folder / "plan.json"


def test_only_figures_and_the_score_are_taken(tmp_path: Path) -> None:
    assert plan_estimates(written(tmp_path, PLAN)) == {
        "seconds": {"scoring": 40.0}, "memory_bytes": {"scoring": 1000}, "steps": 1500, "picked": 8000,
        "pool_images": 40_000, "score": "pu", "prior": 0.2, "precision": 0.9, "class_counts": [5000, 3000],
    }  # fmt: skip


@pytest.mark.parametrize(
    "document",
    [{}, [], {**PLAN, "selection": None}, {**PLAN, "steps": "many"}, {**PLAN, "steps": float("inf")},
     {**PLAN, "selection": {**PLAN["selection"], "prior": float("nan")}}],
)  # fmt: skip
def test_a_plan_of_another_version_gives_nothing_to_compare(tmp_path: Path, document: object) -> None:
    assert plan_estimates(written(tmp_path, document)) is None
