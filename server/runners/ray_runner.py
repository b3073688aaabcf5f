"""Runs stages as tasks of a Ray cluster, which places them, notices lost nodes and tries their tasks again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from pu_engine.pipeline import SCORING
from punnet.errors import ServerUnavailable
from server.object_store import ObjectStore
from server.processes import start_time
from server.runners.local import TERM_SECONDS
from server.runners.parcels import Digests, Place, pack, unpack
from server.runners.port import StageCommand, StageOutcome, StageProgress
from server.runners.ray_link import DriverLink, DriverLost
from server.runners.ray_task import command_json
from server.runners.score_parts import OnProgress, remove_parts, run_parts

log = logging.getLogger(__name__)

DRIVERS = 3  # started for one stage; the cluster may come back in between
DRIVER_PAUSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedStore:
    """A store with the URL by which the nodes open it."""

    url: str
    store: ObjectStore


class RayRunner:
    """One task a stage, and one a shard where a pool is scored; each starts the confined child of `LocalRunner`."""

    def __init__(
        self,
        link: DriverLink,
        *,
        gpus: float,
        weak_sandbox: bool = False,
        store: NamedStore | None = None,
        term_seconds: float = TERM_SECONDS,
    ) -> None:
        self._link = link
        self._weak_sandbox = weak_sandbox  # whether nodes may run stages that they can't confine whole
        self._store = store  # None: the nodes see the data folder
        self._digests = Digests()
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
            outcome = await running
            if outcome.stopped and not stop.is_set():
                outcome = replace(outcome, stopped=False, lost="somebody cancelled its task on the cluster")
            return outcome
        finally:
            stopping.cancel()
            running.cancel()
            await asyncio.wait({running})

    async def _run(self, command: StageCommand, on_progress: OnProgress) -> StageOutcome:
        prefix = f"runs/{command.run_id}/{command.workdir.name}"
        run_one = partial(self._task, prefix)
        try:
            if command.stage != SCORING.name:
                return await run_one(command, on_progress)
            failure = await run_parts(command, run_one, on_progress)
            if failure is not None:
                return failure
            outcome = await run_one(command, on_progress)
            if outcome.returncode == 0:
                await asyncio.to_thread(remove_parts, command.workdir)
            return outcome
        finally:
            if self._store is not None:
                await asyncio.to_thread(self._store.store.remove_below, prefix)

    async def _task(self, prefix: str, command: StageCommand, on_progress: OnProgress) -> StageOutcome:
        """One task to its end, with its inputs sent and its result fetched where there is a store."""
        if self._store is None:
            return outcome_of(await self._ended(command, None, on_progress))
        place = Place(store=self._store.store, prefix=prefix, result=command.workdir.name)
        listing = await asyncio.to_thread(pack, command, place, self._digests)
        parcel = {"store": self._store.url, "prefix": prefix, "result": place.result, "listing": listing}
        answer = await self._ended(command, parcel, on_progress)
        if "error" in answer:
            await asyncio.to_thread((command.workdir / "error.json").write_text, answer["error"])
        outcome = outcome_of(answer)
        if outcome.returncode == 0 and not outcome.lost:
            await asyncio.to_thread(unpack, command.workdir, place)
        return outcome

    async def _ended(
        self, command: StageCommand, parcel: Mapping[str, str] | None, on_progress: OnProgress
    ) -> Mapping[str, Any]:
        """The driver's answer; a driver that is lost is replaced, and the task goes on with what is finished."""

        async def on_tick(tick: Mapping[str, Any]) -> None:
            await on_progress(StageProgress(**tick))

        request = {
            "command": command_json(command),
            "cpus": command.threads,
            "gpus": self._gpus if command.uses_gpu else 0,
            "parcel": parcel,
            "terms": {"term_seconds": self.term_seconds, "weak_sandbox": self._weak_sandbox},
        }
        why = ""
        for attempt in range(DRIVERS):
            if attempt:
                log.warning("the stage is sent again", extra={"stage": command.stage, "why": why})
                await asyncio.sleep(DRIVER_PAUSE_SECONDS)
            try:
                await self._link.start()
                answer = await self._link.call(request, on_tick)
            except (DriverLost, ServerUnavailable) as error:
                why = str(error)
                continue
            for text in answer.get("warnings", ()):
                await on_progress(StageProgress(warning=text))
            log.info("task ended", extra={"part": command.workdir.name, "node": answer.get("node", "")})
            return answer
        return {"returncode": 0, "seconds": 0.0, "lost": f"after {DRIVERS} tries: {why}"}


def outcome_of(answer: Mapping[str, Any]) -> StageOutcome:
    """The outcome in the driver's answer."""
    names = {field.name for field in fields(StageOutcome)}
    return StageOutcome(**{name: value for name, value in answer.items() if name in names})
