"""What the runner believes of a stage's process; real confined children are in tests/service/test_confine.py."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from server.runners import local
from server.runners.port import StageCommand, StageOutcome, StageProgress

# Forks twice, leaves the session, and says where it is: no group that the runner knows has it.
STRAY = """
import os, sys, time
from pathlib import Path
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        Path("stray").write_text(str(os.getpid()))
        os.rename("stray", "stray.pid")
        time.sleep(60)
    os._exit(0)
while not Path("stray.pid").exists():
    time.sleep(0.01)
"""


def run(workdir: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> tuple[StageOutcome, list[StageProgress]]:
    """Run a program in the place of a stage; it gets the progress pipe's number as its argument."""
    confined = local.arguments
    seen: list[StageProgress] = []

    def arguments(command: StageCommand, progress: int) -> list[str]:
        whole = confined(command, progress)
        return [*whole[: whole.index("pu_engine.stage") - 1], "-c", program, str(progress)]

    async def on_start(pid: int, started: int) -> None:
        assert started > 0

    async def on_progress(progress: StageProgress) -> None:
        seen.append(progress)

    command = StageCommand(
        stage="ingest", workdir=workdir, read=(), profile="model", wall_seconds=20.0, threads=1, run_id="test"
    )
    runner = local.LocalRunner(term_seconds=0.2)
    outcome = runner.run(command, stop=asyncio.Event(), on_start=on_start, on_progress=on_progress)
    with monkeypatch.context() as patch:
        patch.setattr(local, "arguments", arguments)
        return asyncio.run(asyncio.wait_for(outcome, 20)), seen


def say(line: object) -> str:
    """A program that sends one progress line."""
    return f"import os, sys; os.write(int(sys.argv[1]), {json.dumps(line).encode()!r} + bytes([10]))"


def test_process_that_left_the_group_is_gone_before_the_result_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome, _ = run(tmp_path, STRAY, monkeypatch)
    assert (outcome.returncode, outcome.violation) == (0, "")
    stray = Path("/proc") / (tmp_path / "stray.pid").read_text()
    assert not stray.exists() or "Z" in (stray / "stat").read_text().rpartition(")")[2].split()[0]


def test_warning_that_no_message_can_hold_is_made_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, seen = run(tmp_path, say({"warning": "a\ud800\0b"}), monkeypatch)
    assert outcome.violation == ""
    assert [progress.warning for progress in seen] == ["a??b"]


@pytest.mark.parametrize(
    "lie",
    [
        {"done": 1, "total": 2, "unit": "\ud800", "rate": 1, "metrics": {}},
        {"done": 1, "total": 2, "unit": "x", "rate": 1, "metrics": {"\ud800": 1}},
        {"done": float("inf"), "total": 2, "unit": "x", "rate": 1, "metrics": {}},
        {"done": -1, "total": 2, "unit": "x", "rate": 1, "metrics": {}},
        [1],
    ],
)
def test_progress_that_no_message_can_hold_is_a_violation(lie: object) -> None:
    with pytest.raises(local._Violation):
        local._parse(json.dumps(lie).encode())


def test_mark_of_a_run_is_passed_through_the_confinement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os; from pathlib import Path; Path('mark').write_text(os.environ['PUNNET_STAGE_RUN'])"
    marks = []
    for _ in range(2):
        run(tmp_path, program, monkeypatch)
        marks.append((tmp_path / "mark").read_text())
    assert marks[0] != marks[1]
    assert os.environ.get("PUNNET_STAGE_RUN") is None
