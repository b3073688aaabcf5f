"""Every command of docs/accounts.md is run, as it stands there, and its table of quotas is the code's."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.quotas import DEFAULTS
from server.scopes import SCOPE_OF
from tests.service.running_server import image_tar, until

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "accounts.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


class Shell:
    """Runs lines of the page in one folder; a server runs beside them until the next one is started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.server: subprocess.Popen[bytes] | None = None
        self.env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(self, line: str) -> str:
        line = line.replace("7860", self.port)
        if line.startswith("punnet serve"):
            self.stop()
            self.server = subprocess.Popen(["bash", "-c", f"exec {line}"], cwd=self.folder, env=self.env)
            until((self.folder / "data" / "server.json").exists, 30)
            return ""
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, (line, done.stderr)
        return done.stdout

    def stop(self) -> None:
        if self.server is not None:
            self.server.send_signal(signal.SIGTERM)
            assert self.server.wait(20) == 0
            self.server = None


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the page's certificates, is not on this machine")
    running = Shell(tmp_path)
    yield running
    running.stop()


def test_every_command_of_the_page_does_what_it_says(shell: Shell) -> None:
    (shell.folder / "images").mkdir()
    (shell.folder / "images" / "web.tar").write_bytes(image_tar(5))
    said = {line: shell.run(line) for line in COMMANDS}
    assert re.fullmatch(r"pnt_[0-9a-f]{16}_[\w-]{43}\n", (shell.folder / "acme.token").read_text())
    assert json.loads((shell.folder / "reader.json").read_text())["scopes"] == ["read"]
    assert "the vision team" in said["punnet token list --data data"]
    assert "Every tenant may use web." in said["punnet pool share web --data data --tenant acme"]
    line = json.loads(said["tail -n 1 data/audit.jsonl"])
    assert (line["tenant"], line["outcome"]) == ("acme", "OK")


def test_table_of_quotas_is_the_codes() -> None:
    rows = dict(re.findall(r"^\| `--([a-z-]+)` \| (\d+) \|", PAGE, re.MULTILINE))
    assert {name: int(value) for name, value in rows.items()} == {
        "tenant-storage-gib": (DEFAULTS.storage_bytes or 0) >> 30,
        "tenant-running-jobs": DEFAULTS.running_jobs,
        "queued-jobs": DEFAULTS.queued_jobs,
        "calls-a-minute": DEFAULTS.calls_a_minute,
        "transfers-a-minute": DEFAULTS.transfers_a_minute,
        "open-calls": DEFAULTS.open_calls,
        "failures-a-minute": DEFAULTS.failures_a_minute,
    }


def test_every_scope_is_explained() -> None:
    assert set(SCOPE_OF.values()) | {"build"} == set(re.findall(r"^\| `([a-z]+)` \|", PAGE, re.MULTILINE))
