"""A private server on this machine: found where it lives, else started; it ends when idle."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from punnet.access import TLS_SCHEME, Access
from punnet.connection import Connection
from punnet.errors import PunnetError, ServerUnavailable
from punnet.installation import fingerprint

IDLE_SECONDS = 600
START_SECONDS = 30.0  # 3 s are usual
POLL_SECONDS = 0.1
LOG_LINES = 15
SOCKET_PATH_BYTES = 107  # of sockaddr_un on Linux
# One import name of each distribution that `punnet[cpu]` adds and without which no stage runs.
SERVER_PACKAGES = ("grpc_health", "numpy", "onnx", "onnxruntime", "PIL", "pyarrow", "timm", "torch")


def data_folder(stated: Path | str | None = None) -> Path:
    """The private server's data folder: as stated, else PUNNET_DATA, else ~/.local/share/punnet."""
    return Path(stated or os.environ.get("PUNNET_DATA") or Path.home() / ".local" / "share" / "punnet").absolute()


def socket_path(data: Path) -> Path:
    """Where a data folder's private server listens: in the user's runtime folder, under a short hashed name.

    Raises:
        ServerUnavailable: SERVER_START_FAILED where the folder belongs to someone else.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime) if runtime else Path(tempfile.gettempdir()) / f"punnet-{os.getuid()}"
    if not runtime:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise _failed(f"{folder} is not a folder of yours alone (mode 0700).", "Remove it, or set XDG_RUNTIME_DIR.")
    path = folder / f"punnet-{hashlib.sha256(os.fsencode(data.resolve())).hexdigest()[:16]}.sock"
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        raise _failed(f"The socket path {path} is longer than {SOCKET_PATH_BYTES} bytes.", "Set a shorter TMPDIR.")
    return path


def ensure(data: Path) -> str:
    """The address of the data folder's server, which is started where none answers.

    A private server of other code than is installed now is ended first: its stages would run the new code and speak
    of results in another way than it does. Its jobs go on in the next one.

    Raises:
        ServerUnavailable: SERVER_START_FAILED with the log's last lines, or where the folder can't be used.
    """
    address = f"unix:{socket_path(data)}"
    with _starting(data):
        _end_outdated(data)
        recorded = recorded_address(data)
        if recorded and recorded.startswith(TLS_SCHEME):
            raise _failed(
                f"A server with accounts serves {data} at {recorded}.",
                f"Name it: --server {recorded}, with your token.",
            )
        for known in {address, recorded or address}:
            if answers(known):
                return known
        return _start(data, address)


def recorded_address(data: Path) -> str | None:
    """The address in DATA/server.json, where a live process wrote it; a server may have been started by hand."""
    record = _record(data)
    return str(record["address"]) if record else None


def answers(address: str, access: Access | None = None) -> bool:
    """Whether a healthy server listens there; `access` has what its TLS asks for."""

    async def probe() -> bool:
        connection = Connection(address, access=access)
        try:
            await connection.check(0.0)
        except PunnetError:
            return False
        finally:
            await connection.close()
        return True

    return asyncio.run(probe())


def missing_packages() -> list[str]:
    """Import names that the server needs and this Python lacks."""
    return [name for name in ("server", *SERVER_PACKAGES) if importlib.util.find_spec(name) is None]


@contextmanager
def _starting(data: Path) -> Iterator[None]:
    """One client at a time looks and starts; the others find its server. Not the server's own lock, which it holds."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(data / "start.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _failed(
            f"{data} can't be the data folder of a private server: {error.strerror}.",
            "Give a folder that you may write to with --data or PUNNET_DATA.",
            path=str(data),
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _record(data: Path) -> dict[str, Any] | None:
    """DATA/server.json, where the process that wrote it lives."""
    file = data / "server.json"
    if not file.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(file.read_text())
        alive = Path(f"/proc/{int(record['pid'])}").exists() and isinstance(record["address"], str)
    except (json.JSONDecodeError, KeyError, TypeError, ValueError):  # cut off by a crash: as if it were not there
        return None
    return record if alive else None


def _end_outdated(data: Path) -> None:
    """End a private server that was started from other code, and wait until it is gone."""
    record = _record(data)
    if not record or not record.get("private") or record.get("installation") == fingerprint():
        return
    pid, end = int(record["pid"]), time.monotonic() + START_SECONDS
    os.kill(pid, signal.SIGTERM)
    while _owned(data):
        if time.monotonic() > end:
            raise _failed(
                f"The private server of {data} (process {pid}) runs other code than is installed, and does not end.",
                f"End it: kill {pid}",
            )
        time.sleep(POLL_SECONDS)


def _start(data: Path, address: str) -> str:
    missing = missing_packages()
    if missing:
        raise _failed(
            f"No server runs, and this Python lacks {', '.join(missing)} to start one.",
            "Install the appliance with `pip install 'punnet[cpu]'`, or name a running one with --server.",
        )
    end = time.monotonic() + START_SECONDS
    log = data / "server.log"
    while True:
        log_start = log.stat().st_size if log.exists() else 0
        pid = _spawn(data, address.removeprefix("unix:"), log)
        exited = False
        while not exited and time.monotonic() < end:
            if answers(address):
                return address
            exited = os.waitpid(pid, os.WNOHANG) != (0, 0)
            time.sleep(POLL_SECONDS)
        # It ends at once where another holds the data folder: one that is going down, or came up just now.
        other = recorded_address(data)
        if other and answers(other):
            return other
        if not _owned(data) or time.monotonic() > end:
            raise _failed(
                f"The private server for {data} did not start: {_tail(log, log_start)}",
                f"The whole log is {log}. `punnet doctor` says what is missing.",
                log=str(log),
            )


def _owned(data: Path) -> bool:
    """Whether a server holds the data folder."""
    lock = data / "lock"
    if not lock.exists():
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _spawn(data: Path, socket: str, log: Path) -> int:
    """Starts the server in a session of its own, so that it outlives this process and its terminal. Its process id.

    posix_spawn and not subprocess: its object warns when it goes before the child does, which is what we want here.
    """
    command = [sys.executable, "-I", "-m", "server", "--data", str(data), "--socket", socket]
    command += ["--idle-seconds", str(IDLE_SECONDS)]
    return os.posix_spawn(
        sys.executable,
        command,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )


def _tail(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-LOG_LINES:]) or "it wrote nothing to its log."


def _failed(message: str, remedy: str, **details: str) -> ServerUnavailable:
    return ServerUnavailable(message, code="SERVER_START_FAILED", remedy=remedy, details=details)
