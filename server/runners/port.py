"""The port between the job engine and whoever runs a stage."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCommand:
    """What is to run, and within which bounds."""

    stage: str
    workdir: Path  # holds inputs.json
    read: tuple[Path, ...]
    profile: str
    wall_seconds: float
    threads: int
    run_id: str
    uses_gpu: bool = False  # where the runner has one to give


@dataclass(frozen=True, slots=True, kw_only=True)
class StageProgress:
    """One progress line of a stage; either figures or a warning."""

    done: int = 0
    total: int = 0
    unit: str = ""
    rate: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    warning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutcome:
    """How a stage's process ended; its process group is gone."""

    returncode: int  # -N: signal N
    seconds: float
    timed_out: bool = False
    stopped: bool = False
    violation: str = ""  # what it sent that no stage sends
    lost: str = ""  # why the runner has no result of it, where that is not the stage's doing
    stderr_tail: str = ""


class Runner(Protocol):
    """Runs one stage to its end."""

    term_seconds: float  # that a stage has to obey once it is told to end

    async def run(
        self,
        command: StageCommand,
        *,
        stop: asyncio.Event,
        on_start: Callable[[int, int], Awaitable[None]],
        on_progress: Callable[[StageProgress], Awaitable[None]],
    ) -> StageOutcome:
        """Start the stage, and return when it and its children are gone.

        Args:
            stop: when set, the stage is ended.
            on_start: gets the process's id and its start time.
            on_progress: gets every line that the stage sends.
        """
