"""Intake of one model as the server runs it: through its runner, confined, and judged by what the process left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from pu_engine.jsonform import to_json
from pu_engine.pipeline import INTAKE
from pu_engine.results import file_sha256
from pu_engine.types import File, IntakeInputs, LabelledImages
from server.manifest import Manifest
from server.runners import local
from server.runners.port import StageCommand, StageOutcome, StageProgress
from server.stage_execution import StageFailed, judge
from tests.hostile.seed_models import labelled_tar

ADDRESS_SPACE_KIB = 1_500_000  # below the profile's, so that a bomb fills less of the machine
WALL_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """How the stage ended, as a job would show it; `code` is empty where it went well."""

    outcome: StageOutcome
    code: str
    message: str = ""
    manifest: Manifest | None = None


def take_in(folder: Path, data: bytes, *, wall_seconds: float = WALL_SECONDS) -> Judged:
    """Run the stage `intake` on a model and the tinted images."""
    given = folder / "given"
    given.mkdir(parents=True, exist_ok=True)
    (given / "teacher.onnx").write_bytes(data)
    (given / "images.tar").write_bytes(labelled_tar())
    paths = (given / "teacher.onnx", given / "images.tar")
    teacher, images = (File(path=str(path), sha256=file_sha256(path)) for path in paths)
    workdir = folder / "work"
    workdir.mkdir(exist_ok=True)
    (workdir / "error.json").unlink(missing_ok=True)
    inputs = IntakeInputs(teacher=teacher, images=LabelledImages(tar=images))
    (workdir / "inputs.json").write_text(json.dumps(to_json(inputs)))
    return run_stage(workdir, read=(given,), wall_seconds=wall_seconds)


def run_stage(
    workdir: Path, *, read: Sequence[Path] = (), program: str | None = None, wall_seconds: float = WALL_SECONDS
) -> Judged:
    """Run the stage `intake`, or a program in its place, and judge what it left in its folder."""
    confined = local.arguments

    def arguments(command: StageCommand, progress: int) -> list[str]:
        whole = confined(command, progress)
        if program is not None:
            whole = [*whole[: whole.index("pu_engine.stage") - 1], "-c", program, str(progress)]
        return ["/bin/sh", "-c", f'ulimit -v {ADDRESS_SPACE_KIB}; exec "$@"', "sh", *whole]

    async def on_start(pid: int, started: int) -> None:
        assert started > 0, pid

    async def on_progress(progress: StageProgress) -> None:
        assert progress.total >= 0

    command = StageCommand(
        stage="intake",
        workdir=workdir,
        read=tuple(read),
        profile=INTAKE.profile,
        wall_seconds=wall_seconds,
        threads=1,
        run_id="hostile",
    )
    running = local.LocalRunner(term_seconds=0.2).run(
        command, stop=asyncio.Event(), on_start=on_start, on_progress=on_progress
    )
    with patch.object(local, "arguments", arguments):
        outcome = asyncio.run(running)
    try:
        return Judged(outcome=outcome, code="", manifest=judge(INTAKE, workdir, outcome))
    except StageFailed as failure:
        return Judged(outcome=outcome, code=str(failure.error["code"]), message=str(failure.error["message"]))
