"""What must not be left behind by a fault: slots, files, processes, a damaged database."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import sqlite3
from pathlib import Path

from benchmarks.fault_injection import commands_naming
from benchmarks.server_process import ServerProcess
from punnet.aio import AsyncClient
from punnet.blobs import upload_missing
from punnet.errors import PunnetError
from punnet.transfer import blob_of

SETTLE_SECONDS = 15.0  # a stream that a client left is noticed by then; the limit holds until it is
UPLOADS = 4  # that the server takes at once of one tenant
PROBE_BYTES = 1 << 16
PROBES = [blob_of(random.Random(number).randbytes(PROBE_BYTES)) for number in range(UPLOADS)]
KEPT = ("punnet.sqlite3", "lock", "server.log", "ray.log", "students")


def left_behind(server: ServerProcess, parcel_sha256: str) -> list[str]:
    """Problems after the work, in words: as the server says it, then, stopped, as its data folder shows it."""
    problems = []
    try:
        problems += asyncio.run(_cleared(server.address))
    except PunnetError as error:
        problems.append(f"after the work: {error.code}: {error}")
    status = server.stop()
    if status:
        problems.append(f"the server ended with status {status}")
    known = {parcel_sha256, *(probe.sha256 for probe in PROBES)}
    problems += [f"{path} is left" for path in leaked_files(server.data, known)]
    problems += [f"process {pid} is left: {command}" for pid, command in orphans(server.data)]
    return [*problems, *database_damage(server.data / "punnet.sqlite3")]


async def _cleared(address: str) -> list[str]:
    """Use every upload slot at once, ask what the collector would take, then delete all jobs and pools."""
    async with AsyncClient(address, patience_seconds=SETTLE_SECONDS) as client:
        await asyncio.gather(*(upload_missing(client.connection, [probe]) for probe in PROBES))
        # A blob or an unfinished upload that no job names is a client's that did not come so far: the collector's.
        problems = [
            f"gc would remove {removal.kind} {removal.name}: {removal.reason}"
            for removal in (await client.collect_garbage()).removals
            if removal.kind not in ("blob", "upload")
        ]
        for job in await client.jobs(1000):
            await client.delete(job.id)
        for pool in await client.pools():
            await client.delete_pool(pool.name)
    return problems


def leaked_files(data: Path, known: set[str]) -> list[str]:
    """Files that are there though every job and pool was deleted; `known` are blobs that no job names."""
    found = []
    for path in sorted(data.rglob("*")):
        parts = path.relative_to(data).parts
        unfinished = parts[0] == "blobs" and parts[2:3] == ("partial",)
        blob = parts[0] == "blobs" and path.name.partition("-")[0] in known
        if path.is_file() and not (parts[0].startswith(KEPT) or unfinished or blob):
            found.append("/".join(parts))
    return found


def orphans(data: Path) -> list[tuple[int, str]]:
    """Processes of the server, by command line or by the mark of its stages and of its Ray driver."""
    name = hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:16]
    marks = {f"{variable}={name}".encode() for variable in ("PUNNET_RUN_ID", "PUNNET_RAY_OF")}
    found = {pid: b" ".join(command).decode(errors="replace") for pid, command in commands_naming(data)}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has ended, or is no process
            if not marks.isdisjoint((entry / "environ").read_bytes().split(b"\0")):
                found.setdefault(int(entry.name), os.readlink(entry / "exe"))
    return sorted(found.items())


def database_damage(path: Path) -> list[str]:
    """What SQLite's own checks find, and what hangs on no job."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        problems = [f"integrity_check: {text}" for (text,) in database.execute("PRAGMA integrity_check")]
        problems += [f"foreign_key_check: {row}" for row in database.execute("PRAGMA foreign_key_check")]
        for table in ("job", "stage_run", "event", "artifact"):
            (rows,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()
            problems += [f"{rows} rows of {table} are left"] if rows else []
    return [problem for problem in problems if problem != "integrity_check: ok"]
