"""Processes by id and start time (ids are reused), and how their groups end."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the process's start; None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Field 22; the name in field 2 may hold spaces and parentheses.
    return int(text.rpartition(")")[2].split()[19])


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process group that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def kill_orphan(pid: int, started: int) -> bool:
    """Kill the group of a process that an earlier server left; false where the id is another's by now."""
    if start_time(pid) != started:
        return False
    signal_group(pid, signal.SIGKILL)
    return True


def kill_marked(variable: str, value: str) -> list[int]:
    """Kill every process that carries this environment variable: also one whose start was never written down."""
    mark = f"{variable}={value}".encode()
    killed = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # gone meanwhile, or another user's
            continue
        if mark in variables:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(entry.name), signal.SIGKILL)
                killed.append(int(entry.name))
    return killed
