"""Pools in the database. Each function runs inside one transaction.

A pool has one ready version: the folder named by the sha256 of its `pool.json`. Appending makes the next version,
which takes the place of the one before when its folder stands.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from punnet.errors import make_error
from server.job_table import ACTIVE

OWNER = "coalesce(json_extract(spec, '$.pool.owner'), tenant)"  # of the pool that a job reads

SharedPools = Callable[[], Mapping[str, str]]  # name -> owner of each pool that every tenant may use, as it is now


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRow:
    """One version of a pool; `ready` once its folder stands under its name."""

    tenant: str
    name: str
    job_id: str
    ready: bool
    images: int
    bad_images: int
    duplicates: int
    near_duplicates: int
    shards: int
    size: int
    short_side: int  # 0 where images are stored as they came, like `quality`
    quality: int
    sha256: str
    created: int


def put_pool(db: sqlite3.Connection, pool: PoolRow) -> None:
    """Note a version that its job has made and whose folder is about to get its name."""
    values = asdict(pool) | {"ready": int(pool.ready)}
    db.execute(
        f"INSERT OR REPLACE INTO pool ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})",
        tuple(values.values()),
    )


def mark_ready(db: sqlite3.Connection, pool: PoolRow) -> None:
    """The version's folder stands: it takes the place of every other version of the name, and its age."""
    where = (pool.tenant, pool.name, pool.sha256)
    db.execute(
        "UPDATE pool SET ready=1, created=(SELECT min(created) FROM pool WHERE tenant=? AND name=?)"
        " WHERE tenant=? AND name=? AND sha256=?",
        (pool.tenant, pool.name, *where),
    )
    db.execute("DELETE FROM pool WHERE tenant=? AND name=? AND sha256<>?", where)


def pool_by_name(db: sqlite3.Connection, tenant: str, name: str) -> PoolRow | None:
    """The ready version of a pool."""
    row = db.execute("SELECT * FROM pool WHERE tenant=? AND name=? AND ready=1", (tenant, name)).fetchone()
    return _pool(row) if row else None


def find_pool(db: sqlite3.Connection, tenant: str, name: str, shared: Mapping[str, str]) -> PoolRow | None:
    """The ready version of the tenant's own pool, else of the one that is shared under this name."""
    own = pool_by_name(db, tenant, name)
    return own if own or name not in shared else pool_by_name(db, shared[name], name)


def pool_reference(
    db: sqlite3.Connection, tenant: str, name: str, request_id: str, shared: Mapping[str, str]
) -> dict[str, str]:
    """The pool as a job's spec names it: name, sha256, and `owner` where it is another tenant's.

    It is the version that an earlier call of the same request named, else the ready one.

    Args:
        shared: name -> owner of each pool that every tenant may use.

    Raises:
        PunnetError: POOL_NOT_FOUND.
    """
    row = db.execute(
        "SELECT json_extract(spec, '$.pool') AS pool FROM job"
        " WHERE tenant=? AND request_id=? AND json_extract(spec, '$.pool.name')=?",
        (tenant, request_id or None, name),
    ).fetchone()
    if row:
        reference: dict[str, str] = json.loads(row["pool"])
        return reference
    pool = find_pool(db, tenant, name, shared)
    if pool is None:
        raise pool_not_found("pool", name)
    return {"name": name, "sha256": pool.sha256} | ({"owner": pool.tenant} if pool.tenant != tenant else {})


def pool_of_job(db: sqlite3.Connection, tenant: str, job_id: str) -> PoolRow | None:
    """The version that an ingest has noted, ready or not."""
    row = db.execute("SELECT * FROM pool WHERE tenant=? AND job_id=?", (tenant, job_id)).fetchone()
    return _pool(row) if row else None


def job_using(db: sqlite3.Connection, tenant: str, name: str, kind: str = "") -> tuple[str, str] | None:
    """Tenant and id of a job that has not ended and makes, appends to or reads this tenant's pool.

    Of one kind, where that is given; it is another tenant's where the pool is shared.
    """
    marks = ",".join("?" * len(ACTIVE))
    row = db.execute(
        f"SELECT tenant, id FROM job WHERE state IN ({marks}) AND (?='' OR kind=?) AND ("
        f"(json_extract(spec, '$.pool.name')=? AND {OWNER}=?)"
        " OR (tenant=? AND kind='ingest' AND json_extract(spec, '$.name')=?)) ORDER BY created LIMIT 1",
        (*ACTIVE, kind, kind, name, tenant, tenant, name),
    ).fetchone()
    return (row["tenant"], row["id"]) if row else None


