"""The tables, and how a data folder of an earlier version becomes one of this version.

Every table and unique key carries the tenant, so that a shared server needs no new schema. A change of the tables
raises SCHEMA_VERSION and adds a step to MIGRATIONS; steps run one after another, each in a transaction of its own.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path

from server.folders import fsync_folder

log = logging.getLogger(__name__)

SCHEMA_VERSION = 3

POOL_TABLE = """
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
) STRICT
"""
LEASE_TABLE = """
CREATE TABLE lease (
    tenant TEXT NOT NULL,
    job_id TEXT NOT NULL,
    id INTEGER NOT NULL,
    agent TEXT NOT NULL,
    since INTEGER NOT NULL,
    until INTEGER NOT NULL,
    PRIMARY KEY (tenant, job_id),
    FOREIGN KEY (tenant, job_id) REFERENCES job (tenant, id) ON DELETE CASCADE
) STRICT
"""
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
"""


class SchemaMismatch(Exception):
    """This version can't read the data folder."""


def check_version(version: int, what: Path) -> None:
    """Raises SchemaMismatch for a schema that a newer version made, or that no version ever had."""
    if not 0 < version <= SCHEMA_VERSION:
        raise SchemaMismatch(
            f"{what} has schema {version}; this version reads schemas 1 to {SCHEMA_VERSION}. "
            "Install the version of Punnet that wrote it, or a newer one."
        )


def bring_up_to_date(connection: sqlite3.Connection, root: Path) -> None:
    """Make the tables where there are none; else take the steps from an earlier version to this one.

    Args:
        root: the data folder.

    Raises:
        SchemaMismatch: a newer version wrote the data folder.
    """
    version = _version(connection)
    if version == 0:
        tables = f"{SCHEMA} {POOL_TABLE}; {LEASE_TABLE}; PRAGMA user_version={SCHEMA_VERSION};"
        connection.executescript(f"BEGIN IMMEDIATE; {tables} COMMIT;")
        return
    check_version(version, root)
    for earlier in range(version, SCHEMA_VERSION):
        connection.execute("BEGIN IMMEDIATE")
        try:
            MIGRATIONS[earlier](connection, root)
            connection.execute(f"PRAGMA user_version={earlier + 1}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        log.info("data folder migrated", extra={"from_schema": earlier, "to_schema": earlier + 1})


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _give_pools_versions(connection: sqlite3.Connection, root: Path) -> None:
    """1 to 2: a pool's folder lies below the sha256 of its `pool.json`, so that appending can make another version.

    Folders are moved before the tables change: a step that was interrupted in between finds them moved.
    """
    for tenant, name, sha256 in connection.execute("SELECT tenant, name, sha256 FROM pool").fetchall():
        folder = root / "pools" / tenant / name
        moving = folder.with_name(f".{name}.moving")
        if (folder / "pool.json").is_file():
            os.rename(folder, moving)
        if moving.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)
            os.rename(moving, folder / sha256)
            fsync_folder(folder)
            fsync_folder(folder.parent)
        connection.execute(
            "UPDATE artifact SET folder=? WHERE tenant=? AND folder=?",
            (f"pools/{tenant}/{name}/{sha256}", tenant, f"pools/{tenant}/{name}"),
        )
    connection.execute("ALTER TABLE pool RENAME TO earlier_pool")
    connection.execute(POOL_TABLE)
    kept = "tenant, name, job_id, ready, images, bad_images, shards, size, sha256, created"
    connection.execute(
        f"INSERT INTO pool ({kept}, duplicates, near_duplicates, short_side, quality)"
        f" SELECT {kept}, 0, 0, 0, 0 FROM earlier_pool"
    )
    connection.execute("DROP TABLE earlier_pool")


def _add_leases(connection: sqlite3.Connection, _: Path) -> None:
    """2 to 3: builds on devices are leased."""
    connection.execute(LEASE_TABLE)


# The step from each earlier schema to the one after it.
MIGRATIONS: Mapping[int, Callable[[sqlite3.Connection, Path], None]] = {
    1: _give_pools_versions,
    2: _add_leases,
}
