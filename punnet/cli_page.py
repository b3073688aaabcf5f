"""The file of `--html`: tried before a job runs for it, filled and named after."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from punnet.cli_output import notices
from punnet.errors import InvalidRequest, make_error

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


def check_writable(page: Path) -> None:
    """Returns where the page can be written, so that no job runs for one that has no place. Leaves no file.

    Raises:
        InvalidRequest: REQUEST_INVALID.
    """
    if page.is_dir():
        raise _no_place(page, f"{page} is a folder")
    if not page.absolute().parent.is_dir():
        raise _no_place(page, f"There is no folder {page.absolute().parent}")
    there = page.exists()
    if there and not page.is_file():
        raise _no_place(page, f"{page} is no regular file")
    try:
        with page.open("ab"):
            pass
        if not there:
            page.unlink()
    except OSError as error:
        raise _no_place(page, f"{page} can't be written: {error.strerror}") from error


def place(made: Path, page: Path) -> None:
    """Copies a page that a job made to its place, and says on stderr where that is.

    Raises:
        InvalidRequest: REQUEST_INVALID where it can't be written after all.
        CapacityExhausted: DISK_FULL.
    """
    try:
        shutil.copyfile(made, page)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise make_error(
                "DISK_FULL", f"There is no space for {page}.", "Free some, or give --html another place."
            ) from error
        raise _no_place(page, f"{page} can't be written: {error.strerror}") from error
    notices().print(f"The page is {page}", soft_wrap=True, markup=False, highlight=False)


def _no_place(page: Path, what: str) -> InvalidRequest:
    return InvalidRequest(
        f"{what}.",
        code="REQUEST_INVALID",
        remedy="Give --html a file in a folder that is there and that you may write to.",
        details={"path": str(page)},
    )
