"""Pools in the database. Each function runs inside one transaction."""

from __future__ import annotations

import sqlite3
from dataclasses import asdict, dataclass

from server.job_table import ACTIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRow:
    """One pool; `ready` once its folder stands under its name."""

    tenant: str
    name: str
    job_id: str
    ready: bool
    images: int
    bad_images: int
    shards: int
    size: int
    sha256: str
    created: int


def put_pool(db: sqlite3.Connection, pool: PoolRow) -> None:
    """Write a pool that its job has made; raises KeyError where the name is a finished pool's."""
    if pool_by_name(db, pool.tenant, pool.name):
        raise KeyError(f"there is already a pool {pool.name}")
    values = asdict(pool) | {"ready": int(pool.ready)}
    db.execute(
        f"INSERT OR REPLACE INTO pool ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})",
        tuple(values.values()),
    )


def mark_ready(db: sqlite3.Connection, tenant: str, name: str) -> None:
    """The pool's folder stands under its name."""
    db.execute("UPDATE pool SET ready=1 WHERE tenant=? AND name=?", (tenant, name))


def pool_by_name(db: sqlite3.Connection, tenant: str, name: str, *, ready_only: bool = True) -> PoolRow | None:
    """The pool of that name."""
    row = db.execute("SELECT * FROM pool WHERE tenant=? AND name=?", (tenant, name)).fetchone()
    return _pool(row) if row and (row["ready"] or not ready_only) else None


def name_taken(db: sqlite3.Connection, tenant: str, name: str) -> bool:
    """Whether a pool has the name, or a job that has not ended makes one."""
    marks = ",".join("?" * len(ACTIVE))
    making = db.execute(
        f"SELECT 1 FROM job WHERE tenant=? AND kind='ingest' AND json_extract(spec, '$.name')=? AND state IN ({marks})",
        (tenant, name, *ACTIVE),
    ).fetchone()
    return making is not None or pool_by_name(db, tenant, name) is not None


def pools_after(db: sqlite3.Connection, tenant: str, name: str, limit: int) -> list[PoolRow]:
    """Finished pools with a name behind the given one, in order."""
    rows = db.execute(
        "SELECT * FROM pool WHERE tenant=? AND ready=1 AND name>? ORDER BY name LIMIT ?", (tenant, name, limit)
    )
    return [_pool(row) for row in rows]


def _pool(row: sqlite3.Row) -> PoolRow:
    return PoolRow(**dict(row) | {"ready": bool(row["ready"])})
