"""What a confined process can still do: it tries, and says which attempts were stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

BLOCKED_SECONDS = 2.0


def attack(outside: Path, workdir: Path, confine: Callable[[], None]) -> dict[str, bool]:
    """Fork, confine the fork, and let it reach for what it must not reach.

    Args:
        outside: a folder that the fork may neither read nor write.
        workdir: its own folder.
        confine: gives up the rights, in the fork; told the right parent by os.getppid.

    Returns:
        Attempt -> whether it was stopped; all false where the confinement itself failed.
    """
    secret = outside / "secret"
    secret.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        datagrams.settimeout(BLOCKED_SECONDS)
        attempts: Mapping[str, Callable[[], object]] = {
            "read": secret.read_text,
            "write": lambda: (outside / "written").write_text("x"),
            "tcp": lambda: socket.create_connection(listener.getsockname(), timeout=BLOCKED_SECONDS).close(),
            "udp": lambda: _send_datagram(datagrams.getsockname()),
            "signal": lambda: os.kill(os.getppid(), 0),
            "environ": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
        }
        return _in_fork(attempts, workdir, confine)


def _in_fork(
    attempts: Mapping[str, Callable[[], object]], workdir: Path, confine: Callable[[], None]
) -> dict[str, bool]:
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        with contextlib.suppress(OSError, SystemExit):
            confine()
            (workdir / "own").write_text("a confined process must still write its own folder")
            os.write(writer, json.dumps({name: _stopped(attempt) for name, attempt in attempts.items()}).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        report = pipe.read()
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return (
        {name: bool(stopped) for name, stopped in json.loads(report).items()}
        if report
        else dict.fromkeys(attempts, False)
    )


def _stopped(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return True
    return False


def _send_datagram(address: tuple[str, int]) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", address)
