"""Builds on devices and their leases in the database. Each function runs inside one transaction.

A build is a job of kind `build` that no slot of this machine takes: an agent leases it. A lease that is not renewed
ends, and its build waits again.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from punnet.errors import make_error
from server import job_table
from server.job_table import ALIVE_RUN, BUILD_KIND, BUILD_STAGE, LOST_RUN, ArtifactRow, Event, JobRow, StageRun
from server.store import now_microseconds

LOSSES = 5  # of agents, after which a build is taken to kill them
SECOND = 1_000_000  # microseconds
LEASE_BITS = 62

Announced = tuple[JobRow, list[Event]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who builds, and until when that is believed."""

    id: int
    agent: str
    until: int  # microseconds


def lease_oldest(
    db: sqlite3.Connection, tenant: str, agent: str, targets: Sequence[str], seconds: float
) -> tuple[JobRow, Lease, list[Event]] | None:
    """Lease the oldest waiting build for one of these targets that this agent may take."""
    marks = ",".join("?" * len(targets))
    row = db.execute(
        "SELECT id, spec FROM job WHERE tenant=? AND kind=? AND state='QUEUED'"
        f" AND json_extract(spec, '$.target') IN ({marks}) AND json_extract(spec, '$.agent') IN ('', ?)"
        " ORDER BY created, id LIMIT 1",
        (tenant, BUILD_KIND, *targets, agent),
    ).fetchone()
    if row is None:
        return None
    now = now_microseconds()
    db.execute(
        "UPDATE job SET state='RUNNING', epoch=epoch+1, started=coalesce(started, ?) WHERE tenant=? AND id=?",
        (now, tenant, row["id"]),
    )
    lease = Lease(id=secrets.randbits(LEASE_BITS), agent=agent, until=now + int(seconds * SECOND))
    db.execute(
        "INSERT INTO lease (tenant, job_id, id, agent, since, until) VALUES (?, ?, ?, ?, ?, ?)",
        (tenant, row["id"], lease.id, lease.agent, now, lease.until),
    )
    events = [job_table.add_event(db, tenant, row["id"], "state", {"state": "RUNNING"})]
    job = replace(_job(db, tenant, row["id"]), spec=json.loads(row["spec"]))
    run = StageRun(name=BUILD_STAGE, attempt=len(job.runs) + 1, state=ALIVE_RUN, key="")
    return job, lease, [*events, *job_table.put_run(db, job, run)]


def renew(db: sqlite3.Connection, tenant: str, job_id: str, lease: int, seconds: float) -> JobRow:
    """Prolong a lease.

    Raises:
        PunnetError: BUILD_LEASE_LOST.
    """
    changed = db.execute(
        "UPDATE lease SET until=? WHERE tenant=? AND job_id=? AND id=?",
        (now_microseconds() + int(seconds * SECOND), tenant, job_id, lease),
    )
    if not changed.rowcount:
        raise lease_lost(job_id)
    return _job(db, tenant, job_id)


def renew_all(db: sqlite3.Connection, seconds: float) -> None:
    """After a restart: no agent could renew its lease while the server was away."""
    db.execute("UPDATE lease SET until=max(until, ?)", (now_microseconds() + int(seconds * SECOND),))


def leased(db: sqlite3.Connection, tenant: str, job_id: str, lease: int) -> JobRow | None:
    """The job of a lease that holds; None where the same lease has brought it to its end before.

    Raises:
        PunnetError: BUILD_LEASE_LOST.
    """
    row = db.execute("SELECT id FROM lease WHERE tenant=? AND job_id=?", (tenant, job_id)).fetchone()
    job = job_table.job_by_id(db, tenant, job_id)
    if row is None or row["id"] != lease or job is None:
        raise lease_lost(job_id)
    return None if job.state in job_table.FINAL else job


