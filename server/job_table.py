"""Jobs, their stage runs, events and artifacts in the database. Each function runs inside one transaction.

A change of state and its event are written together, and events are numbered without gaps within a job.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from server.job_spec import digests_of
from server.store import now_microseconds

ACTIVE = ("QUEUED", "RUNNING", "CANCELLING")
FINAL = ("SUCCEEDED", "FAILED", "CANCELLED")
JOB_COLUMNS = "tenant, id, kind, request_id, request_hash, state, created, started, ended, epoch, error"
BUILD_KIND, BUILD_STAGE = "build", "building"  # agents on devices take these jobs, see server.builds
ALIVE_RUN, LOST_RUN, CRASHED_RUN = "RUNNING", "LOST", "CRASHED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One durable happening."""

    seq: int
    time: int
    kind: str  # state | stage | warning | error
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRun:
    """One run of one stage."""

    name: str
    attempt: int
    state: str
    key: str
    pid: int | None = None
    pid_start: int | None = None
    seconds: float = 0.0
    peak_memory_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRow:
    """A file of a finished job: `folder`/`path` below the data folder."""

    path: str
    sha256: str
    size: int
    reproducible: bool
    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job as it was asked for."""

    tenant: str
    id: str
    kind: str
    spec: Mapping[str, Any]
    request_id: str = ""
    request_hash: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """One job with what hangs on it."""

    tenant: str
    id: str
    kind: str
    request_id: str
    request_hash: str
    state: str
    created: int
    started: int | None
    ended: int | None
    epoch: int
    error: Mapping[str, Any] | None
    spec: Mapping[str, Any] = field(default_factory=dict)  # of a claimed job only: it can have megabytes
    runs: tuple[StageRun, ...] = ()
    artifacts: tuple[ArtifactRow, ...] = ()
    warnings: tuple[str, ...] = ()


def insert_job(db: sqlite3.Connection, new: NewJob) -> list[Event]:
    """A new job, QUEUED."""
    db.execute(
        "INSERT INTO job (tenant, id, kind, request_id, request_hash, spec, state, created)"
        " VALUES (?, ?, ?, ?, ?, ?, 'QUEUED', ?)",
        (
            new.tenant,
            new.id,
            new.kind,
            new.request_id or None,
            new.request_hash,
            json.dumps(new.spec),
            now_microseconds(),
        ),
    )
    return [add_event(db, new.tenant, new.id, "state", {"state": "QUEUED"})]


def add_event(db: sqlite3.Connection, tenant: str, job_id: str, kind: str, body: Mapping[str, Any]) -> Event:
    """The job's next event."""
    (last,) = db.execute(
        "SELECT coalesce(max(seq), 0) FROM event WHERE tenant=? AND job_id=?", (tenant, job_id)
    ).fetchone()
    event = Event(seq=last + 1, time=now_microseconds(), kind=kind, body=body)
    row = (tenant, job_id, event.seq, event.time, kind, json.dumps(body))
    db.execute("INSERT INTO event (tenant, job_id, seq, time, kind, body) VALUES (?, ?, ?, ?, ?, ?)", row)
    return event


def add_warning(db: sqlite3.Connection, job: JobRow, stage: str, text: str) -> list[Event]:
    """A warning of a stage; one that the job has already is not repeated by a second attempt."""
    body = {"text": text, "stage": stage}
    known = db.execute(
        "SELECT 1 FROM event WHERE tenant=? AND job_id=? AND kind='warning' AND body=?",
        (job.tenant, job.id, json.dumps(body)),
    ).fetchone()
    return [] if known else [add_event(db, job.tenant, job.id, "warning", body)]


def events_after(db: sqlite3.Connection, tenant: str, job_id: str, seq: int, limit: int) -> list[Event]:
    """Events with a larger number, in order."""
    rows = db.execute(
        "SELECT seq, time, kind, body FROM event WHERE tenant=? AND job_id=? AND seq>? ORDER BY seq LIMIT ?",
        (tenant, job_id, seq, limit),
    )
    return [Event(seq=r["seq"], time=r["time"], kind=r["kind"], body=json.loads(r["body"])) for r in rows]


def job_by_id(db: sqlite3.Connection, tenant: str, job_id: str) -> JobRow | None:
    """A job with its runs, artifacts and warnings."""
    row = db.execute(f"SELECT {JOB_COLUMNS} FROM job WHERE tenant=? AND id=?", (tenant, job_id)).fetchone()
    return _job(db, row) if row else None


