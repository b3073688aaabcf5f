"""The SQLite database of one data folder: one writer thread, one reader thread, transactions.

Every table and unique key carries the tenant, so that a shared server needs no new schema. What is asked of the
tables stands in `job_table` and `pool_table`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

SCHEMA_VERSION = 2
BUSY_MILLISECONDS = 5000
LOCAL_TENANT = "local"  # a private server has one

SCHEMA = """
CREATE TABLE job (
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    request_id TEXT,
    request_hash TEXT NOT NULL,
    spec TEXT NOT NULL,
    state TEXT NOT NULL,
    created INTEGER NOT NULL,
    started INTEGER,
    ended INTEGER,
    epoch INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    PRIMARY KEY (tenant, id),
    UNIQUE (tenant, request_id)
) STRICT;
CREATE INDEX job_by_state ON job (state, created);
CREATE INDEX job_by_age ON job (tenant, created, id);
CREATE TABLE stage_run (
    tenant TEXT NOT NULL,
    job_id TEXT NOT NULL,
    name TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    state TEXT NOT NULL,
    key TEXT NOT NULL,
    pid INTEGER,
    pid_start INTEGER,
    seconds REAL NOT NULL DEFAULT 0,
    peak_memory_bytes INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, job_id, name, attempt),
    FOREIGN KEY (tenant, job_id) REFERENCES job (tenant, id) ON DELETE CASCADE
) STRICT;
CREATE INDEX stage_run_by_key ON stage_run (tenant, key);
CREATE TABLE event (
    tenant TEXT NOT NULL,
    job_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    time INTEGER NOT NULL,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (tenant, job_id, seq),
    FOREIGN KEY (tenant, job_id) REFERENCES job (tenant, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE TABLE artifact (
    tenant TEXT NOT NULL,
    job_id TEXT NOT NULL,
    path TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    reproducible INTEGER NOT NULL,
    folder TEXT NOT NULL,
    PRIMARY KEY (tenant, job_id, path),
    FOREIGN KEY (tenant, job_id) REFERENCES job (tenant, id) ON DELETE CASCADE
) STRICT;
CREATE INDEX artifact_by_digest ON artifact (tenant, sha256);
CREATE TABLE pool (
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    job_id TEXT NOT NULL,
    ready INTEGER NOT NULL,
    images INTEGER NOT NULL,
    bad_images INTEGER NOT NULL,
    duplicates INTEGER NOT NULL,
    near_duplicates INTEGER NOT NULL,
    shards INTEGER NOT NULL,
    size INTEGER NOT NULL,
    short_side INTEGER NOT NULL,
    quality INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    created INTEGER NOT NULL,
    PRIMARY KEY (tenant, name, sha256)
) STRICT;
"""

P = ParamSpec("P")
T = TypeVar("T")


def now_microseconds() -> int:
    """Microseconds since 1970, UTC: what every time in the tables is."""
    return time.time_ns() // 1000


class SchemaMismatch(Exception):
    """Another version of the server wrote this data folder."""


class Store:
    """Runs functions on the database's connections; each `write` is one transaction."""

    def __init__(self, path: Path) -> None:
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._read_thread = ThreadPoolExecutor(1, thread_name_prefix="store-read")
        self._writer = self._write_thread.submit(_open, path).result()
        self._write_thread.submit(_create, self._writer).result()
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


def _create(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
    elif version != SCHEMA_VERSION:
        raise SchemaMismatch(
            f"the data folder has schema {version}; this server reads schema {SCHEMA_VERSION}. "
            "Start the version of Punnet that wrote it, or use another data folder."
        )


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
