"""A copy of a data folder while its server runs, and the way back. `python -I -m server.backup --data DIR DEST`.

Everything below `blobs`, `stages`, `builds` and `pools` never changes once it has its name; only deletions take it
away. So the database is copied first, then the files that this copy names; where one has just been deleted the database
is copied again, which no longer names it. Pins of waiting jobs are links: the copy notes them, the way back makes them
anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from punnet import __version__
from server.folders import DataFolder, fsync_folder, write_json
from server.job_spec import digests_of
from server.job_table import ACTIVE
from server.manifest import MANIFEST
from server.pool_table import versions_needed
from server.schema import SchemaMismatch, check_version

BACKUP_FILE = "backup.json"
FORM = 1
TRIES = 5
COPY_BYTES = 1 << 20
EXIT_REFUSED = 2
FINISHED = ("SUCCEEDED", "REUSED")
JOBS = "punnet.sqlite3"


class Refused(Exception):
    """The backup can't be made or put back like this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was copied."""

    files: int
    bytes: int
    jobs: int


def back_up(data: Path, destination: Path) -> Result:
    """Copy a data folder, whose server may run, to a new folder.

    Raises:
        Refused: there is no data folder, or something is at the destination.
        SchemaMismatch: another version wrote it.
        OSError: the disk is full, or a file can't be read.
    """
    folder = DataFolder(data)
    if not folder.database.is_file():
        raise Refused(f"{data} holds no database; it is no data folder of a server.")
    if destination.exists() and any(destination.iterdir()):
        raise Refused(f"{destination} is not empty; name a new folder.")
    destination.mkdir(mode=0o700, parents=True, exist_ok=True)
    files: dict[str, dict[str, Any]] = {}
    for _ in range(TRIES):
        databases = sorted(data.glob("*.sqlite3"))  # the jobs', and the accounts' where there are any
        for database in databases:
            copy_database(database, destination / database.name)
        check_version(_schema(destination / JOBS), data)
        named = _named_files(folder, destination / JOBS)
        files = {path: row for path, row in files.items() if path in named}
        vanished = _copy_new(folder.root, destination, named, files)
        if not vanished:
            break
    else:
        raise Refused(f"{len(vanished)} files that the database names are missing, {vanished[0]} first; is it damaged?")
    _remove_unnamed(destination, files)
    files |= {database.name: _row(destination / database.name) for database in databases}
    jobs, pins = _jobs_and_pins(folder, destination / JOBS)
    schema = _schema(destination / JOBS)
    document = {"form": FORM, "version": __version__, "schema": schema, "files": files, "pins": pins}
    write_json(destination / BACKUP_FILE, document)
    return Result(files=len(files), bytes=sum(row["size"] for row in files.values()), jobs=jobs)


def restore(source: Path, data: Path) -> Result:
    """Put a backup into a data folder that is not there yet, each file verified by its sha256.

    Raises:
        Refused: no backup, a folder that is there, a file that differs from its digest.
        SchemaMismatch: a newer version made the backup.
    """
    document = _read_document(source)
    if data.exists() and any(data.iterdir()):
        raise Refused(f"{data} is not empty; name a new folder, or move that one away.")
    check_version(int(document["schema"]), source)
    partial = data.with_name(f".{data.name}.restoring")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(mode=0o700, parents=True)
    for path, row in document["files"].items():
        copied = _copy(source / path, partial / path)
        if copied != row:
            raise Refused(f"{source / path} differs from its digest: {copied} instead of {row}. The copy is damaged.")
    for pin in document["pins"]:
        link = partial / pin["path"]
        link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.link(partial / pin["blob"], link)
    with closing(sqlite3.connect(partial / JOBS)) as db:
        (jobs,) = db.execute("SELECT count(*) FROM job").fetchone()
    if data.exists():
        data.rmdir()
    os.rename(partial, data)
    fsync_folder(data.parent)
    size = sum(row["size"] for row in document["files"].values())
    return Result(files=len(document["files"]), bytes=size, jobs=int(jobs))


def copy_database(source: Path, target: Path) -> None:
    """One consistent state of a database that others write to."""
    target.unlink(missing_ok=True)
    with closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as live, closing(sqlite3.connect(target)) as copy:
        live.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")
    os.chmod(target, 0o600)


def _schema(database: Path) -> int:
    with closing(sqlite3.connect(database)) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version)


def _named_files(data: DataFolder, database: Path) -> set[str]:
    """Paths, below the data folder, of all that the copied database names and that a server needs again."""
    with closing(sqlite3.connect(database)) as db:
        db.row_factory = sqlite3.Row
        blobs = _blobs(data, db)
        named = {path for found in blobs.values() for path in found}
        results = db.execute(
            f"SELECT DISTINCT tenant, key FROM stage_run WHERE state IN ({','.join('?' * len(FINISHED))})", FINISHED
        )
        for row in results.fetchall():
            named |= set(_result_files(data, row["tenant"], row["key"]))
        # An ingest's artifact lies in its pool, which may have been appended to or deleted.
        for row in db.execute("SELECT DISTINCT folder, path FROM artifact WHERE folder NOT LIKE 'pools/%'"):
            named.add(f"{row['folder']}/{row['path']}")
        for tenant, name, sha256 in versions_needed(db):
            folder = data.pool(tenant, name, sha256)
            named |= {data.relative(path) for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}
    return named