def job_by_request(db: sqlite3.Connection, tenant: str, request_id: str) -> JobRow | None:
    """The job that a request id made."""
    row = db.execute(f"SELECT {JOB_COLUMNS} FROM job WHERE tenant=? AND request_id=?", (tenant, request_id)).fetchone()
    return _job(db, row) if row else None


def jobs_before(db: sqlite3.Connection, tenant: str, before: tuple[int, str] | None, limit: int) -> list[JobRow]:
    """Jobs that are older than the given (created, id), newest first."""
    created, job_id = before or (2**62, "")
    rows = db.execute(
        f"SELECT {JOB_COLUMNS} FROM job WHERE tenant=? AND (created, id) < (?, ?)"
        " ORDER BY created DESC, id DESC LIMIT ?",
        (tenant, created, job_id, limit),
    ).fetchall()
    return [_job(db, row) for row in rows]


def jobs_in_state(db: sqlite3.Connection, states: Sequence[str]) -> list[JobRow]:
    """Jobs of every tenant in these states, oldest first."""
    marks = ",".join("?" * len(states))
    rows = db.execute(
        f"SELECT {JOB_COLUMNS} FROM job WHERE state IN ({marks}) ORDER BY created, id", tuple(states)
    ).fetchall()
    return [_job(db, row) for row in rows]


def active_ids(db: sqlite3.Connection) -> set[tuple[str, str]]:
    """Tenant and id of every job that has not ended."""
    marks = ",".join("?" * len(ACTIVE))
    rows = db.execute(f"SELECT tenant, id FROM job WHERE state IN ({marks})", ACTIVE)
    return {(row["tenant"], row["id"]) for row in rows}


def spec_of(db: sqlite3.Connection, tenant: str, job_id: str) -> dict[str, Any]:
    """What a job was asked to do; empty where there is no such job."""
    row = db.execute("SELECT spec FROM job WHERE tenant=? AND id=?", (tenant, job_id)).fetchone()
    spec: dict[str, Any] = json.loads(row["spec"]) if row else {}
    return spec


def subjects(db: sqlite3.Connection, tenant: str, job_ids: Sequence[str]) -> dict[str, str]:
    """What each job is about, for lists: the teacher's file name, or the pool; empty where its spec names neither."""
    marks = ",".join("?" * len(job_ids))
    rows = db.execute(
        "SELECT id, coalesce(json_extract(spec, '$.display_name'), json_extract(spec, '$.name'),"
        f" json_extract(spec, '$.pool.name'), '') AS subject FROM job WHERE tenant=? AND id IN ({marks})",
        (tenant, *job_ids),
    )
    return {row["id"]: str(row["subject"]) for row in rows}


def count_in_state(db: sqlite3.Connection, tenant: str, states: Sequence[str], *, on_devices: bool = False) -> int:
    """How many jobs of a tenant are in these states: those that this machine runs, or those for devices."""
    marks = ",".join("?" * len(states))
    (count,) = db.execute(
        f"SELECT count(*) FROM job WHERE tenant=? AND state IN ({marks}) AND (kind=?)=?",
        (tenant, *states, BUILD_KIND, int(on_devices)),
    ).fetchone()
    return int(count)


def claim(
    db: sqlite3.Connection, kinds: Sequence[str], running: int | None = None
) -> tuple[JobRow, list[Event]] | None:
    """Take the oldest queued job of these kinds: RUNNING, one epoch later.

    Those of a tenant of whom `running` jobs of these kinds run already are passed over; None is no limit.
    """
    marks = ",".join("?" * len(kinds))
    row = db.execute(
        "UPDATE job SET state='RUNNING', epoch=epoch+1, started=coalesce(started, ?) WHERE rowid=("
        f"SELECT waiting.rowid FROM job AS waiting WHERE state='QUEUED' AND kind IN ({marks}) AND (? IS NULL OR ? > ("
        "SELECT count(*) FROM job AS other WHERE other.state IN ('RUNNING', 'CANCELLING')"
        f" AND other.tenant=waiting.tenant AND other.kind IN ({marks}))) ORDER BY created, id LIMIT 1)"
        f" RETURNING {JOB_COLUMNS}, spec",
        (now_microseconds(), *kinds, running, running, *kinds),
    ).fetchall()
    if not row:
        return None
    job = replace(_job(db, row[0]), spec=json.loads(row[0]["spec"]))
    return job, [add_event(db, job.tenant, job.id, "state", {"state": "RUNNING"})]


