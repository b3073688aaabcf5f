"""A process that holds a runner as the server does, and scores one pool; `benchmarks.cluster` starts and kills it.

`python -m benchmarks.cluster_front RUNNER WORKDIR`, where WORKDIR holds the stage's inputs. Prints the outcome as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from pu_engine.pipeline import SCORING
from server.folders import DataFolder
from server.job_spec import readable_paths
from server.runners.choice import RunnerChoice, opened_runner
from server.runners.port import StageCommand, StageProgress

THREADS = 1
HOURS = 24


async def score(runner_name: str, workdir: Path) -> None:
    """Run the stage to its end."""
    os.umask(0o077)
    inputs = json.loads((workdir / "inputs.json").read_text())
    data = DataFolder(workdir.parent)
    command = StageCommand(
        stage=SCORING.name,
        workdir=workdir,
        read=tuple(readable_paths(inputs, workdir)),
        profile=SCORING.profile,
        wall_seconds=HOURS * 3600.0,
        threads=THREADS,
        run_id=data.id,
    )
    choice = RunnerChoice(name=runner_name, threads=THREADS, gpus=0.0)
    async with opened_runner(choice, data.root, data.id) as runner:
        started = time.monotonic()
        outcome = await runner.run(command, stop=asyncio.Event(), on_start=_started, on_progress=_shown)
        print(json.dumps({**asdict(outcome), "wall_seconds": time.monotonic() - started}))


async def _started(pid: int, ticks: int) -> None:
    return None


async def _shown(progress: StageProgress) -> None:
    return None


if __name__ == "__main__":
    asyncio.run(score(sys.argv[1], Path(sys.argv[2])))
