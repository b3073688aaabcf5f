"""What a call is told where the data folder's disk is full, or would be."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from punnet.errors import PunnetError, make_error

FREE_BYTES_KEPT = 256 << 20  # the database and the stages write too
FULL = (errno.ENOSPC, errno.EDQUOT)


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


def _disk_full(message: str, details: Mapping[str, str] | None = None) -> PunnetError:
    return make_error("DISK_FULL", message, "Free space on it, then try again.", details)
