"""Where things lie below the data folder, and how they are written so that a crash leaves no half."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class DataFolder:
    """One server's data folder."""

    root: Path

    @property
    def id(self) -> str:
        """What processes that work for this folder are marked with."""
        return hashlib.sha256(str(self.root.resolve()).encode()).hexdigest()[:16]

    @property
    def database(self) -> Path:
        return self.root / "punnet.sqlite3"

    @property
    def accounts(self) -> Path:
        return self.root / "accounts.sqlite3"

    @property
    def audit(self) -> Path:
        return self.root / "audit.jsonl"

    def blobs(self, tenant: str) -> Path:
        return self.root / "blobs" / tenant

    def pools(self, tenant: str) -> Path:
        return self.root / "pools" / tenant

    def pool(self, tenant: str, name: str, sha256: str) -> Path:
        """One version of a pool."""
        return self.pools(tenant) / name / sha256

    def stages(self, tenant: str) -> Path:
        return self.root / "stages" / tenant

    def stage(self, tenant: str, key: str) -> Path:
        return self.stages(tenant) / key

    def jobs(self, tenant: str) -> Path:
        return self.root / "jobs" / tenant

    def job(self, tenant: str, job_id: str) -> Path:
        return self.jobs(tenant) / job_id

    def build(self, tenant: str, job_id: str) -> Path:
        """What agents brought of one build."""
        return self.root / "builds" / tenant / job_id

    def relative(self, path: Path) -> str:
        """The form in which the database holds a path: the folder can be moved."""
        return path.relative_to(self.root).as_posix()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that a crash leaves the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(json.dumps(value, allow_nan=False).encode())
        file.flush()
        os.fsync(descriptor)
    os.replace(partial, path)
    fsync_folder(path.parent)


def fsync_folder(path: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Remove whatever is there under this name, as a stage that a stranger's model took over may have left it.

    A link is removed, not followed; folders without rights get them; folders are lifted to the top before they are
    looked into, so that neither their depth nor the length of their paths matters.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        lifted = (path / f".removed-{secrets.token_hex(8)}-{number}" for number in itertools.count())
        path.chmod(0o700)
        folders = [path]
        while folders:
            folder = folders.pop()
            for entry in list(os.scandir(folder)):
                if entry.is_dir(follow_symlinks=False):
                    os.chmod(entry.path, 0o700)
                    folders.append(next(lifted))
                    os.rename(entry.path, folders[-1])
                else:
                    os.unlink(entry.path)
            if folder != path:
                os.rmdir(folder)
        os.rmdir(path)


def read_bounded(path: Path, limit: int) -> bytes:
    """Bytes of a regular file that a child wrote; it is not trusted to be small, or a file at all.

    Raises:
        OSError: missing, a link, not a regular file, or larger than `limit`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(f"{path.name} is larger than {limit} bytes")
    return data