def request_cancel(db: sqlite3.Connection, tenant: str, job_id: str) -> list[Event]:
    """QUEUED becomes CANCELLED, RUNNING becomes CANCELLING; any other state stays."""
    for state, following in (("QUEUED", "CANCELLED"), ("RUNNING", "CANCELLING")):
        ended = now_microseconds() if following in FINAL else None
        changed = db.execute(
            "UPDATE job SET state=?, ended=? WHERE tenant=? AND id=? AND state=?",
            (following, ended, tenant, job_id, state),
        )
        if changed.rowcount:
            return [add_event(db, tenant, job_id, "state", {"state": following})]
    return []


def finish(
    db: sqlite3.Connection, job: JobRow, state: str, error: Mapping[str, Any] | None, artifacts: Sequence[ArtifactRow]
) -> list[Event]:
    """A final state, unless the claim is older than the job's epoch; a job being cancelled ends CANCELLED."""
    row = db.execute(
        "SELECT state FROM job WHERE tenant=? AND id=? AND epoch=?", (job.tenant, job.id, job.epoch)
    ).fetchone()
    if row is None or row["state"] in FINAL:
        return []
    if row["state"] == "CANCELLING":
        state, error, artifacts = "CANCELLED", None, ()
    db.execute(
        "UPDATE job SET state=?, ended=?, error=? WHERE tenant=? AND id=?",
        (state, now_microseconds(), json.dumps(error) if error else None, job.tenant, job.id),
    )
    db.executemany(
        "INSERT INTO artifact (tenant, job_id, path, sha256, size, reproducible, folder) VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(job.tenant, job.id, a.path, a.sha256, a.size, int(a.reproducible), a.folder) for a in artifacts],
    )
    failed = [add_event(db, job.tenant, job.id, "error", error)] if error else []
    return [*failed, add_event(db, job.tenant, job.id, "state", {"state": state})]


def requeue(db: sqlite3.Connection, job: JobRow) -> list[Event]:
    """After a restart: runs that were alive are lost; the job waits again, or ends if it was being cancelled."""
    db.execute(
        "UPDATE stage_run SET state=? WHERE tenant=? AND job_id=? AND state=?",
        (LOST_RUN, job.tenant, job.id, ALIVE_RUN),
    )
    if job.state == "CANCELLING":
        return finish(db, job, "CANCELLED", None, ())
    db.execute("UPDATE job SET state='QUEUED' WHERE tenant=? AND id=?", (job.tenant, job.id))
    return [add_event(db, job.tenant, job.id, "state", {"state": "QUEUED"})]


def put_run(db: sqlite3.Connection, job: JobRow, run: StageRun) -> list[Event]:
    """Write a stage's run and announce it; raises KeyError where a later claim owns the job."""
    owned = db.execute(
        "SELECT 1 FROM job WHERE tenant=? AND id=? AND epoch=?", (job.tenant, job.id, job.epoch)
    ).fetchone()
    if not owned:
        raise KeyError(f"job {job.id} is no longer at epoch {job.epoch}")
    db.execute(
        "INSERT OR REPLACE INTO stage_run (tenant, job_id, name, attempt, state, key, pid, pid_start, seconds,"
        " peak_memory_bytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (job.tenant, job.id, run.name, run.attempt, run.state, run.key, run.pid, run.pid_start, run.seconds,
         run.peak_memory_bytes),
    )  # fmt: skip
    return [add_event(db, job.tenant, job.id, "stage", stage_body(run))]


def set_process(db: sqlite3.Connection, job: JobRow, run: StageRun, pid: int, pid_start: int) -> None:
    """Which process runs a stage, so that a restart can end it."""
    db.execute(
        "UPDATE stage_run SET pid=?, pid_start=? WHERE tenant=? AND job_id=? AND name=? AND attempt=?",
        (pid, pid_start, job.tenant, job.id, run.name, run.attempt),
    )


def runs_of(db: sqlite3.Connection, job: JobRow, name: str) -> list[StageRun]:
    """All runs of one stage of a job."""
    return [run for run in _runs(db, job.tenant, job.id) if run.name == name]