def _result_files(data: DataFolder, tenant: str, key: str) -> Iterator[str]:
    """A result's files by its manifest; none where it was collected, or moved to a pool."""
    out = data.stage(tenant, key) / "out"
    try:
        manifest = json.loads((out / MANIFEST).read_bytes())
    except FileNotFoundError:
        return
    yield data.relative(out / MANIFEST)
    for row in manifest["files"]:
        yield data.relative(out / row["path"])


def _blobs(data: DataFolder, db: sqlite3.Connection) -> dict[tuple[str, str], list[str]]:
    """(tenant, sha256) -> paths, of the blobs that jobs name and that are there."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in db.execute("SELECT tenant, spec FROM job"):
        for sha256 in digests_of(json.loads(row["spec"])):
            folder = data.blobs(row["tenant"]) / sha256[:2]
            found[row["tenant"], sha256] = [data.relative(path) for path in folder.glob(f"{sha256}-*")]
    return found


def _jobs_and_pins(data: DataFolder, database: Path) -> tuple[int, list[dict[str, str]]]:
    """How many jobs there are, and the links by which those that have not ended hold their blobs."""
    pins = []
    with closing(sqlite3.connect(database)) as db:
        db.row_factory = sqlite3.Row
        (jobs,) = db.execute("SELECT count(*) FROM job").fetchone()
        marks = ",".join("?" * len(ACTIVE))
        rows = db.execute(f"SELECT tenant, id, spec FROM job WHERE state IN ({marks})", ACTIVE).fetchall()
        blobs = _blobs(data, db)
    for row in rows:
        for sha256 in sorted(digests_of(json.loads(row["spec"]))):
            folder = data.job(row["tenant"], row["id"])
            pins += [
                {"path": data.relative(folder / sha256), "blob": blob} for blob in blobs[row["tenant"], sha256][:1]
            ]
    return int(jobs), pins


def _copy_new(root: Path, destination: Path, named: set[str], files: dict[str, dict[str, Any]]) -> list[str]:
    """Copy what is not yet there; the paths that have vanished."""
    vanished = []
    for path in sorted(named - files.keys()):
        try:
            files[path] = _copy(root / path, destination / path)
        except FileNotFoundError:
            vanished.append(path)
    return vanished


def _remove_unnamed(destination: Path, files: Mapping[str, Any]) -> None:
    """What was deleted in the meantime is not kept in a backup either."""
    for path in destination.rglob("*"):
        if path.is_file() and path.suffix != ".sqlite3" and path.relative_to(destination).as_posix() not in files:
            path.unlink()


def _copy(source: Path, target: Path) -> dict[str, Any]:
    """Copy a file durably; its size and sha256 as they were read."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as reader, open(target, "wb", opener=_private) as writer:
        while chunk := reader.read(COPY_BYTES):
            digest.update(chunk)
            size += len(chunk)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    shutil.copystat(source, target, follow_symlinks=False)  # a blob's age counts
    return {"size": size, "sha256": digest.hexdigest()}


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _row(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _read_document(source: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads((source / BACKUP_FILE).read_bytes())
        paths = [*document["files"], *(pin[key] for pin in document["pins"] for key in ("path", "blob"))]
        form = document["form"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(f"{source} is no finished backup: {BACKUP_FILE} can't be read ({error}).") from error
    if form != FORM:
        raise Refused(f"{source} has form {form}, this version reads {FORM}; restore with the version that made it.")
    bad = [path for path in paths if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts]
    if bad:
        raise Refused(f"{source} names {bad[0]!r}, which leaves the data folder.")
    return document


def main(arguments: list[str] | None = None) -> int:
    """`backup` or `restore`; exit status 2 where it is refused."""
    os.umask(0o077)
    parser = argparse.ArgumentParser(prog="punnet", description=__doc__)
    parser.add_argument("verb", choices=("backup", "restore"))
    parser.add_argument("folder", type=Path, help="of the backup")
    parser.add_argument("--data", type=Path, required=True, help="the server's data folder")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        data, folder = options.data.resolve(), options.folder.resolve()
        result = back_up(data, folder) if options.verb == "backup" else restore(folder, data)
    except (Refused, SchemaMismatch, OSError, sqlite3.DatabaseError) as error:
        print(f"punnet {options.verb}: {error}", file=sys.stderr)
        return EXIT_REFUSED
    if options.json:
        print(json.dumps({"files": result.files, "bytes": result.bytes, "jobs": result.jobs}))
    else:
        where = folder if options.verb == "backup" else data
        print(f"{result.jobs} jobs, {result.files} files and {result.bytes:,} bytes are in {where}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
