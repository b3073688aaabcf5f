from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from exporters import engine_child
from exporters.engine_builder import EngineRequest, missing
from exporters.engine_child import build_engine, cached_engine
from exporters.errors import BuildCancelledError, ExportError
from tests.unit.exporters.small_onnx import write_model

pytestmark = pytest.mark.skipif(missing("tensorrt_rtx") is not None, reason="tensorrt_rtx is not installed")
PATIENCE_SECONDS = 30.0


def request(model: Path) -> EngineRequest:
    return EngineRequest(onnx=str(model), builder="tensorrt_rtx", capabilities=("SM89",), batches=(1, 8, 64))


def builders_below(parent: int) -> list[int]:
    """Processes that this process started to build."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                status = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if b"exporters.engine_builder" in command and int(status[1]) == parent:
                found.append(int(entry.name))
    return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_child_builds_and_says_what_it_does(tmp_path: Path) -> None:
    model = write_model(tmp_path / "small.onnx")
    beats: list[tuple[str, int, int]] = []
    facts = build_engine(request(model), tmp_path / "x.engine", on_beat=lambda *beat: beats.append(beat))
    assert facts.sha256 == sha256(tmp_path / "x.engine")
    assert facts.onnx_sha256 == sha256(model)
    assert beats
    assert builders_below(os.getpid()) == []


def test_what_the_builder_refuses_is_told_as_it_was_said(tmp_path: Path) -> None:
    model = write_model(tmp_path / "small.onnx", "Det")
    with pytest.raises(ExportError, match="Det") as caught:
        build_engine(request(model), tmp_path / "x.engine")
    assert caught.value.details["nodes"] == "second0"


def test_a_cancelled_build_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    model = write_model(tmp_path / "deep.onnx", layers=60)
    cancel = threading.Event()
    with pytest.raises(BuildCancelledError):
        build_engine(request(model), tmp_path / "x.engine", cancel=cancel, on_beat=lambda *_: cancel.set())
    assert builders_below(os.getpid()) == []
    assert [p.name for p in tmp_path.iterdir()] == ["deep.onnx"]


def test_a_child_that_dies_is_an_error_that_says_how(tmp_path: Path) -> None:
    model = write_model(tmp_path / "deep.onnx", layers=60)

    def kill(*_: object) -> None:
        for pid in builders_below(os.getpid()):
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(ExportError, match="died with exit status -9"):
        build_engine(request(model), tmp_path / "x.engine", on_beat=kill)


def test_a_builder_that_makes_no_step_is_ended(tmp_path: Path) -> None:
    model = write_model(tmp_path / "small.onnx")
    with pytest.raises(ExportError, match="made no step"):
        build_engine(request(model), tmp_path / "x.engine", silent_seconds=0.0)
    assert builders_below(os.getpid()) == []


def test_a_build_ends_with_the_process_that_asked_for_it(tmp_path: Path) -> None:
    model = write_model(tmp_path / "deep.onnx", layers=60)
    program = (
        "import sys; from pathlib import Path; from exporters.engine_builder import EngineRequest;"
        "from exporters.engine_child import build_engine;"
        "build_engine(EngineRequest(onnx=sys.argv[1], builder='tensorrt_rtx', capabilities=('SM89',),"
        " batches=(1, 8, 64)), Path(sys.argv[2]), on_beat=lambda *_: print(flush=True))"
    )
    command = [sys.executable, "-c", program, str(model), str(tmp_path / "x.engine")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as asker:
        assert asker.stdout is not None
        asker.stdout.readline()
        (builder,) = builders_below(asker.pid)
        asker.kill()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while running(builder) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not running(builder)


def running(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_of_two_builds_of_one_file_at_once_one_builds_and_both_get_it(tmp_path: Path) -> None:
    model = write_model(tmp_path / "small.onnx")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: cached_engine(request(model), tmp_path / "engines"), range(2))
    assert first == second
    path, facts = first
    assert path.name == f"{facts.address}.engine"
    assert sha256(path) == facts.sha256
    assert len(list((tmp_path / "engines").glob("*.engine"))) == 1


def test_two_builds_to_one_path_at_once_leave_a_whole_engine(tmp_path: Path) -> None:
    model = write_model(tmp_path / "small.onnx")
    with ThreadPoolExecutor(2) as pool:
        built = list(pool.map(lambda _: build_engine(request(model), tmp_path / "x.engine"), range(2)))
    assert sha256(tmp_path / "x.engine") in {facts.sha256 for facts in built}
    assert built[0].address == built[1].address


def test_a_damaged_engine_is_built_again(tmp_path: Path) -> None:
    model = write_model(tmp_path / "small.onnx")
    path, _ = cached_engine(request(model), tmp_path / "engines")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    again, facts = cached_engine(request(model), tmp_path / "engines")
    assert again == path
    assert sha256(path) == facts.sha256 == json.loads(path.with_suffix(".json").read_text())["sha256"]


def test_a_missing_builder_is_named_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_child, "missing", lambda builder: "TensorRT can't be imported")
    with pytest.raises(ExportError, match="can't be imported"):
        cached_engine(request(tmp_path / "none.onnx"), tmp_path / "engines")
