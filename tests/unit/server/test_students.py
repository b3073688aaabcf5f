"""The catalogue of students, asked of the real engine in a child."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from punnet.errors import PunnetError
from server.students import StudentCatalogue


def running() -> set[str]:
    """The children of this process that ask the engine: before they are confined, or after."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"pu_engine.student.catalogue" in (entry / "cmdline").read_bytes():
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


@pytest.mark.slow  # the engine imports timm and exports a network
def test_a_student_is_timed_once_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = StudentCatalogue(tmp_path)

    async def row() -> dict[str, Any]:
        return (await catalogue.list("cifar_resnet8"))[0]

    async def scenario() -> None:
        before = await row()
        timed = await catalogue.time("cifar_resnet8", 0)
        assert timed["latency_ms"] > 0
        assert {**timed, "latency_ms": before["latency_ms"]} == before
        assert before["latency_ms"] == 0
        assert await row() == timed
        kept = sorted(tmp_path.rglob("*.json"))
        assert await catalogue.time("cifar_resnet8", 32) == timed
        assert sorted(tmp_path.rglob("*.json")) == kept
        with pytest.raises(PunnetError) as unknown:
            await catalogue.time("cifar_resnet9", 0)
        assert unknown.value.code == "STUDENT_UNKNOWN"
        with pytest.raises(PunnetError) as unsupported:
            await catalogue.time("cifar_resnet8", 4)
        assert unsupported.value.code == "STUDENT_UNSUPPORTED"
        monkeypatch.setattr("server.students.machine", lambda: "another, 2 cores")
        assert (await row())["latency_ms"] == 0

    asyncio.run(scenario())
