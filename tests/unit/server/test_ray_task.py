"""What a task does on its node; real clusters are in tests/service/test_ray.py."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from pu_engine.pipeline import installed_versions
from server.object_store import ObjectStore
from server.processes import start_time
from server.runners import ray_task
from server.runners.parcels import Place
from server.runners.port import StageCommand
from server.runners.ray_task import (
    SCRATCH,
    Board,
    alone,
    command_json,
    command_of,
    remove_dead_scratch,
    run_parcel,
    run_stage,
    stage_task,
)


def command(workdir: Path) -> StageCommand:
    return StageCommand(
        stage="ingest", workdir=workdir, read=(Path("/r"),), profile="model", wall_seconds=20.0, threads=1, run_id="t"
    )


def test_command_survives_its_way(tmp_path: Path) -> None:
    assert command_of(command_json(command(tmp_path))) == command(tmp_path)


def test_two_tasks_are_never_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_task, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr(ray_task, "POLL_SECONDS", 0.01)

    async def work() -> None:
        async with alone(tmp_path):
            second = await run_stage(command(tmp_path), 0.2, lambda tick: None)
        assert "another node" in second["lost"]
        async with alone(tmp_path):  # free again
            pass

    asyncio.run(work())


def test_node_with_other_packages_runs_nothing(tmp_path: Path) -> None:
    terms = {"versions": {**installed_versions(), "numpy": "0.1"}, "term_seconds": 0.2, "weak_sandbox": True}
    outcome = stage_task(1, command_json(command(tmp_path)), None, terms=terms, board=None)
    assert "numpy" in outcome["lost"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("allowed", [False, True])
def test_node_that_does_not_confine_runs_nothing_unless_the_server_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    ran: list[bool] = []

    async def run(*_: object) -> dict[str, str]:
        ran.append(True)
        return {"lost": ""}

    monkeypatch.setattr(ray_task, "open_ways", lambda: ("network",))
    monkeypatch.setattr(ray_task, "run_stage", run)
    terms = {"versions": installed_versions(), "term_seconds": 0.2, "weak_sandbox": allowed}
    outcome = stage_task(1, command_json(command(tmp_path)), None, terms=terms, board=None)
    assert ("network" in outcome["lost"], ran) == (not allowed, [True] if allowed else [])


def test_probe_that_fails_counts_as_no_confinement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert ray_task.open_ways.__wrapped__() == ("anything: its probe failed",)


def test_board_keeps_the_newest_tick_of_each_run() -> None:
    board = Board()
    for done in (1, 2):
        board.tell(7, {"done": done})
    board.tell(8, {"done": 5})
    assert board.take() == {7: {"done": 2}, 8: {"done": 5}}
    assert board.take() == {}


def test_scratch_of_a_killed_task_is_removed_and_of_a_living_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    living = tmp_path / f"{SCRATCH}{os.getpid()}-{start_time(os.getpid())}"
    for folder in (living, tmp_path / f"{SCRATCH}{os.getpid()}-1", tmp_path / f"{SCRATCH}999999999-1"):
        folder.mkdir()
        (folder / "image.png").write_bytes(b"x")
    remove_dead_scratch()
    assert list(tmp_path.iterdir()) == [living]


def test_task_that_finds_its_result_made_removes_what_the_killed_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    place = Place(store=ObjectStore(MemoryStore()), prefix="runs/t/key", result="key")
    place.store.put_new(place.result_list, b"[]")
    (left := tmp_path / f"{SCRATCH}999999999-1").mkdir()
    outcome = run_parcel(command(tmp_path), 0.2, lambda tick: None, place=place, listing="0" * 64)
    assert (outcome["returncode"], outcome["lost"]) == (0, "")
    assert not left.exists()
