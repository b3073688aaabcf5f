"""A server of the appliance as a process of its own, for benchmarks that measure or disturb one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

START_SECONDS = 60.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.01


@dataclass(kw_only=True)
class ServerProcess:
    """One server on a socket in `folder`, whose path must be short; what it prints goes to a file beside it."""

    folder: Path
    data: Path
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    start_seconds: float = START_SECONDS
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "s"

    @property
    def address(self) -> str:
        return f"unix:{self.socket}"

    @property
    def pid(self) -> int:
        """Of the process; raises RuntimeError before `start`."""
        if self.process is None:
            raise RuntimeError("the server was not started")
        return self.process.pid

    def start(self) -> float:
        """Returns the seconds until it was ready; raises RuntimeError where it did not become so."""
        started = time.monotonic()
        place = ("--data", str(self.data), "--socket", str(self.socket))
        with (self.folder / "stderr").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-m", "server", *place, *self.options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self.environment,
            )
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() - started > self.start_seconds:
                raise RuntimeError(f"the server did not start: {(self.folder / 'stderr').read_text()[-2000:]}")
            time.sleep(POLL_SECONDS)
        return time.monotonic() - started

    def kill(self) -> None:
        """SIGKILL, and reap it."""
        self._process().kill()
        self._process().wait()

    def stop(self) -> int:
        """SIGTERM; its exit status. Killed, and -9, where it does not end in time."""
        process = self._process()
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def _process(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise RuntimeError("the server was not started")
        return self.process

    def _ready(self) -> bool:
        """Whether this process, and not one before it, has said that it is ready."""
        try:
            return bool(json.loads((self.data / "server.json").read_text())["pid"] == self.pid)
        except FileNotFoundError:
            return False


def resident_mib(pid: int, field_name: str = "VmRSS") -> float:
    """Resident memory of a process: now (VmRSS) or at its peak (VmHWM)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    line = next(text for text in lines if text.startswith(f"{field_name}:"))
    return int(line.split()[1]) / 1024
