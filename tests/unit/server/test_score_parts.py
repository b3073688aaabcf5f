"""A scoring that is cut at its shards: the same result as a single run, and what happens when a part fails."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pu_engine.execution import execute
from pu_engine.jsonform import to_json
from pu_engine.pipeline import SCORING
from pu_engine.progress import SilentProgress
from pu_engine.results import read_manifest
from pu_engine.scores.score_types import ScoringInputs
from pu_engine.types import File, Folder, LabelledImages
from server.runners.port import StageCommand, StageOutcome, StageProgress
from server.runners.score_parts import OnProgress, remove_parts, run_parts

Pack = Callable[[Path, Mapping[str, bytes]], File]
MakeJpeg = Callable[..., bytes]
WELL = StageOutcome(returncode=0, seconds=0.0)


@pytest.fixture
def inputs(
    tmp_path: Path,
    make_pool: Callable[..., Folder],
    make_intake: Callable[..., Folder],
    make_jpeg: MakeJpeg,
    pack: Pack,
) -> dict[str, Any]:
    """Twelve pool images in three shards and six labelled JPEGs."""
    pool = make_pool(tmp_path, {f"{i:02d}.jpg": make_jpeg(i) for i in range(12)})
    members = {f"{'abc'[i % 3]}/{i}.jpg": make_jpeg(100 + i, quality=60) for i in range(6)}
    images = LabelledImages(tar=pack(tmp_path / "labelled.tar", members))
    whole = ScoringInputs(intake=make_intake(tmp_path / "intake"), pool=pool, images=images)
    return {name: value for name, value in to_json(whole).items() if name not in ("only", "settled")}


@dataclass
class InProcess:
    """Runs the stage in this process; it notes which folders it ran in."""

    ran: list[str] = field(default_factory=list)

    async def __call__(self, command: StageCommand, on_progress: OnProgress) -> StageOutcome:
        self.ran.append(command.workdir.name)
        values = json.loads((command.workdir / "inputs.json").read_text())
        await asyncio.to_thread(execute, SCORING, command.workdir, values, SilentProgress())
        return WELL


def command_in(workdir: Path, inputs: Mapping[str, Any]) -> StageCommand:
    workdir.mkdir(exist_ok=True)
    (workdir / "inputs.json").write_text(json.dumps(inputs))
    return StageCommand(
        stage="scoring", workdir=workdir, read=(), profile="model", wall_seconds=60.0, threads=2, run_id="test"
    )


async def ignore(progress: StageProgress) -> None:
    return None


async def whole(command: StageCommand, run_one: InProcess) -> Path:
    """A scoring by its parts, and then the run that takes them over."""
    assert await run_parts(command, run_one, ignore) is None
    await run_one(command, ignore)
    return command.workdir / "out"


def test_parts_together_have_the_digest_of_a_single_run(tmp_path: Path, inputs: dict[str, Any]) -> None:
    (tmp_path / "single").mkdir()
    single = execute(SCORING, tmp_path / "single", inputs, SilentProgress())
    cut = asyncio.run(whole(command_in(tmp_path / "cut", inputs), InProcess()))
    assert read_manifest(cut)["digest"] == read_manifest(single)["digest"]
    assert read_manifest(cut)["result"]["taken_over"] == 12


def test_a_finished_part_is_not_run_again(tmp_path: Path, inputs: dict[str, Any]) -> None:
    first, second = InProcess(), InProcess()
    asyncio.run(run_parts(command_in(tmp_path / "cut", inputs), first, ignore))
    assert sorted(first.ran) == ["settled", "shard-00000", "shard-00001", "shard-00002"]
    shutil.rmtree(tmp_path / "cut" / "parts" / "shard-00001" / "out")
    asyncio.run(run_parts(command_in(tmp_path / "cut", inputs), second, ignore))
    assert second.ran == ["shard-00001"]


def test_a_part_that_was_changed_is_scored_by_the_whole(tmp_path: Path, inputs: dict[str, Any]) -> None:
    command, run_one = command_in(tmp_path / "cut", inputs), InProcess()
    asyncio.run(run_parts(command, run_one, ignore))
    scores = tmp_path / "cut" / "parts" / "shard-00002" / "out" / "shard-00002.logits.npy"
    scores.write_bytes(scores.read_bytes()[:-4] + b"\1\2\3\4")
    asyncio.run(run_one(command, ignore))
    assert read_manifest(tmp_path / "cut" / "out")["result"]["taken_over"] == 10


def test_failure_of_a_part_is_the_stages_and_ends_the_others(tmp_path: Path, inputs: dict[str, Any]) -> None:
    account = {"code": "IMAGE_REJECTED", "message": "m", "remedy": "r", "details": {}}
    ended: list[str] = []
    others = asyncio.Barrier(3)

    async def run_one(command: StageCommand, on_progress: OnProgress) -> StageOutcome:
        if command.workdir.name == "settled":
            return await InProcess()(command, on_progress)
        await others.wait()
        if command.workdir.name == "shard-00001":
            (command.workdir / "error.json").write_text(json.dumps(account))
            return replace(WELL, returncode=1)
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(command.workdir.name)
        return WELL

    failure = asyncio.run(run_parts(command_in(tmp_path / "cut", inputs), run_one, ignore))
    assert failure is not None
    assert failure.returncode == 1
    assert json.loads((tmp_path / "cut" / "error.json").read_text()) == account
    assert sorted(ended) == ["shard-00000", "shard-00002"]


def test_a_part_that_claims_an_end_without_a_result_is_a_violation(tmp_path: Path, inputs: dict[str, Any]) -> None:
    async def run_one(command: StageCommand, on_progress: OnProgress) -> StageOutcome:
        return WELL

    failure = asyncio.run(run_parts(command_in(tmp_path / "cut", inputs), run_one, ignore))
    assert failure is not None
    assert failure.violation == "a part without its result"


def test_progress_adds_the_parts_up(tmp_path: Path, inputs: dict[str, Any]) -> None:
    seen: list[StageProgress] = []

    async def keep(progress: StageProgress) -> None:
        seen.append(progress)

    asyncio.run(run_parts(command_in(tmp_path / "cut", inputs), InProcess(), keep))
    done = [p.done for p in seen]
    assert (done[0] in (2, 5), done[-1], done == sorted(done)) == (True, 12, True)
    assert {p.total for p in seen} == {12}


def test_parts_of_a_finished_scoring_are_removed(tmp_path: Path, inputs: dict[str, Any]) -> None:
    asyncio.run(run_parts(command_in(tmp_path / "cut", inputs), InProcess(), ignore))
    remove_parts(tmp_path / "cut")
    assert not (tmp_path / "cut" / "parts").exists()


def test_pool_of_one_shard_is_not_cut(
    tmp_path: Path, inputs: dict[str, Any], make_pool: Callable[..., Folder], make_jpeg: MakeJpeg
) -> None:
    (tmp_path / "small").mkdir()
    pool = make_pool(tmp_path / "small", {"a.jpg": make_jpeg(1)})
    run_one = InProcess()
    command = command_in(tmp_path / "cut", {**inputs, "pool": {"path": pool.path, "sha256": pool.sha256}})
    assert asyncio.run(run_parts(command, run_one, ignore)) is None
    assert run_one.ran == []
