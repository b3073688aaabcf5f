"""What nobody needs any more: planned from the tables and the folders, removed beside running jobs and uploads.

A removal is planned without any lock and checked again under the lock that whoever might come to need it holds.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.folders import DataFolder

DAY_SECONDS = 86_400.0
GRACE_SECONDS = DAY_SECONDS  # a blob that a client was told of stays a day; so does what a stage has begun


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How long ended work is kept, and how much; None is without end."""

    job_days: float | None = None
    result_days: float | None = None
    quota_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedJob:
    """A job in a final state; times are in seconds since 1970."""

    tenant: str
    id: str
    ended: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What the tables say. Results are (tenant, key), blobs are (tenant, sha256).

    `results` gives for each result that a job names the time at which the last of its jobs ended, or None while one
    has not.
    """

    ended_jobs: Sequence[EndedJob]
    results: Mapping[tuple[str, str], float | None]
    artifacts: frozenset[tuple[str, str]]  # results that hold the files of a job
    active_blobs: frozenset[tuple[str, str]]
    ended_blobs: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One blob, unfinished upload or result on the disk."""

    kind: str  # blob | upload | result
    tenant: str
    name: str
    path: Path = field(repr=False)
    bytes: int
    changed: float  # seconds since 1970

    @property
    def key(self) -> tuple[str, str]:
        return self.tenant, self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """One thing that goes; `path` is None for a job."""

    kind: str  # job | blob | upload | result
    tenant: str
    name: str
    path: Path | None = field(repr=False, default=None)
    bytes: int = 0
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What goes, and the bytes that stay."""

    removals: tuple[Removal, ...]
    kept_bytes: int

    @property
    def removed_bytes(self) -> int:
        return sum(removal.bytes for removal in self.removals)


def old_jobs(needs: Needs, bounds: Bounds, now: float) -> list[Removal]:
    """Jobs that ended longer ago than they are kept."""
    if bounds.job_days is None:
        return []
    reason = f"ended more than {bounds.job_days:g} days ago"
    before = now - bounds.job_days * DAY_SECONDS
    return [
        Removal(kind="job", tenant=j.tenant, name=j.id, reason=reason) for j in needs.ended_jobs if j.ended < before
    ]


def plan(needs: Needs, stored: Sequence[Stored], bounds: Bounds, now: float) -> Plan:
    """What goes of the files, by need, by age and then by quota.

    Args:
        needs: as the tables are once the old jobs are gone.
        now: seconds since 1970.
    """
    unneeded = {item.path: reason for item in stored if (reason := _unneeded(item, needs, bounds, now))}
    kept = sum(item.bytes for item in stored if item.path not in unneeded)
    if bounds.quota_bytes is not None:
        for item in _by_dispensability(stored, needs, now):
            if kept <= bounds.quota_bytes:
                break
            if item.path not in unneeded:
                unneeded[item.path] = f"over the quota of {bounds.quota_bytes} bytes"
                kept -= item.bytes
    removals = [
        Removal(
            kind=item.kind, tenant=item.tenant, name=item.name, path=item.path, bytes=item.bytes,
            reason=unneeded[item.path],
        )
        for item in stored
        if item.path in unneeded
    ]  # fmt: skip
    return Plan(removals=tuple(removals), kept_bytes=kept)


def survey(data: DataFolder) -> list[Stored]:
    """Everything that could go, with its size. A file that vanishes meanwhile is left out."""
    found: list[Stored] = []
    for folder in sorted((data.root / "blobs").glob("*/*")):
        kind = "upload" if folder.name == "partial" else "blob"
        for path, status in _entries(folder):
            found.append(
                Stored(
                    kind=kind, tenant=folder.parent.name, name=path.name.partition("-")[0], path=path,
                    bytes=status.st_size, changed=status.st_mtime,
                )
            )  # fmt: skip
    for folder in sorted((data.root / "stages").glob("*/*")):
        size, changed = _measure(folder)
        found.append(
            Stored(kind="result", tenant=folder.parent.name, name=folder.name, path=folder, bytes=size, changed=changed)
        )
    return found


def remove_file(path: Path) -> bool:
    """Remove a blob or an unfinished upload, unless a job pins it or somebody asked for it within the last day."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    if status.st_nlink > 1 or time.time() - status.st_mtime < GRACE_SECONDS:
        return False
    path.unlink()
    return True


def _unneeded(item: Stored, needs: Needs, bounds: Bounds, now: float) -> str:
    """Why an item goes whatever the quota; empty where it stays."""
    fresh = now - item.changed < GRACE_SECONDS
    if item.kind == "upload":
        return "" if fresh else "not finished within a day"
    if item.kind == "blob":
        return "" if fresh or item.key in needs.active_blobs | needs.ended_blobs else "no job names it"
    if item.key not in needs.results:
        return "" if fresh else "no job names it"
    ended = needs.results[item.key]
    if item.key in needs.artifacts or ended is None or bounds.result_days is None:
        return ""
    old = ended < now - bounds.result_days * DAY_SECONDS
    return f"its jobs ended more than {bounds.result_days:g} days ago" if old else ""


def _by_dispensability(stored: Sequence[Stored], needs: Needs, now: float) -> list[Stored]:
    """What a quota may take, the first to go first: results by age, then blobs by age. Nothing of active jobs."""
    results = [
        item
        for item in stored
        if item.kind == "result" and item.key not in needs.artifacts and needs.results.get(item.key) is not None
    ]
    old = needs.ended_blobs - needs.active_blobs
    blobs = [i for i in stored if i.kind == "blob" and i.key in old and now - i.changed >= GRACE_SECONDS]
    return [*sorted(results, key=lambda i: i.changed), *sorted(blobs, key=lambda i: i.changed)]


def _entries(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            status = os.lstat(entry)
        except FileNotFoundError:  # an upload that has just become a blob
            continue
        if stat.S_ISREG(status.st_mode):
            yield entry, status


def _measure(folder: Path) -> tuple[int, float]:
    """Bytes of all files below, and when the folder itself last changed; links are not followed."""
    total = 0
    changed = os.lstat(folder).st_mtime
    for path, _, names in os.walk(folder, onerror=None):
        for name in names:
            try:
                status = os.lstat(os.path.join(path, name))
            except FileNotFoundError:  # a running stage's own
                continue
            total += status.st_size
    return total, changed
