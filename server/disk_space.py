"""What a call or a job is told where the data folder's disk is full, would be, or fails."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

from punnet.errors import PunnetError, make_error

FREE_BYTES_KEPT = 256 << 20  # the database and the stages write too
FULL = (errno.ENOSPC, errno.EDQUOT)
FAILED = (errno.EIO, errno.EFBIG, errno.EROFS, errno.ESTALE, errno.ETIMEDOUT)
# What the database says of its file, its lock and its disk, and not of a statement of ours.
DATABASE_FAILED = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
)
PRIMARY_CODE = 0xFF  # of SQLite's extended ones


def check_space(folder: Path, size: int) -> None:
    """Raises PunnetError DISK_FULL where `size` bytes more would not leave FREE_BYTES_KEPT."""
    free = shutil.disk_usage(folder).free
    if size + FREE_BYTES_KEPT > free:
        raise _disk_full(
            f"{size} bytes are to be stored, the data folder's disk has {free} free ones; {FREE_BYTES_KEPT} stay free.",
            {"size": str(size), "free": str(free), "limit": str(FREE_BYTES_KEPT)},
        )


@contextlib.contextmanager
def full_disk_named() -> Iterator[None]:
    """Turn the system's error for a full disk into PunnetError DISK_FULL; others pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise _disk_full("The data folder's disk is full.") from error


def storage_failure(error: BaseException) -> PunnetError | None:
    """DISK_FULL or DISK_FAILED where the data folder is to blame for an error; None for a defect.

    Neither text names a path or a statement.
    """
    if isinstance(error, sqlite3.Error):
        code = (getattr(error, "sqlite_errorcode", None) or 0) & PRIMARY_CODE
        if code == sqlite3.SQLITE_FULL:
            return _disk_full("The data folder's disk is full.")
        return _disk_failed(str(error.sqlite_errorname)) if code in DATABASE_FAILED else None
    if isinstance(error, OSError) and error.errno in FULL:
        return _disk_full("The data folder's disk is full.")
    if isinstance(error, OSError) and error.errno in FAILED:
        return _disk_failed(os.strerror(error.errno or 0))
    return None


def _disk_failed(why: str) -> PunnetError:
    return make_error(
        "DISK_FAILED",
        f"The data folder can't be read or written just now ({why}).",
        "Try again in a moment; if it stays so, have the operator look at the server's log and its disk.",
        {"why": why},
    )


def _disk_full(message: str, details: Mapping[str, str] | None = None) -> PunnetError:
    return make_error("DISK_FULL", message, "Free space on it, then try again.", details)
