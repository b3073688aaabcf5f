"""Runs stages as tasks of a Ray cluster, which places them, notices lost nodes and tries their tasks again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pu_engine.pipeline import SCORING
from punnet.errors import ServerUnavailable
from server.processes import start_time
from server.runners.local import TERM_SECONDS
from server.runners.port import StageCommand, StageOutcome, StageProgress
from server.runners.ray_link import DriverLink, DriverLost
from server.runners.ray_task import command_json
from server.runners.score_parts import OnProgress, remove_parts, run_parts

log = logging.getLogger(__name__)

DRIVERS = 3  # started for one stage; the cluster may come back in between
DRIVER_PAUSE_SECONDS = 5.0


class RayRunner:
    """One task a stage, and one a shard where a pool is scored; each starts the confined child of `LocalRunner`."""

    def __init__(self, link: DriverLink, *, gpus: float, term_seconds: float = TERM_SECONDS) -> None:
        self._link = link
        self._gpus = gpus  # of each stage that uses one
        self.term_seconds = term_seconds

    async def run(
        self,
        command: StageCommand,
        *,
        stop: asyncio.Event,
        on_start: Callable[[int, int], Awaitable[None]],
        on_progress: Callable[[StageProgress], Awaitable[None]],
    ) -> StageOutcome:
        """See `Runner.run`; the process that `on_start` gets is the driver's."""
        pid = self._link.pid
        if pid is not None:
            await on_start(pid, start_time(pid) or 0)
        running = asyncio.create_task(self._run(command, on_progress))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                running.cancel()
                await asyncio.wait({running})
                if running.cancelled():
                    return StageOutcome(returncode=0, seconds=0.0, stopped=True)
            return await running
        finally:
            stopping.cancel()
            running.cancel()
            await asyncio.wait({running})

    async def _run(self, command: StageCommand, on_progress: OnProgress) -> StageOutcome:
        if command.stage != SCORING.name:
            return await self._task(command, on_progress)
        failure = await run_parts(command, self._task, on_progress)
        if failure is not None:
            return failure
        outcome = await self._task(command, on_progress)
        if outcome.returncode == 0:
            await asyncio.to_thread(remove_parts, command.workdir)
        return outcome

    async def _task(self, command: StageCommand, on_progress: OnProgress) -> StageOutcome:
        """One task to its end; a driver that is lost is replaced, and the task goes on with what is finished."""

        async def on_tick(tick: Mapping[str, Any]) -> None:
            await on_progress(StageProgress(**tick))

        request = {
            "command": command_json(command),
            "cpus": command.threads,
            "gpus": self._gpus if command.uses_gpu else 0,
            "term_seconds": self.term_seconds,
        }
        why = ""
        for attempt in range(DRIVERS):
            if attempt:
                log.warning("the stage is sent again", extra={"stage": command.stage, "why": why})
                await asyncio.sleep(DRIVER_PAUSE_SECONDS)
            try:
                await self._link.start()
                answer = dict(await self._link.call(request, on_tick))
            except (DriverLost, ServerUnavailable) as error:
                why = str(error)
                continue
            for text in answer.pop("warnings", ()):
                await on_progress(StageProgress(warning=text))
            log.info("task ended", extra={"stage": command.stage, "node": answer.pop("node", "")})
            return StageOutcome(**answer)
        return StageOutcome(returncode=0, seconds=0.0, lost=f"after {DRIVERS} tries: {why}")
