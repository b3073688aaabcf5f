"""The commands of docs/operate.md, run as they stand there, one after another in one shell."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "operate.md").read_text()
PORTS = ("7861", "9464")
TEST_SECONDS = 180


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.slow
def test_the_commands_of_the_page_do_what_it_says(folder: Path) -> None:
    script = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))
    assert script.count("punnet ") > 12
    for port in PORTS:
        assert port in script
        script = script.replace(port, free_port())
    commands = folder / "bin"
    commands.mkdir()
    start = "from punnet.cli import main; main()"
    (commands / "punnet").write_text(f"#!/bin/sh\nexec {sys.executable} -c '{start}' \"$@\"\n")
    (commands / "punnet").chmod(0o700)
    environment = {"PATH": f"{commands}:{os.environ['PATH']}", "HOME": str(folder), "LANG": "C.UTF-8"}
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TEST_SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "punnet_queue_length 0.0" in ran.stdout
    assert "Nothing went" in ran.stdout
    assert "keep_jobs_days" in ran.stdout


def test_every_other_block_says_that_it_was_not_run() -> None:
    parts = re.split(r"```(\w+)\n.*?```", PAGE, flags=re.DOTALL)
    for before, kind in zip(parts[::2], parts[1::2], strict=False):
        assert kind in {"sh", "text"}
        assert kind == "sh" or "ot run here" in before.rsplit("\n## ", 1)[-1]
