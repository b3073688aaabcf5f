"""Options that no training can follow are refused before anything heavy is loaded."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from pu_engine.errors import EngineError
from pu_engine.training.distill_types import (
    DEFAULT_RADIUS,
    DRAWS,
    EFFORT_STEPS,
    PRECISIONS,
    TARGETS,
    DistillationOptions,
)


def check_options(options: DistillationOptions) -> None:
    """Raises EngineError REQUEST_INVALID, which names the option, its bound and the value."""
    loss = options.loss
    parts = {f.name: getattr(loss, f.name) for f in fields(loss) if f.name != "temperature"}
    checks: tuple[tuple[str, Any, bool, str], ...] = (
        ("effort", options.effort, options.effort in EFFORT_STEPS, _one_of(EFFORT_STEPS)),
        ("steps", options.steps, options.steps is None or options.steps >= 1, "at least 1"),
        ("minutes", options.minutes, options.minutes is None or _positive(options.minutes), "above 0"),
        (
            "batch_size",
            options.batch_size,
            options.batch_size >= 2,
            "at least 2",
        ),  # BatchNorm: no variance of one image
        ("learning_rate", options.learning_rate, _positive(options.learning_rate), "above 0"),
        ("loss.temperature", loss.temperature, _positive(loss.temperature), "above 0"),
        *((f"loss.{name}", value, value >= 0 and math.isfinite(value), "at least 0") for name, value in parts.items()),
        ("loss", parts, any(parts.values()), "of at least one part"),
        ("labelled_share", options.labelled_share, 0 <= options.labelled_share <= 1, "from 0 to 1"),
        ("draws", options.draws, options.draws in DRAWS, _one_of(DRAWS)),
        ("targets", options.targets, options.targets in TARGETS, _one_of(TARGETS)),
        ("views", options.views, 1 <= options.views <= 64, "from 1 to 64"),
        ("mixup", options.mixup, options.mixup >= 0, "at least 0"),
        ("cutmix", options.cutmix, options.cutmix >= 0, "at least 0"),
        ("weight_decay", options.weight_decay, options.weight_decay >= 0, "at least 0"),
        ("warmup_share", options.warmup_share, 0 <= options.warmup_share <= 1, "from 0 to 1"),
        ("clip_norm", options.clip_norm, options.clip_norm >= 0, "at least 0"),
        ("average_decay", options.average_decay, 0 <= options.average_decay < 1, "from 0 to 1, 1 excluded"),
        ("precision", options.precision, options.precision in PRECISIONS, _one_of(PRECISIONS)),
        ("class_weights", options.class_weights, options.class_weights in DEFAULT_RADIUS, _one_of(DEFAULT_RADIUS)),
        ("radius", options.radius, options.radius is None or options.radius >= 0, "at least 0"),
    )
    for name, value, holds, bound in checks:
        if not holds:
            raise EngineError(
                "REQUEST_INVALID",
                f"distillation.{name} must be {bound}, got {value}.",
                f"Set distillation.{name} within its bounds.",
                name=name,
                value=value,
            )


def _one_of(names: Any) -> str:
    return f"one of {', '.join(names)}"


def _positive(value: float) -> bool:
    return value > 0 and math.isfinite(value)
