"""Scoring cut at the pool's shards: each part is a run of the stage of its own, and a last one takes them all over.

The parts lie in the stage's folder, `parts/<shard>`. A finished one is not run again, whoever was lost meanwhile; the
last run copies what matches its digest and scores what is missing, so that the result is that of a single run.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from server.folders import remove_tree, write_json
from server.manifest import MANIFEST
from server.runners.port import StageCommand, StageOutcome, StageProgress

PARTS = "parts"
SETTLED = "settled"
LEAST_SHARDS = 2
THREADS = 1  # of a part: its scores do not depend on it, and shards keep the other cores busy
QUEUED_PARTS = 256  # handed to the cluster at once
ERROR_FILE = "error.json"

OnProgress = Callable[[StageProgress], Awaitable[None]]
RunOne = Callable[[StageCommand, OnProgress], Awaitable[StageOutcome]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A shard of the pool, as `pool.json` has it."""

    name: str
    images: int


def shards_of(inputs: Mapping[str, Any]) -> list[Shard]:
    """The shards of the pool that a scoring reads."""
    rows = json.loads((Path(inputs["pool"]["path"]) / "pool.json").read_text())["shards"]
    return [Shard(name=row["name"], images=row["entries"]) for row in rows]


async def run_parts(command: StageCommand, run_one: RunOne, on_progress: OnProgress) -> StageOutcome | None:
    """Score every shard, and leave the stage's inputs such that the whole takes the parts over.

    Returns:
        None where all parts are finished, or the pool is too small to be cut; else the outcome of the part that
        failed, with its account in the stage's folder.
    """
    path = command.workdir / "inputs.json"
    inputs = await asyncio.to_thread(lambda: json.loads(path.read_text()))
    shards = await asyncio.to_thread(shards_of, inputs)
    if len(shards) < LEAST_SHARDS:
        return None
    settled = command.workdir / PARTS / SETTLED
    failure = await _part(command, settled, {**inputs, "only": []}, run_one, _ignore)
    if failure is not None:
        return failure
    shared = {**inputs, "settled": str(settled / "out")}
    failure = await _all_shards(command, shards, shared, run_one, on_progress)
    if failure is not None:
        return failure
    parts = [str(command.workdir / PARTS / shard.name / "out") for shard in shards]
    whole = {**shared, "kept": [*parts, *inputs.get("kept", [])]}
    await asyncio.to_thread(write_json, path, whole)
    return None


def remove_parts(workdir: Path) -> None:
    """Remove the parts of a finished scoring: it holds copies."""
    remove_tree(workdir / PARTS)


async def _all_shards(
    command: StageCommand,
    shards: Sequence[Shard],
    inputs: Mapping[str, Any],
    run_one: RunOne,
    on_progress: OnProgress,
) -> StageOutcome | None:
    """Every shard's part, side by side; the first failure ends the others."""
    queue = asyncio.Semaphore(QUEUED_PARTS)
    done: dict[str, int] = {}
    rates: dict[str, float] = {}
    total = sum(shard.images for shard in shards)

    async def score(shard: Shard) -> StageOutcome | None:
        async def on_part(progress: StageProgress) -> None:
            if progress.warning:
                await on_progress(progress)
                return
            done[shard.name], rates[shard.name] = progress.done, progress.rate
            together = StageProgress(done=sum(done.values()), total=total, unit="images", rate=sum(rates.values()))
            await on_progress(together)

        async with queue:
            workdir = command.workdir / PARTS / shard.name
            failure = await _part(command, workdir, {**inputs, "only": [shard.name]}, run_one, on_part)
        await on_part(StageProgress(done=shard.images, total=shard.images, unit="images"))
        return failure

    running = [asyncio.create_task(score(shard), name=f"part {shard.name}") for shard in shards]
    try:
        for ended in asyncio.as_completed(running):
            failure = await ended
            if failure is not None:
                return failure
        return None
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _part(
    command: StageCommand, workdir: Path, inputs: Mapping[str, Any], run_one: RunOne, on_progress: OnProgress
) -> StageOutcome | None:
    """Run one part unless it is finished; the outcome where it failed."""
    if (workdir / "out" / MANIFEST).is_file():
        return None
    await asyncio.to_thread(_prepare, workdir, {**inputs, "threads": THREADS})
    # It may write its own folder only: the settled part is read from beside it.
    read = (*command.read, command.workdir / PARTS / SETTLED)
    part = replace(command, workdir=workdir, read=read, threads=THREADS)
    outcome = await run_one(part, on_progress)
    await asyncio.to_thread(remove_tree, workdir / "tmp")
    if _finished(outcome) and (workdir / "out" / MANIFEST).is_file():
        return None
    await asyncio.to_thread(_hand_up, workdir / ERROR_FILE, command.workdir / ERROR_FILE)
    return outcome if not _finished(outcome) else replace(outcome, violation="a part without its result")


def _finished(outcome: StageOutcome) -> bool:
    bad = outcome.returncode or outcome.timed_out or outcome.stopped or outcome.violation or outcome.lost
    return not bad


def _prepare(workdir: Path, inputs: Mapping[str, Any]) -> None:
    workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("inputs.json", ERROR_FILE, "stderr.log", "tmp"):
        remove_tree(workdir / name)
    write_json(workdir / "inputs.json", inputs)


def _hand_up(source: Path, target: Path) -> None:
    """Move a part's account of its failure to where the stage's is looked for."""
    if source.exists():
        source.rename(target)


async def _ignore(progress: StageProgress) -> None:
    return None
