"""The server's end of the Ray driver, with programs in the driver's place that say and do what a driver may."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pu_engine.pipeline import SCORING
from punnet.errors import InvalidRequest, ServerUnavailable
from server.runners import choice, ray_link
from server.runners.choice import RunnerChoice, check_choice
from server.runners.port import StageCommand, StageOutcome, StageProgress
from server.runners.ray_link import DriverLink, DriverLost
from server.runners.ray_runner import RayRunner
from server.stage_execution import StageFailed, judge

# Answers each request as its stage's name says; "slow" waits to be stopped.
DRIVER = """
import json, os, sys
say = lambda answer: print(json.dumps(answer), flush=True)
say({"ready": {"cpus": 2.0, "gpus": 0.0, "nodes": 1.0}})
outcome = {"returncode": 0, "seconds": 1.0, "warnings": ["careful"], "node": "n"}
for line in sys.stdin:
    request = json.loads(line)
    if "stop" in request:
        say({"run": request["stop"], "outcome": {**outcome, "stopped": True}})
    elif request["command"]["stage"] == "dies":
        os._exit(1)
    elif request["command"]["stage"] == "cancelled":
        say({"run": request["run"], "outcome": {**outcome, "stopped": True}})
    elif request["command"]["stage"] != "slow":
        say({"run": request["run"], "tick": {"done": 1, "total": 2, "unit": "images"}})
        say({"run": request["run"], "outcome": outcome})
"""


def link_to(program: str, folder: Path) -> DriverLink:
    return DriverLink([sys.executable, "-c", program], folder / "ray.log", dict(os.environ))


def command(stage: str) -> StageCommand:
    return StageCommand(
        stage=stage, workdir=Path("/w"), read=(), profile="model", wall_seconds=1.0, threads=1, run_id="t"
    )


async def ignore(tick: Mapping[str, Any]) -> None:
    return None


async def started(pid: int, ticks: int) -> None:
    assert pid > 0


def test_ticks_warnings_and_outcome_come_through(tmp_path: Path) -> None:
    seen: list[StageProgress] = []

    async def keep(progress: StageProgress) -> None:
        seen.append(progress)

    async def work() -> None:
        link = link_to(DRIVER, tmp_path)
        await link.start()
        runner = RayRunner(link, gpus=0)
        outcome = await runner.run(command("intake"), stop=asyncio.Event(), on_start=started, on_progress=keep)
        await link.close()
        assert (outcome.returncode, outcome.stopped, outcome.lost) == (0, False, "")

    asyncio.run(work())
    assert seen == [StageProgress(done=1, total=2, unit="images"), StageProgress(warning="careful")]


def test_stopped_stage_ends_when_the_driver_says_so(tmp_path: Path) -> None:
    async def keep(progress: StageProgress) -> None:
        return None

    async def work() -> None:
        link, stop = link_to(DRIVER, tmp_path), asyncio.Event()
        await link.start()
        runner = RayRunner(link, gpus=0)
        running = asyncio.create_task(runner.run(command("slow"), stop=stop, on_start=started, on_progress=keep))
        await asyncio.sleep(0.05)
        stop.set()
        assert (await running).stopped
        await link.close()

    asyncio.run(work())


def test_task_that_somebody_else_cancelled_is_lost_and_not_stopped(tmp_path: Path) -> None:
    async def keep(progress: StageProgress) -> None:
        return None

    async def work() -> StageOutcome:
        link = link_to(DRIVER, tmp_path)
        await link.start()
        outcome = await RayRunner(link, gpus=0).run(
            command("cancelled"), stop=asyncio.Event(), on_start=started, on_progress=keep
        )
        await link.close()
        return outcome

    outcome = asyncio.run(work())
    assert (outcome.stopped, outcome.lost) == (False, "somebody cancelled its task on the cluster")


def test_driver_that_dies_loses_its_work_and_is_started_again(tmp_path: Path) -> None:
    async def work() -> None:
        link = link_to(DRIVER, tmp_path)
        await link.start()
        first = link.pid
        with pytest.raises(DriverLost):
            await link.call({"command": {"stage": "dies"}}, ignore)
        assert link.pid is None
        await link.start()
        assert link.pid not in (None, first)
        assert (await link.call({"command": {"stage": "intake"}}, ignore))["node"] == "n"
        await link.close()

    asyncio.run(work())


def test_stage_whose_drivers_keep_dying_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.runners.ray_runner.DRIVER_PAUSE_SECONDS", 0.0)

    async def keep(progress: StageProgress) -> None:
        return None

    async def work() -> str:
        link = link_to(DRIVER, tmp_path)
        await link.start()
        outcome = await RayRunner(link, gpus=0).run(
            command("dies"), stop=asyncio.Event(), on_start=started, on_progress=keep
        )
        await link.close()
        return outcome.lost

    assert asyncio.run(work()) == "after 3 tries: the Ray driver ended"


def test_lost_stage_fails_its_job_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="scoring has no result: its node burns") as caught:
        judge(SCORING, tmp_path, StageOutcome(returncode=0, seconds=0.0, lost="its node burns"))
    assert caught.value.error["code"] == "STAGE_LOST"


def test_driver_without_a_cluster_says_why(tmp_path: Path) -> None:
    link = link_to("import sys; sys.exit('no such host')", tmp_path)
    with pytest.raises(ServerUnavailable, match="no such host") as caught:
        asyncio.run(link.start())
    assert caught.value.code == "SERVER_START_FAILED"


def test_missing_ray_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServerUnavailable, match=r"punnet\[ray\]"):
        ray_link.driver_arguments("local", 1, "test")


def test_store_needs_a_runner_on_ray() -> None:
    with pytest.raises(InvalidRequest, match="--store"):
        check_choice(RunnerChoice(name="local", threads=1, gpus=0.0, store="s3://bucket/punnet"))


@pytest.mark.parametrize("name", ["", "rays", "ray://", "http://head"])
def test_unknown_runner_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="--runner"):
        check_choice(RunnerChoice(name=name, threads=1, gpus=0.0))


def test_stage_that_no_node_can_hold_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "driver_arguments", lambda address, cpus, run_id: [sys.executable, "-c", DRIVER])

    async def work() -> None:
        wanted = RunnerChoice(name="ray://head:10001", threads=4, gpus=0.0)
        async with choice.opened_runner(wanted, tmp_path, "test"):
            raise AssertionError("it was opened")

    with pytest.raises(ServerUnavailable, match="4 cpus; the largest node of the Ray cluster has 2"):
        asyncio.run(work())
