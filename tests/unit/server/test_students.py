"""The catalogue of students, asked of the real engine in a child."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from punnet.errors import PunnetError
from server.students import StudentCatalogue


def running() -> set[str]:
    """The children of this process that ask the engine: before they are confined, or after."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"pu_engine.students" in (entry / "cmdline").read_bytes():
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                found |= {entry.name} if int(parent) == os.getpid() else set()
        except OSError:  # it ended meanwhile
            continue
    return found


async def started() -> set[str]:
    """The children, once there is one."""
    while not (children := await asyncio.to_thread(running)):
        await asyncio.sleep(0.01)
    return children


def test_cancelled_question_leaves_no_child(tmp_path: Path) -> None:
    async def ask_and_go_away() -> None:
        asking = asyncio.create_task(StudentCatalogue(tmp_path).list(""))
        await started()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(ask_and_go_away())
    assert running() == set()


def test_question_of_a_caller_who_went_away_goes_on_for_the_next(tmp_path: Path) -> None:
    async def scenario() -> None:
        catalogue = StudentCatalogue(tmp_path)
        first = asyncio.create_task(catalogue.list(""))
        children = await started()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(catalogue.list(""))
        await asyncio.sleep(0.1)
        assert await asyncio.to_thread(running) == children
        second.cancel()

    asyncio.run(scenario())
    assert running() == set()


@pytest.mark.slow  # the engine imports timm, twice
def test_one_answer_serves_every_search_and_unknown_names_keep_nothing(tmp_path: Path) -> None:
    catalogue = StudentCatalogue(tmp_path)

    async def ask() -> None:
        rows = await catalogue.list("cifar_resnet20")
        assert [row["name"] for row in rows] == ["cifar_resnet20"]
        assert rows[0]["parameters"] > 200_000
        assert {"resnet18", "resnet50"} <= {row["name"] for row in await catalogue.list("ResNet")}
        assert await catalogue.list("no such student") == []
        with pytest.raises(PunnetError) as unknown:
            await catalogue.check("resnet19")
        assert unknown.value.code == "STUDENT_UNKNOWN"
        await catalogue.check("auto")

    asyncio.run(ask())
    assert len(list(tmp_path.rglob("*.json"))) == 1