def end(
    db: sqlite3.Connection,
    tenant: str,
    job_id: str,
    lease: int,
    *,
    error: Mapping[str, Any] | None = None,
    artifacts: Sequence[ArtifactRow] = (),
) -> list[Event]:
    """The build's final state; the lease stays, so that a repeated call is known.

    Raises:
        PunnetError: BUILD_LEASE_LOST.
    """
    job = leased(db, tenant, job_id, lease)
    if job is None:
        return []
    state = "FAILED" if error else "SUCCEEDED"
    return [*_end_run(db, job, state), *job_table.finish(db, job, state, error, artifacts)]


def give_back(db: sqlite3.Connection, tenant: str, job_id: str, lease: int) -> list[Event]:
    """The agent goes on no further: the build waits again, or is CANCELLED.

    Raises:
        PunnetError: BUILD_LEASE_LOST.
    """
    job = leased(db, tenant, job_id, lease)
    if job is None:
        return []
    return _release(db, job, "CANCELLED" if job.state == "CANCELLING" else LOST_RUN)


def expire(db: sqlite3.Connection) -> list[Announced]:
    """End the leases that were not renewed; their builds wait again, are CANCELLED, or fail after LOSSES agents."""
    rows = db.execute(
        "SELECT lease.tenant, lease.job_id FROM lease JOIN job ON job.tenant=lease.tenant AND job.id=lease.job_id"
        " WHERE until<? AND state IN ('RUNNING', 'CANCELLING')",
        (now_microseconds(),),
    ).fetchall()
    announced = []
    for row in rows:
        job = _job(db, row["tenant"], row["job_id"])
        lost = sum(run.state == LOST_RUN for run in job.runs) + 1
        if job.state == "RUNNING" and lost >= LOSSES:
            events = [*_end_run(db, job, "FAILED"), *job_table.finish(db, job, "FAILED", _lost(lost), ())]
            db.execute("DELETE FROM lease WHERE tenant=? AND job_id=?", (job.tenant, job.id))
        else:
            events = _release(db, job, "CANCELLED" if job.state == "CANCELLING" else LOST_RUN)
        announced.append((job, events))
    return announced


def lease_lost(job_id: str) -> Exception:
    """BUILD_LEASE_LOST."""
    return make_error(
        "BUILD_LEASE_LOST",
        f"The lease of the build {job_id[:64]!r} has ended; another agent may have it.",
        "Stop building it, and ask for another.",
        {"job": job_id[:64]},
    )


def _release(db: sqlite3.Connection, job: JobRow, run_state: str) -> list[Event]:
    events = _end_run(db, job, run_state)
    db.execute("DELETE FROM lease WHERE tenant=? AND job_id=?", (job.tenant, job.id))
    if job.state == "CANCELLING":
        return [*events, *job_table.finish(db, job, "CANCELLED", None, ())]
    db.execute("UPDATE job SET state='QUEUED' WHERE tenant=? AND id=?", (job.tenant, job.id))
    return [*events, job_table.add_event(db, job.tenant, job.id, "state", {"state": "QUEUED"})]


def _end_run(db: sqlite3.Connection, job: JobRow, state: str) -> list[Event]:
    (since,) = db.execute("SELECT since FROM lease WHERE tenant=? AND job_id=?", (job.tenant, job.id)).fetchone()
    run = replace(job.runs[-1], state=state, seconds=(now_microseconds() - since) / SECOND)
    return job_table.put_run(db, job, run)


def _lost(times: int) -> dict[str, Any]:
    return {
        "code": "STAGE_CRASHED",
        "message": f"{times} agents that built this were lost on the way.",
        "remedy": "Look at the agents' logs and at the devices' memory, then ask for the build again.",
        "stage": BUILD_STAGE,
        "details": {"agents": str(times)},
    }


def _job(db: sqlite3.Connection, tenant: str, job_id: str) -> JobRow:
    job = job_table.job_by_id(db, tenant, job_id)
    if job is None:
        raise RuntimeError("a leased job is not there")
    return job
