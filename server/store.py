"""The SQLite database of one data folder: one writer thread, one reader thread, transactions.

Every table and unique key carries the tenant, so that a shared server needs no new schema. What is asked of the
tables stands in `job_table`, `build_table` and `pool_table`, the tables themselves in `schema`.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from server.disk_space import storage_failure
from server.schema import bring_up_to_date

log = logging.getLogger(__name__)

BUSY_MILLISECONDS = 5000
PATIENCE_SECONDS = 20.0  # with the wait for a lock well below the 30 s that an init system gives a server to stop
RETRY_SECONDS = 1.0
LOCAL_TENANT = "local"  # a private server has one

P = ParamSpec("P")
T = TypeVar("T")


def now_microseconds() -> int:
    """Microseconds since 1970, UTC: what every time in the tables is."""
    return time.time_ns() // 1000


class Store:
    """Runs functions on the database's connections; each `write` is one transaction."""

    def __init__(self, path: Path) -> None:
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._read_thread = ThreadPoolExecutor(1, thread_name_prefix="store-read")
        self._writer = self._write_thread.submit(_open, path).result()
        self._write_thread.submit(bring_up_to_date, self._writer, path.parent).result()
        self._reader = self._read_thread.submit(_open, path).result()

    async def write(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run in a transaction that is durable when this returns, and undone when the function raises."""
        call = asyncio.get_running_loop().run_in_executor(
            self._write_thread, lambda: _in_transaction(self._writer, lambda: function(self._writer, *args, **kwargs))
        )
        # Cancelling the caller would cancel a transaction that still waits for the thread, and never one that runs:
        # whoever must also announce the change wraps both in `uninterrupted`.
        return await asyncio.shield(call)

    async def write_patiently(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `write`, but tried again for PATIENCE_SECONDS while the disk fails: hours of work hang on it."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return await self.write(function, *args, **kwargs)
            except sqlite3.Error as error:
                if storage_failure(error) is None or time.monotonic() > end:
                    raise
                log.warning("a change can't be written; it is tried again", extra={"why": str(error)})
            await asyncio.sleep(RETRY_SECONDS)

    async def read(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run on the reading connection, one at a time."""
        call = lambda: _in_snapshot(self._reader, lambda: function(self._reader, *args, **kwargs))  # noqa: E731
        return await asyncio.get_running_loop().run_in_executor(self._read_thread, call)

    def close(self) -> None:
        """Wait for what runs, then close."""
        self._read_thread.submit(self._reader.close).result()
        self._write_thread.submit(self._writer.close).result()
        self._read_thread.shutdown()
        self._write_thread.shutdown()


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=True)
    connection.row_factory = sqlite3.Row
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        f"busy_timeout={BUSY_MILLISECONDS}",
        "foreign_keys=ON",
        "secure_delete=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _in_transaction(connection: sqlite3.Connection, work: Callable[[], T]) -> T:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work()
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk makes SQLite roll back by itself
            connection.execute("ROLLBACK")
        raise
    return result


def _in_snapshot(connection: sqlite3.Connection, work: Callable[[], T]) -> T:
    connection.execute("BEGIN")
    try:
        return work()
    finally:
        connection.execute("ROLLBACK")