def finished_keys(db: sqlite3.Connection, tenant: str, name: str, limit: int) -> list[str]:
    """Keys of a stage's results that the server has checked, the newest first."""
    rows = db.execute(
        "SELECT key, MAX(rowid) AS newest FROM stage_run WHERE tenant=? AND name=? AND state='SUCCEEDED'"
        " GROUP BY key ORDER BY newest DESC LIMIT ?",
        (tenant, name, limit),
    ).fetchall()
    return [row["key"] for row in rows]


def key_used(db: sqlite3.Connection, tenant: str, key: str) -> bool:
    """Whether a job has a run with this key, in whatever state."""
    return db.execute("SELECT 1 FROM stage_run WHERE tenant=? AND key=?", (tenant, key)).fetchone() is not None


def delete_job(db: sqlite3.Connection, tenant: str, job_id: str) -> list[str]:
    """Remove a final job and all that hangs on it; returns the keys of stages that no other job uses."""
    keys = {run.key for run in _runs(db, tenant, job_id)}
    db.execute("DELETE FROM job WHERE tenant=? AND id=?", (tenant, job_id))
    used = db.execute("SELECT DISTINCT key FROM stage_run WHERE tenant=?", (tenant,)).fetchall()
    return sorted(keys - {row["key"] for row in used})


def digests_named(db: sqlite3.Connection, tenant: str) -> set[str]:
    """Every blob that a job of the tenant names, ended or not."""
    rows = db.execute("SELECT spec FROM job WHERE tenant=?", (tenant,))
    return {sha256 for row in rows for sha256 in digests_of(json.loads(row["spec"]))}


def result_needed(db: sqlite3.Connection, tenant: str, key: str, folder: str) -> bool:
    """Whether a job that has not ended has a run with this key, or a job's artifacts lie in its folder."""
    marks = ",".join("?" * len(ACTIVE))
    row = db.execute(
        "SELECT 1 FROM stage_run JOIN job ON job.tenant=stage_run.tenant AND job.id=stage_run.job_id"
        f" WHERE stage_run.tenant=? AND stage_run.key=? AND job.state IN ({marks})"
        " UNION SELECT 1 FROM artifact WHERE tenant=? AND folder=? LIMIT 1",
        (tenant, key, *ACTIVE, tenant, folder),
    ).fetchone()
    return row is not None


def artifact_by_digest(db: sqlite3.Connection, tenant: str, sha256: str) -> ArtifactRow | None:
    """A file with this content."""
    row = db.execute("SELECT * FROM artifact WHERE tenant=? AND sha256=? LIMIT 1", (tenant, sha256)).fetchone()
    return _artifact(row) if row else None


def stage_body(run: StageRun) -> dict[str, Any]:
    """What a stage's event says."""
    return {
        "name": run.name,
        "state": run.state,
        "attempt": run.attempt,
        "seconds": run.seconds,
        "peak_memory_bytes": run.peak_memory_bytes,
    }


def _job(db: sqlite3.Connection, row: sqlite3.Row) -> JobRow:
    where = (row["tenant"], row["id"])
    artifacts = db.execute("SELECT * FROM artifact WHERE tenant=? AND job_id=? ORDER BY path", where)
    warnings = db.execute("SELECT body FROM event WHERE tenant=? AND job_id=? AND kind='warning' ORDER BY seq", where)
    return JobRow(
        **{
            k: row[k] for k in ("tenant", "id", "kind", "request_hash", "state", "created", "started", "ended", "epoch")
        },
        request_id=row["request_id"] or "",
        error=json.loads(row["error"]) if row["error"] else None,
        runs=tuple(_runs(db, *where)),
        artifacts=tuple(_artifact(a) for a in artifacts),
        warnings=tuple(json.loads(w["body"])["text"] for w in warnings),
    )


def _runs(db: sqlite3.Connection, tenant: str, job_id: str) -> list[StageRun]:
    columns = "name, attempt, state, key, pid, pid_start, seconds, peak_memory_bytes"
    rows = db.execute(f"SELECT {columns} FROM stage_run WHERE tenant=? AND job_id=? ORDER BY attempt", (tenant, job_id))
    return [StageRun(**dict(row)) for row in rows]


def _artifact(row: sqlite3.Row) -> ArtifactRow:
    return ArtifactRow(
        path=row["path"],
        sha256=row["sha256"],
        size=row["size"],
        reproducible=bool(row["reproducible"]),
        folder=row["folder"],
    )