def check_pool(db: sqlite3.Connection, tenant: str, kind: str, spec: Mapping[str, Any]) -> None:
    """Whether a new job may use or make the pool that its spec names.

    Raises:
        PunnetError: POOL_EXISTS, POOL_IN_USE, POOL_NOT_FOUND; UNAVAILABLE where the pool has just been appended to.
    """
    used = spec.get("pool")
    if kind == "ingest":
        name = spec["name"]
        making = job_using(db, tenant, name, kind)
        if used is not None and making is not None:
            raise pool_in_use(tenant, name, making)
        if used is None and (making is not None or pool_by_name(db, tenant, name) is not None):
            remedy = "Choose another name, or `punnet pool append` to it."
            raise make_error("POOL_EXISTS", f"There is already a pool {name!r}.", remedy, {"pool": name})
    if used is not None:
        pool = pool_by_name(db, used.get("owner", tenant), used["name"])
        if pool is None:
            raise pool_not_found("pool", used["name"])
        if pool.sha256 != used["sha256"]:
            text = f"The pool {used['name']!r} has been appended to in this moment."
            raise make_error("UNAVAILABLE", text, "Send the request again.")


def delete_pool(db: sqlite3.Connection, tenant: str, name: str) -> None:
    """Remove a pool's rows; its folder is the caller's.

    Raises:
        PunnetError: POOL_NOT_FOUND; POOL_IN_USE where a job that has not ended uses it.
    """
    if pool_by_name(db, tenant, name) is None:
        raise pool_not_found("name", name)
    using = job_using(db, tenant, name)
    if using is not None:
        raise pool_in_use(tenant, name, using)
    db.execute("DELETE FROM pool WHERE tenant=? AND name=?", (tenant, name))


def pools_after(db: sqlite3.Connection, tenant: str, name: str, limit: int, shared: Mapping[str, str]) -> list[PoolRow]:
    """Finished pools with a name behind the given one, in order: the tenant's own and those shared with it."""
    rows = db.execute(
        "SELECT * FROM pool WHERE tenant=? AND ready=1 AND name>? ORDER BY name LIMIT ?", (tenant, name, limit)
    )
    found = {row["name"]: _pool(row) for row in rows}
    for other in filter(name.__lt__, shared):
        pool = find_pool(db, tenant, other, shared)
        if pool is not None:
            found[other] = pool
    return [found[key] for key in sorted(found)][:limit]


def versions_needed(db: sqlite3.Connection) -> set[tuple[str, str, str]]:
    """Tenant, name and sha256 of every version that is a pool's, or that a job which has not ended reads."""
    marks = ",".join("?" * len(ACTIVE))
    of_jobs = db.execute(
        f"SELECT {OWNER} AS tenant, json_extract(spec, '$.pool.name') AS name,"
        " json_extract(spec, '$.pool.sha256') AS sha256"
        f" FROM job WHERE state IN ({marks}) AND json_extract(spec, '$.pool.name') IS NOT NULL",
        ACTIVE,
    ).fetchall()
    rows = [*db.execute("SELECT tenant, name, sha256 FROM pool").fetchall(), *of_jobs]
    return {(row["tenant"], row["name"], row["sha256"]) for row in rows}


def pool_not_found(field: str, name: str) -> Exception:
    """The error of a name that no pool has."""
    text = f"Field {field}: there is no pool {name[:64]!r}."
    return make_error("POOL_NOT_FOUND", text, "`punnet pool list` lists the pools.", {"pool": name[:64]})


def pool_in_use(tenant: str, name: str, using: tuple[str, str]) -> Exception:
    """The error of a pool that a job, given by tenant and id, uses and that has not ended."""
    user, job_id = using
    if user != tenant:
        text = f"A job of another tenant uses the pool {name!r} and has not ended."
        return make_error("POOL_IN_USE", text, "Wait for it, or ask the operator to unshare the pool.", {"pool": name})
    text = f"The job {job_id} uses the pool {name!r} and has not ended."
    remedy = f"Wait for it (punnet watch {job_id}) or cancel it (punnet cancel {job_id})."
    return make_error("POOL_IN_USE", text, remedy, {"pool": name, "job": job_id})


def _pool(row: sqlite3.Row) -> PoolRow:
    return PoolRow(**dict(row) | {"ready": bool(row["ready"])})
