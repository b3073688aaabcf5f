"""uvicorn in the event loop of the front: it starts no loop and no signal handler of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

STOP_SECONDS = 2
MOST_CONNECTIONS = 256


class PageRefused(Exception):
    """The page can't listen there."""


def page_place(text: str, option: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT` on this machine; raises PageRefused otherwise: there is no TLS."""
    host, _, port = text.rpartition(":")
    try:
        name = "127.0.0.1" if host == "localhost" else host.strip("[]")
        loopback = ipaddress.ip_address(name).is_loopback
        if not 0 <= int(port) <= 65535:
            raise ValueError(port)
    except ValueError:
        raise PageRefused(f"{option} takes an address and a port, for instance 127.0.0.1:7861; got {text!r}.") from None
    if not loopback:
        raise PageRefused(
            f"{option} {text} can be reached from other machines, and there is no TLS; give 127.0.0.1, and put a proxy "
            "with TLS before it."
        )
    return name, int(port)


class _Quiet(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the front."""
        yield


class PageServer:
    """One listening address of the page."""

    def __init__(self, app: ASGIApp) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            date_header=False,
            proxy_headers=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=STOP_SECONDS,
            ws="none",
        )
        self._server = _Quiet(config)
        self._task: asyncio.Task[None] | None = None

    async def open(self, host: str, port: int) -> int:
        """Listen; the port, which is chosen where 0 was asked for.

        Raises:
            OSError: the address is taken, or is none of this machine's.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen()  # from here on nobody is refused
        except OSError:
            listener.close()
            raise
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="page")
        return int(listener.getsockname()[1])

    async def close(self) -> None:
        """Answer what was asked, then stop."""
        if self._task is not None:
            self._server.should_exit = True
            await self._task
