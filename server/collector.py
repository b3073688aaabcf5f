"""Carries out what `collection` plans, on demand and, where the settings bound what is kept, every hour."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from punnet.errors import PunnetError
from server.collection import Bounds, EndedJob, Needs, Plan, Removal, old_jobs, plan, survey
from server.folders import DataFolder
from server.job_spec import digests_of
from server.job_table import ACTIVE, FINAL
from server.jobs import JobEngine
from server.store import Store

log = logging.getLogger(__name__)

PAUSE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """What went, or would go; `kept_bytes` are those of blobs and results that stay."""

    removals: tuple[Removal, ...]
    removed_bytes: int
    kept_bytes: int


class Collector:
    """The collector of one server; one collection at a time."""

    def __init__(self, *, store: Store, data: DataFolder, engine: JobEngine, bounds: Bounds) -> None:
        self._store = store
        self._data = data
        self._engine = engine
        self._alone = asyncio.Lock()
        self.bounds = bounds

    async def collect(self, bounds: Bounds, *, apply: bool) -> Collection:
        """Say what goes, and remove it where `apply` says so."""
        async with self._alone:
            jobs = old_jobs(await self._store.read(read_needs, frozenset()), bounds, time.time())
            if apply:
                jobs = [job for job in jobs if await self._remove_job(job)]
            without = frozenset((job.tenant, job.name) for job in jobs)
            needs = await self._store.read(read_needs, without)
            stored = await asyncio.to_thread(survey, self._data)
            planned = plan(needs, stored, bounds, time.time())
            if apply:
                planned = _as_done(planned, await self._engine.remove_unneeded(planned.removals))
        found = Collection(
            removals=(*jobs, *planned.removals), removed_bytes=planned.removed_bytes, kept_bytes=planned.kept_bytes
        )
        log.info(
            "garbage collected" if apply else "garbage surveyed",
            extra={"removals": len(found.removals), "bytes": found.removed_bytes, "kept_bytes": found.kept_bytes},
        )
        return found

    async def keep_bounds(self) -> None:
        """Collect every hour, for ever; returns at once where the settings bound nothing."""
        if self.bounds == Bounds():
            return
        while True:
            try:
                await self.collect(self.bounds, apply=True)
            except (OSError, sqlite3.Error):
                log.exception("the collection failed; the next one tries again")
            await asyncio.sleep(PAUSE_SECONDS)

    async def _remove_job(self, removal: Removal) -> bool:
        try:
            await self._engine.delete(removal.tenant, removal.name)
        except PunnetError as error:  # somebody else has just deleted it
            log.info("a job stays", extra={"job": removal.name, "why": error.code})
            return False
        return True


def _as_done(planned: Plan, gone: list[Removal]) -> Plan:
    stayed = planned.removed_bytes - sum(removal.bytes for removal in gone)
    return replace(planned, removals=tuple(gone), kept_bytes=planned.kept_bytes + stayed)


def read_needs(db: sqlite3.Connection, without: frozenset[tuple[str, str]]) -> Needs:
    """What the tables need, as if the jobs `without`, given by (tenant, id), were gone."""
    ended_jobs, active_blobs, ended_blobs = [], set(), set()
    for row in db.execute("SELECT tenant, id, state, ended, spec FROM job ORDER BY ended, id"):
        if (row["tenant"], row["id"]) in without:
            continue
        blobs = {(row["tenant"], sha256) for sha256 in digests_of(json.loads(row["spec"]))}
        if row["state"] in FINAL:
            ended_jobs.append(EndedJob(tenant=row["tenant"], id=row["id"], ended=(row["ended"] or 0) / 1e6))
            ended_blobs |= blobs
        else:
            active_blobs |= blobs
    return Needs(
        ended_jobs=tuple(ended_jobs),
        results=_results(db, without),
        artifacts=_artifact_keys(db, without),
        active_blobs=frozenset(active_blobs),
        ended_blobs=frozenset(ended_blobs),
    )


def _results(db: sqlite3.Connection, without: frozenset[tuple[str, str]]) -> dict[tuple[str, str], float | None]:
    ends: dict[tuple[str, str], float | None] = {}
    rows = db.execute(
        "SELECT DISTINCT stage_run.tenant, stage_run.key, job.id, job.state, job.ended FROM stage_run"
        " JOIN job ON job.tenant=stage_run.tenant AND job.id=stage_run.job_id"
    )
    for row in rows:
        if (row["tenant"], row["id"]) in without:
            continue
        key = row["tenant"], row["key"]
        known = ends.get(key, 0.0)
        ends[key] = None if row["state"] in ACTIVE or known is None else max(known, (row["ended"] or 0) / 1e6)
    return ends


def _artifact_keys(db: sqlite3.Connection, without: frozenset[tuple[str, str]]) -> frozenset[tuple[str, str]]:
    keys = set()
    for row in db.execute("SELECT DISTINCT tenant, job_id, folder FROM artifact"):
        parts = PurePosixPath(row["folder"]).parts  # stages/<tenant>/<key>/out
        if (row["tenant"], row["job_id"]) not in without and parts[0] == "stages":
            keys.add((row["tenant"], parts[2]))
    return frozenset(keys)
