from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from server import landlock
from tests.service.running_server import RunningServer, environment_of, stage_children, until


def confined(workdir: Path, program: str, *options: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a Python program confined to a folder."""
    return subprocess.run(
        [
            *(sys.executable, "-I", "-m", "server.confine", "--workdir", str(workdir), *options, "--"),
            *(sys.executable, "-I", "-c", textwrap.dedent(program)),
        ],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def test_probe_finds_every_way_closed() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-m", "server.confine", "--probe"], capture_output=True, check=True, timeout=30
    )
    found = json.loads(done.stdout)
    assert set(found) == {"read", "write", "tcp", "udp", "signal", "environ"}
    open_ways = [name for name, closed in found.items() if not closed]
    if open_ways and landlock.abi_version() == 0:
        pytest.skip(f"this kernel has no Landlock; open: {open_ways}")
    assert open_ways == []


def test_environment_is_an_allow_list(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUNNET_SECRET", "canary")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    done = confined(folder, "import json, os; print(json.dumps(dict(os.environ)))")
    found = json.loads(done.stdout)
    assert "canary" not in done.stdout
    assert "LD_LIBRARY_PATH" not in found
    assert found["ORT_DISABLE_TELEMETRY"] == "1"
    assert found["HF_HUB_OFFLINE"] == "1"
    assert found["HOME"] == found["TMPDIR"] == str(folder / "tmp")


def test_child_writes_its_folder_and_reads_its_inputs_only(folder: Path) -> None:
    workdir, given, other = folder / "work", folder / "given", folder / "other"
    for path in (workdir, given, other):
        path.mkdir()
        (path / "file").write_text("content")
    program = f"""
        from pathlib import Path
        def attempt(action):
            try:
                action()
            except OSError as error:
                return type(error).__name__
            return "done"
        for path in ({str(workdir)!r}, {str(given)!r}, {str(other)!r}):
            path = Path(path)
            print(attempt((path / "file").read_text), attempt(lambda: (path / "new").write_text("x")))
    """
    lines = confined(workdir, program, "--read", str(given)).stdout.splitlines()
    assert lines == ["done done", "done PermissionError", "PermissionError PermissionError"]


def test_child_cannot_make_a_link_out_of_its_folder(folder: Path) -> None:
    workdir = folder / "work"
    workdir.mkdir()
    (folder / "secret").write_text("secret")
    program = f"import os; os.link({str(folder / 'secret')!r}, {str(workdir / 'mine')!r})"
    assert "Error" in confined(workdir, program).stderr
    assert not (workdir / "mine").exists()


def test_child_has_no_network(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        program = f"""
            import socket
            socket.create_connection({listener.getsockname()!r}, timeout=3)
        """
        done = confined(folder, program)
    assert done.returncode == 1
    assert "Error" in done.stderr


def test_limits_hold_for_the_child(folder: Path) -> None:
    program = """
        import resource
        for name in ("AS", "FSIZE", "NOFILE", "CORE", "CPU"):
            print(name, resource.getrlimit(getattr(resource, "RLIMIT_" + name))[0])
    """
    lines = confined(folder, program, "--profile", "model", "--cpu-seconds", "77").stdout.split()
    assert dict(zip(lines[::2], map(int, lines[1::2]), strict=True)) == {
        "AS": 4 << 30,
        "FSIZE": 2 << 30,
        "NOFILE": 256,
        "CORE": 0,
        "CPU": 77,
    }


def test_memory_beyond_the_limit_is_refused(folder: Path) -> None:
    assert "MemoryError" in confined(folder, "bytearray(5 << 30)").stderr


def test_processor_time_beyond_the_limit_ends_the_child(folder: Path) -> None:
    done = confined(folder, "while True: pass", "--cpu-seconds", "1")
    assert done.returncode == -signal.SIGXCPU


def test_child_of_another_parent_does_not_start(folder: Path) -> None:
    done = confined(folder, "print('ran')", "--parent", "1")
    assert done.returncode == 3
    assert done.stdout == ""


def test_child_dies_with_the_process_that_started_it(folder: Path) -> None:
    child = f"[{sys.executable!r}, '-I', '-c', 'import time; time.sleep(60)']"
    starter = textwrap.dedent(f"""
        import subprocess, time
        command = [{sys.executable!r}, "-I", "-m", "server.confine", "--workdir", {str(folder)!r}, "--", *{child}]
        print(subprocess.Popen(command).pid, flush=True)
        time.sleep(60)
    """)
    parent = subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    until(lambda: b"time.sleep" in (Path("/proc") / str(pid) / "cmdline").read_bytes().split(b"--")[-1])
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2], 5)


@pytest.mark.parametrize("package", ["onnxruntime", "torch", "pyarrow"])
def test_engines_start_under_the_limits_of_a_strangers_model(folder: Path, package: str) -> None:
    done = confined(folder, f"import {package}; print('there')")
    assert done.stdout == "there\n", done.stderr


def test_onnxruntime_writes_no_device_id(folder: Path) -> None:
    confined(folder, "import onnxruntime")
    assert not list((folder / "tmp").rglob("*deviceid*"))
    assert not list((folder / "tmp").rglob("onnxruntime.db"))


def test_stage_of_a_job_runs_confined(server: RunningServer, slow_tar: bytes) -> None:
    server.ingest("confined", server.upload(slow_tar))
    pid = until(lambda: stage_children(server))[0]
    command = Path("/proc") / str(pid) / "cmdline"
    until(lambda: b"pu_engine.stage" in command.read_bytes() and b"server.confine" not in command.read_bytes())
    assert b"HF_HUB_OFFLINE=1" in environment_of(pid)
    assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
    assert "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()
