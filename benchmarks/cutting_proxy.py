"""A proxy between sockets that cuts and stalls: what a bad network does to a client and a server."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from types import TracebackType

CHUNK_BYTES = 1 << 16


class CuttingProxy:
    """Forwards from one Unix socket to another in a thread of its own; use it in a `with` block.

    Args:
        listen: where clients connect.
        target: where the server listens; it may be away for a while.
    """

    def __init__(self, listen: Path, target: Path) -> None:
        self._listen = listen
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """As clients take it."""
        return f"unix:{self._listen}"

    def __enter__(self) -> CuttingProxy:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> int:
        """Break every connection off, without a farewell; how many sides there were."""
        return asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result()

    def stall(self) -> None:
        """Let nothing through in either direction; connections stay open."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def resume(self) -> None:
        """Go on where it stalled; nothing was lost."""
        self._loop.call_soon_threadsafe(self._flowing.set)

    async def _open(self) -> None:
        self._flowing.set()
        self._server = await asyncio.start_unix_server(self._accept, self._listen)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._flowing.set()
        await self._cut()
        await asyncio.gather(*self._tasks)

    async def _cut(self) -> int:
        sides = list(self._writers)
        for writer in sides:
            writer.transport.abort()
        return len(sides)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward, back = await asyncio.open_unix_connection(self._target)
        except OSError:  # the server is away: to the client this is a connection that breaks at once
            writer.transport.abort()
            return
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._writers |= {writer, back}
        try:
            await asyncio.gather(self._pump(reader, back), self._pump(onward, writer))
        finally:
            for each in (writer, back):
                self._writers.discard(each)
                each.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Forward until either side ends; its end ends the other side too."""
        with contextlib.suppress(ConnectionError):
            while chunk := await source.read(CHUNK_BYTES):
                await self._flowing.wait()
                sink.write(chunk)
                await sink.drain()
        sink.close()
